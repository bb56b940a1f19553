# SPDX-License-Identifier: Apache-2.0
"""A player of poses that are all known before the stream begins."""

from __future__ import annotations

import torch
from torch import Tensor


class TrackPlayer:
    """Plays a track of `poses` [frames, joints, 3]; the last is held."""

    def __init__(self, poses: Tensor) -> None:
        self._poses, self._frame = poses, 0

    def next(self, frames: int) -> Tensor:
        """Poses [frames, joints, 3] of the next video frames."""
        picks = torch.arange(self._frame, self._frame + frames).clamp_max(len(self._poses) - 1)
        self._frame += frames
        return self._poses[picks]

    def truth(self, size: int) -> None:
        """None: a track of poses has no person and no room."""
