# SPDX-License-Identifier: Apache-2.0
"""What frames see in models that make several frames at a time, and the differentiable cache for them.

Frames count from 1. A block is `frames` consecutive frames, made together. All tokens of a block whose newest frame
is e attend to

    sink (frames 1 .. s) | frames e - (w - s) + 1 .. e        s = sink, w = window

in both directions, each frame once. So `window` counts every frame that is seen: sink, past and the block itself.
Queries and keys are rotated at their own absolute index, those of the sink too. This is the rule of Self-Forcing
(arXiv 2506.08009) and its descendants; `aapt_fast.ops.cache` has the one of AAPT.

A block is evaluated several times, at falling noise levels and at last at the level of a clean context. `attend` may
be repeated for that: what it leaves behind is what the last evaluation computed, and only `advance` moves on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from aapt_fast.errors import require, require_type
from aapt_fast.ops.cache import FunctionalCache, KeysAndValues, attention


@dataclass(frozen=True)
class Blocks:
    """Which frames are made together and what they see.

    frames: of a block. window: frames that are seen in all, the block and the sink included; None for every past
    frame. sink: first frames that never leave the window.

    Raises ValueError unless frames >= 1, sink >= 0 and the window holds the sink and a block; TypeError for no int.
    """

    frames: int = 3
    window: int | None = 21
    sink: int = 0

    def __post_init__(self) -> None:
        require_type("frames", self.frames, int)
        require_type("sink", self.sink, int)
        require(self.frames >= 1, "frames", "at least 1 per block", self.frames)
        require(self.sink >= 0, "sink", "at least 0 frames", self.sink)
        if self.window is not None:
            require_type("window", self.window, int)
            least = self.sink + self.frames
            require(self.window >= least, "window", f"at least {least} frames: the sink and a block", self.window)

    def seen(self, newest: int) -> list[int]:
        """The frames that a block ending in frame `newest` attends to, ascending."""
        if self.window is None or newest <= self.window:
            return list(range(1, newest + 1))
        return [*range(1, self.sink + 1), *range(newest - (self.window - self.sink) + 1, newest + 1)]


class BlockCache(FunctionalCache):
    """`ops.Cache` for blocks of frames: functional and differentiable, for training and whole clips.

    A call of more frames than a block has is cut into blocks, from its first frame on; the last may be shorter.

    Args:
        layers: number of layers.
        blocks: what a frame sees.
        rope: gives (cos, sin), float32 [N, D / 2] each, for a frame index; for example a `FrameRope`.
        eps: of the RMSNorm.

    Raises:
        ValueError: layers < 1.
    """

    def __init__(
        self,
        layers: int,
        blocks: Blocks,
        rope: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
        *,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(layers, rope, eps)
        self.blocks = blocks
        self._past: list[dict[int, KeysAndValues]] = [{} for _ in range(layers)]  # by frame, keys rotated

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `Cache.attend`: q [B, F, N, H, D] -> the same shape. Raises ValueError for a wrong layer or shape."""
        rotated_q, first = self._rotate(layer, q, k, v, q_weight, k_weight), self.next_frame

        known = self._past[layer] | dict(enumerate(self._new[layer], start=first))
        outputs = []
        for queries in rotated_q.split(self.blocks.frames, 1):
            newest = first + queries.shape[1] - 1
            seen = [known[frame] for frame in self.blocks.seen(newest)]
            outputs.append(attention(queries.flatten(1, 2), seen).view(queries.shape))
            first = newest + 1
        return torch.cat(outputs, 1)

    def advance(self, frames: int) -> None:
        """See `Cache.advance`. Raises RuntimeError unless every layer has attended with this many frames."""
        self._require_attended(frames)
        seen = set(self.blocks.seen(self.next_frame + frames))  # by the smallest block that can come next
        for layer, new in enumerate(self._new):
            known = self._past[layer] | dict(enumerate(new, start=self.next_frame))
            self._past[layer] = {frame: pair for frame, pair in known.items() if frame in seen}
            self._new[layer] = []
        self._tables = {}
        self.next_frame += frames
