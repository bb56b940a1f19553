# SPDX-License-Identifier: Apache-2.0
"""The surface that every ray of a camera hits first: quads and balls in the camera's axes, against a depth buffer.

A ray has the direction (dx, dy, 1). On the plane of a quad with corner p and sides u, v (all in the camera's axes),
`s u + r v + p = z d` at the depth z, so (s, r, 1) / z is the inverse of the matrix [u v p] times d: linear in dx, dy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR = 0.03  # metres; nothing nearer is drawn

Window = tuple[int, int, int, int]
"""Columns from..to and rows from..to of the rays."""


@dataclass(frozen=True)
class Planes:
    """Quads before a camera."""

    inverse: np.ndarray  # float32 [Q, 3, 3]: rows give s / z, r / z, 1 / z of a ray (dx, dy, 1)
    window: np.ndarray  # int [Q, 4], columns and rows of rays that may hit it; empty where it is not seen


def corners_in_window(corners: np.ndarray, half: float, rays: int) -> np.ndarray:
    """Window int [Q, 4] of the rays, `rays` each way, that may hit polygons with corners [Q, K, 3]; empty if none."""
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
    before = z > NEAR
    following = np.roll(corners, -1, axis=1)
    crosses = before != np.roll(before, -1, axis=1)
    step = following[..., 2] - z
    share = (NEAR - z) / np.where(crosses, step, 1)
    cut = corners + share[..., None] * (following - corners)
    seen = np.concatenate([before, crosses], axis=1)
    depth = np.where(seen, np.concatenate([z, np.full_like(z, NEAR)], axis=1), 1)
    found = []
    for place, sign in ((np.concatenate([x, cut[..., 0]], axis=1), 1), (np.concatenate([y, cut[..., 1]], axis=1), -1)):
        ray = (np.clip(sign * place / depth / half, -1e4, 1e4) + 1) * rays / 2 - 0.5
        found.append(np.ceil(np.where(seen, ray, np.inf).min(1).clip(0, rays)))
        found.append(np.floor(np.where(seen, ray, -np.inf).max(1).clip(-1, rays - 1)) + 1)
    window = np.stack(found, axis=1).astype(np.int64)
    return window


def put_before_camera(
    corner: np.ndarray, u: np.ndarray, v: np.ndarray, half: float, rays: int, limits: np.ndarray
) -> Planes:
    """Planes of quads [Q, 3] in the camera's axes; `limits` [Q, 4] is the window in which each may be seen."""
    normal = cross(v, u)
    height = (normal * corner).sum(1)  # below 0 where the front is seen
    safe = np.where(np.abs(height) > 1e-9, height, 1e-9)
    # det [u v p] = u . (v x p) = -(normal . p)
    inverse = np.stack([cross(v, corner), cross(corner, u), -normal], axis=1) / -safe[:, None, None]
    corners = np.stack([corner, corner + u, corner + u + v, corner + v], axis=1)
    window = corners_in_window(corners, half, rays)
    window[:, ::2] = np.maximum(window[:, ::2], limits[:, ::2])
    window[:, 1::2] = np.minimum(window[:, 1::2], limits[:, 1::2])
    window[height >= -1e-9] = 0
    return Planes(inverse.astype(np.float32), window)


def balls_in_window(centre: np.ndarray, radius: np.ndarray, half: float, rays: int) -> np.ndarray:
    """Window int [B, 4] of the rays that may hit balls at [B, 3] in the camera's axes; empty if none."""
    z = centre[:, 2]
    inside = z**2 - radius**2
    found = []
    for place in (centre[:, 0], -centre[:, 1]):
        root = np.sqrt(np.clip(place**2 + inside, 0, None)) * radius
        safe = np.where(inside > 1e-6, inside, 1)
        low, high = (place * z - root) / safe, (place * z + root) / safe
        low, high = np.where(inside > 1e-6, low, -half), np.where(inside > 1e-6, high, half)
        found.append(np.ceil(((low / half + 1) * rays / 2 - 0.5).clip(0, rays)))
        found.append(np.floor(((high / half + 1) * rays / 2 - 0.5).clip(-1, rays - 1)) + 1)
    window = np.stack(found, axis=1).astype(np.int64)
    window[z < -radius] = 0
    return window


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of vectors [N, 3], faster than NumPy's."""
    out = np.empty_like(a)
    out[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    out[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    out[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return out


class DepthBuffer:
    """The nearest surface so far along every ray: `surface` int32 [rays, rays], -1 for none, and `nearness`, 1 / z."""

    def __init__(self, half: float, rays: int) -> None:
        place = (((np.arange(rays) + 0.5) / rays * 2 - 1) * half).astype(np.float32)
        self._x, self._y = place, -place
        self.surface: np.ndarray = np.full((rays, rays), -1, np.int32)
        self.nearness: np.ndarray = np.zeros((rays, rays), np.float32)

    def clear(self) -> None:
        """Forget everything."""
        self.surface.fill(-1)
        self.nearness.fill(0)

    def draw_quads(self, planes: Planes) -> None:
        """Draw quads; a quad has the number of its row."""
        window = planes.window
        for number in np.flatnonzero((window[:, 0] < window[:, 1]) & (window[:, 2] < window[:, 3])):
            left, right, top, bottom = window[number]
            (s0, s1, s2), (r0, r1, r2), (w0, w1, w2) = planes.inverse[number]
            x, y = self._x[left:right], self._y[top:bottom, None]
            w = w0 * x + (w1 * y + w2)
            best = self.nearness[top:bottom, left:right]
            hit = w > best
            s = s0 * x + (s1 * y + s2)
            hit &= s >= 0
            hit &= s <= w
            r = r0 * x + (r1 * y + r2)
            hit &= r >= 0
            hit &= r <= w
            np.copyto(best, w, where=hit)
            np.copyto(self.surface[top:bottom, left:right], np.int32(number), where=hit)

    def draw_balls(self, centre: np.ndarray, radius: np.ndarray, window: np.ndarray, first: int) -> None:
        """Draw balls at [B, 3] in the camera's axes; ball b has the number `first` + b."""
        for ball in np.flatnonzero((window[:, 0] < window[:, 1]) & (window[:, 2] < window[:, 3])):
            left, right, top, bottom = window[ball]
            z, hit = ball_depth(self._x[left:right], self._y[top:bottom, None], centre[ball], radius[ball])
            w = 1 / np.maximum(z, 1e-6)
            best = self.nearness[top:bottom, left:right]
            hit &= (w > best) & (z > NEAR)
            np.copyto(best, w, where=hit)
            np.copyto(self.surface[top:bottom, left:right], np.int32(first + ball), where=hit)


def ball_depth(
    x: np.ndarray, y: np.ndarray, centre: np.ndarray, radius: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a ball at centre [3] or [N, 3] along rays (x, y, 1), and where they hit; the rim's depth elsewhere."""
    along = x * centre[..., 0] + y * centre[..., 1] + centre[..., 2]
    square = x * x + y * y + 1
    root = along * along - square * ((centre * centre).sum(-1) - radius * radius)
    return (along - np.sqrt(np.maximum(root, 0))) / square, root > 0
