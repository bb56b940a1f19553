# SPDX-License-Identifier: Apache-2.0
"""Renderer of the rooms world: poses of a camera in a house -> pictures, depth, and the rooms that are seen.

Rooms that no opening shows are left out. With `samples` = 2 every pixel that shows an edge is made of four rays;
textures are filtered by themselves, so that the inside of a surface needs one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np

from aapt_fast.errors import require
from aapt_fast.worlds.rooms.camera import Camera, rotation
from aapt_fast.worlds.rooms.house import House
from aapt_fast.worlds.rooms.light import LightMap, light_quads
from aapt_fast.worlds.rooms.plan import DOOR_HEIGHT, DOOR_WIDTH, Door
from aapt_fast.worlds.rooms.raster import DepthBuffer, balls_in_window, corners_in_window, put_before_camera
from aapt_fast.worlds.rooms.shading import BallTable, QuadTable, shade_balls, shade_quads
from aapt_fast.worlds.rooms.shell import build_leaf
from aapt_fast.worlds.rooms.surfaces import Ball, Quad, Quads, mixed_colours, stack_quads
from aapt_fast.worlds.rooms.textures import library

DOOR_LIGHT = 0.85  # brightness of frames and leaves, which two rooms light
EXPOSURE = 1.08
PART = 6144  # rays that are shaded at a time

Shade: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Surfaces [N] and rays (x, y, 1), each [N] -> RGB [3, N] and depth [N]."""


@dataclass(frozen=True)
class Picture:
    """One video frame."""

    image: np.ndarray  # uint8 [S, S, 3]
    depth: np.ndarray  # float32 [S, S], metres along the camera's axis; the first ray's, where a pixel shows an edge
    rooms: tuple[int, ...]


