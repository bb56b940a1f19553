# SPDX-License-Identifier: Apache-2.0
"""Cosines and sines of 3D rotary positions (time, row, column), computed in float64 on the host.

The D / 2 pairs of a head are split over the three axes. Pair i of the n pairs of an axis turns by

    angle = position * theta ** (-i / n)

The split is Wan's: D // 6 pairs for rows, as many for columns, the rest for time (22, 21, 21 at D = 128).

* Time: position = frame index * `temporal_interval`, a fixed interval, so that a stream has no end. float64 keeps the
  angle of frame 1,000,000 exact to 1e-9; float32 would be off by 0.03.
* Space: integer rows and columns (Wan), or stretched: with `spatial_extent` = (H0, W0), row r of a grid of h rows
  sits at r * H0 / h, so that every resolution covers the range of the one that was trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aapt_fast.errors import require


def rope_split(head_dim: int) -> tuple[int, int, int]:
    """Wan's number of pairs for (time, rows, columns); their sum is head_dim / 2."""
    return head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6


def axis_angles(positions: Tensor, pairs: int, theta: float) -> Tensor:
    """Angles of one axis: positions float64 [n] -> float64 [n, pairs]."""
    exponents = torch.arange(pairs, dtype=torch.float64) / max(pairs, 1)
    return positions[:, None] * theta**-exponents


def spatial_angles(
    grid: tuple[int, int], pairs: Sequence[int], theta: float, spatial_extent: tuple[float, float]
) -> Tensor:
    """Angles of the row and column axes for a grid of (h, w) tokens, row-major: float64 [h * w, sum(pairs)]."""
    rows, columns = (
        axis_angles(torch.arange(size, dtype=torch.float64) * (extent / size), count, theta)
        for size, extent, count in zip(grid, spatial_extent, pairs, strict=True)
    )
    return torch.cat((rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)), -1)


class FrameRope:
    """Tables for one grid of tokens. The spatial part is computed once, each call adds the time of its frames.

    Args:
        grid: (h, w), tokens per frame down and across.
        head_dim: D, even.
        theta: base of the frequencies.
        spatial_extent: (H0, W0), the range of positions to stretch the grid over; None means integer positions.
        temporal_interval: distance between two frames.
        device: where the tables end up.

    Raises:
        ValueError: odd head_dim, or a size that is not positive.
    """

    space: Tensor
    """Cos and sin of the row and column axes, the last pairs of a head: float32 [2, h * w, pairs] on `device`."""

    def __init__(
        self,
        grid: tuple[int, int],
        head_dim: int,
        *,
        theta: float = 10000.0,
        spatial_extent: tuple[float, float] | None = None,
        temporal_interval: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        require(len(grid) == 2 and min(grid) > 0, "grid", "two positive sizes (h, w)", grid)
        require(head_dim > 0 and head_dim % 2 == 0, "head_dim", "a positive even number", head_dim)
        time, *space = rope_split(head_dim)
        require(theta > 0, "theta", "a positive number", theta)
        extent = spatial_extent or grid
        require(len(extent) == 2 and min(extent) > 0, "spatial_extent", "two positive sizes (H0, W0)", spatial_extent)
        self._pairs, self._theta, self._interval = time, theta, temporal_interval
        angles = spatial_angles(grid, space, theta, extent)
        self.space = torch.stack((angles.cos(), angles.sin())).float().to(device)

    def __call__(self, frame_index: float | Sequence[float]) -> tuple[Tensor, Tensor]:
        """cos and sin for one frame index, or for F of them one after the other: float32 [F * h * w, D / 2] each."""
        time = self.time(frame_index).to(self.space.device)
        frames, tokens = time.shape[1], self.space.shape[1]
        parts = (time[:, :, None].expand(-1, -1, tokens, -1), self.space[:, None].expand(-1, frames, -1, -1))
        cos, sin = torch.cat(parts, -1).flatten(1, 2)
        return cos, sin

    def time(self, frame_index: float | Sequence[float]) -> Tensor:
        """Cos and sin of the time axis for one frame index or F of them: float32 [2, F, pairs] on the host.

        The first pairs of a head turn by them, in all tokens of a frame alike.
        """
        positions = torch.tensor(frame_index, dtype=torch.float64).view(-1) * self._interval
        angles = axis_angles(positions, self._pairs, self._theta)
        return torch.stack((angles.cos(), angles.sin())).float()