class Renderer:
    """Renders one house. What it makes of a room is kept, so that the second video frame is faster than the first."""

    def __init__(self, house: House, size: int, camera: Camera | None = None, samples: int = 1) -> None:
        require(size % 8 == 0 and size > 0, "size", "a positive multiple of 8", size)
        require(samples in (1, 2), "samples", "1 or 2 rays along each side of a pixel", samples)
        self.house, self.size, self.samples = house, size, samples
        self._half = (camera or Camera()).half
        self._buffer = DepthBuffer(self._half, size * samples)
        self._rooms: dict[int, tuple[QuadTable, BallTable]] = {}
        self._frames: dict[tuple[float, ...], QuadTable] = {}
        self._scene: _Scene | None = None
        self._light: np.ndarray = np.full(4, DOOR_LIGHT, np.float32)  # the first map is that of all doors
        place = (((np.arange(size) + 0.5) / size * 2 - 1) * self._half).astype(np.float32)
        self._x: np.ndarray = np.tile(place, size)
        self._y: np.ndarray = np.repeat(-place, size)

    def render(self, pose: np.ndarray, doors: np.ndarray) -> Picture:
        """The picture from `pose` [6], with doors [D, 2] opened by so much, each into its room -1 or 1."""
        turned = rotation(pose)
        windows = self.visible_rooms(pose, doors)
        scene, limits, ball_limits = self._gather(windows, doors)
        table, balls, rays = scene.table, scene.balls, len(self._buffer.surface)
        quads = table.quads
        corner = (quads.corner - pose[:3]) @ turned
        planes = put_before_camera(corner, quads.u @ turned, quads.v @ turned, self._half, rays, limits)
        heights = np.abs((scene.normals * (pose[:3] - quads.corner)).sum(1)).astype(np.float32)
        seen = ((balls.centre - pose[:3]) @ turned).astype(np.float32)
        window = _both(balls_in_window(seen, balls.radius, self._half, rays), ball_limits)
        buffer = self._buffer
        buffer.clear()
        buffer.draw_quads(planes)
        buffer.draw_balls(seen, balls.radius, window, len(quads))
        pixel = 2 * self._half / self.size

        def shade(surface: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """RGB [3, N] and depth [N] of surfaces [N] along rays."""
            if not (surface < 0).any() and not (surface >= len(quads)).any():
                return shade_quads(table, self._light, planes.inverse, heights, surface, x, y, pixel)
            colour: np.ndarray = np.zeros((3, len(x)), np.float32)
            depth: np.ndarray = np.full(len(x), np.inf, np.float32)
            on = np.flatnonzero((surface >= 0) & (surface < len(quads)))
            colour[:, on], depth[on] = shade_quads(
                table, self._light, planes.inverse, heights, surface[on], x[on], y[on], pixel
            )
            on = np.flatnonzero(surface >= len(quads))
            if len(on):
                which = surface[on] - len(quads)
                colour[:, on], depth[on] = shade_balls(balls, seen, turned, which, x[on], y[on], pixel)
            return colour, depth

        colour, depth = self._resolve(in_parts(shade))
        np.clip(colour * EXPOSURE, 0, 1, out=colour)
        image = (colour * 255 + 0.5).astype(np.uint8).T.reshape(self.size, self.size, 3)
        return Picture(np.ascontiguousarray(image), depth.reshape(self.size, self.size), tuple(windows))

    def _resolve(self, shade: Shade) -> tuple[np.ndarray, np.ndarray]:
        """RGB [3, S * S] and depth [S * S] of all pixels; an edge is the mean of four rays."""
        if self.samples == 1:
            colour, depth = shade(self._buffer.surface.ravel(), self._x, self._y)
            return colour, depth
        size = self.size
        four = self._buffer.surface.reshape(size, 2, size, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
        surface = four[:, 0].copy()
        colour, depth = shade(surface, self._x, self._y)
        edge = np.flatnonzero((four != surface[:, None]).any(1))
        quarter = np.float32(self._half / size / 2)
        mixed: np.ndarray = np.zeros((3, len(edge)), np.float32)
        for number, (dy, dx) in enumerate(((1, -1), (1, 1), (-1, -1), (-1, 1))):
            part, first = shade(four[edge, number], self._x[edge] + dx * quarter, self._y[edge] + dy * quarter)
            mixed += 0.25 * np.clip(part * EXPOSURE, 0, 1)
            if number == 0:
                depth[edge] = first
        colour[:, edge] = mixed / EXPOSURE
        return colour, depth

    def visible_rooms(self, pose: np.ndarray, doors: np.ndarray) -> dict[int, np.ndarray]:
        """Windows int [4] of the rays by the rooms that they may see into, from `pose` [6]; doors as in `render`."""
        plan, turned, rays = self.house.plan, rotation(pose), len(self._buffer.surface)
        place, whole = pose[[0, 2]], np.array([0, rays, 0, rays])
        here = plan.room_at(place)
        found = {here: whole}
        for door in plan.doors:
            if door.inside(place):
                found |= {door.first: whole, door.second: whole}
        waiting = list(found)
        while waiting:
            room = waiting.pop()
            for number in plan.doors_of(room):
                door = plan.doors[number]
                if door.has_leaf and doors[number, 0] <= 0:
                    continue
                corners = (_opening(door) - pose[:3]) @ turned
                window = corners_in_window(corners[None], self._half, rays)[0]
                limits = found[room]
                window = _both(window, limits)
                if window[0] >= window[1] or window[2] >= window[3]:
                    continue
                beyond = door.other(room)
                before = found.get(beyond)
                if before is not None:
                    window = _either(window, before)
                    if (window == before).all():
                        continue
                found[beyond] = window
                waiting.append(beyond)
        return found

    def _gather(self, windows: dict[int, np.ndarray], doors: np.ndarray) -> tuple[_Scene, np.ndarray, np.ndarray]:
        """Everything in the visible rooms, and the windows [Q, 4] and [B, 4] in which it may be seen."""
        at_doors: dict[int, np.ndarray] = {}
        for room, window in windows.items():
            for number in self.house.plan.doors_of(room):
                at_doors[number] = _either(at_doors.get(number, window), window)
        key = (tuple(windows), tuple((number, *doors[number]) for number in at_doors))
        if self._scene is None or self._scene.key != key:
            rooms = [self._room(room) for room in windows]
            at = [self._door(number, doors[number]) for number in at_doors]
            self._scene = _Scene(key, [table for table, _ in rooms] + at, [balls for _, balls in rooms])
        scene = self._scene
        limits = np.array([*windows.values(), *at_doors.values()])
        return scene, limits.repeat(scene.sizes, axis=0), limits[: len(windows)].repeat(scene.ball_sizes, axis=0)

    def _room(self, number: int) -> tuple[QuadTable, BallTable]:
        if number not in self._rooms:
            house, room = self.house, self.house.rooms[number]
            quads = house.quads_of(number)
            light = light_quads(quads, house.plan.rooms[number], room.lamp, room.boxes)
            start = light.start + np.int32(len(self._light))
            self._light = np.concatenate([self._light, light.values])
            table = _table(quads, LightMap(light.values, start, light.counts), room.style.lamp)
            self._rooms[number] = table, _ball_table(house.balls_of(number), room.style.lamp, room.lamp)
        return self._rooms[number]

    def _door(self, number: int, state: np.ndarray) -> QuadTable:
        """The frame of a door and its leaf; doors that do not move are kept."""
        door, (leaf, handle, _) = self.house.plan.doors[number], self.house.wood
        key = (number, *state)
        if key in self._frames:
            return self._frames[key]
        quads = self.house.frame_of(number)
        if door.has_leaf:
            quads = quads + build_leaf(door, leaf, handle, float(state[0]), float(state[1]))
        table = self._constant(quads)
        if state[0] in (0, 1):
            self._frames[key] = table
        return table

    def _constant(self, quads: list[Quad]) -> QuadTable:
        """Quads that the same light falls on everywhere."""
        counts: np.ndarray = np.full((len(quads), 2), 2, np.int32)
        return _table(quads, LightMap(self._light, np.zeros(len(quads), np.int32), counts), np.ones(3))


def in_parts(shade: Shade) -> Shade:
    """The same function, called for `PART` rays at a time, whose arrays stay in the processor's cache."""

    def parts(surface: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        colour: np.ndarray = np.empty((3, len(x)), np.float32)
        depth: np.ndarray = np.empty(len(x), np.float32)
        for start in range(0, len(x), PART):
            part = slice(start, start + PART)
            colour[:, part], depth[part] = shade(surface[part].astype(np.intp), x[part], y[part])
        return colour, depth

    return parts


def _opening(door: Door) -> np.ndarray:
    """Corners [4, 3] of an opening, in the middle of its wall."""
    corners = np.zeros((4, 3))
    across = 2 if door.axis == 0 else 0
    corners[:, [0, 2]] = door.place
    corners[:, across] += np.array([-1, 1, 1, -1]) * (DOOR_WIDTH / 2 + 0.02)
    corners[:, 1] = (0, 0, DOOR_HEIGHT, DOOR_HEIGHT)
    return corners


def _table(quads: list[Quad], light: LightMap, lamp: np.ndarray) -> QuadTable:
    rows = np.broadcast_to(lamp.astype(np.float32), (len(quads), 3))
    return QuadTable(stack_quads(quads), light.start, light.counts, rows)


def _ball_table(balls: list[Ball], lamp: np.ndarray, place: np.ndarray) -> BallTable:
    names, count = library().names, len(balls)
    return BallTable(
        np.array([ball.centre for ball in balls], np.float32).reshape(-1, 3),
        np.array([ball.radius for ball in balls], np.float32),
        np.array([names[ball.material.texture] for ball in balls], np.int32),
        np.array([mixed_colours(ball.material) for ball in balls], np.float32).reshape(-1, 9),
        np.array([ball.material.glow for ball in balls], np.float32),
        np.broadcast_to(lamp.astype(np.float32), (count, 3)),
        np.broadcast_to(place.astype(np.float32), (count, 3)),
    )


class _Scene:
    """Tables of several rooms and doors, joined."""

    def __init__(self, key: tuple[object, ...], tables: list[QuadTable], balls: list[BallTable]) -> None:
        self.key = key
        self.sizes = np.array([len(table.quads) for table in tables])
        self.ball_sizes = np.array([len(each) for each in balls])
        quads = Quads(*(np.concatenate([getattr(t.quads, f.name) for t in tables]) for f in fields(Quads)))
        names = ("light_start", "light_counts", "lamp")
        self.table = QuadTable(quads, *(np.concatenate([getattr(t, name) for t in tables]) for name in names))
        self.balls = BallTable(*(np.concatenate([getattr(t, f.name) for t in balls]) for f in fields(BallTable)))
        normals = np.cross(quads.v, quads.u)
        self.normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _both(window: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The part that two windows [..., 4] have in common; empty windows stay empty."""
    found = np.maximum(window, other)
    found[..., 1::2] = np.minimum(window[..., 1::2], other[..., 1::2])
    return found


def _either(window: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The smallest window [4] around two."""
    found = np.minimum(window, other)
    found[1::2] = np.maximum(window[1::2], other[1::2])
    return found
