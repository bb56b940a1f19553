# SPDX-License-Identifier: Apache-2.0
"""Frames and controls of the steps that a run still sees, from which their keys and values can be computed again.

A latent frame and the control maps of a step are small beside its keys and values: 0.3 MB against 0.5 GiB per frame of
`aapt-8b` at 736x416. They are the tensors that the steps made anyway; keeping them costs no operator.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from aapt_fast.ops.window import WindowRule

Made = tuple[Tensor | None, Tensor | None]
"""Frames of a step, float32 [1, C, n, h, w], and its control, float32 [entries * entry_channels, h, w]."""


class PastSteps:
    """What the steps made that the next step sees, and the step before each, which they continued from.

    Args:
        rule: frames that a step makes and sees.
        image_frames: frames in the caches before those of the first step: 1 for a model that sees the image there.
        history: steps that the run can go back by, and that are kept so much longer.
        made: frames and control per step; 0 stands for the image.
    """

    def __init__(self, rule: WindowRule, image_frames: int, history: int, made: Mapping[int, Made]) -> None:
        self.rule, self.image_frames, self.history, self.made = rule, image_frames, history, dict(made)

    def add(self, step: int, frames: Tensor, control: Tensor | None) -> None:
        """Keep frames [1, C, n, h, w] and control [entries * entry_channels, h, w] of a step; forget unseen ones."""
        self.made[step] = (frames, control)
        earliest = max(step - self.history, 0)
        seen = {*self.seen(earliest), *range(earliest, step + 1)}
        kept = {0, *seen, *(each - 1 for each in seen)}
        self.made = {each: made for each, made in self.made.items() if each in kept}

    def seen(self, steps: int) -> list[int]:
        """Steps whose frames the one after `steps` steps sees, ascending."""
        newest = self.first_frame(steps + 2) - 1
        past = (frame for frame, _ in self.rule.seen(newest) if self.image_frames < frame < self.first_frame(steps + 1))
        return sorted({1 + (frame - self.image_frames - 1) // self.rule.frames for frame in past})

    def first_frame(self, step: int) -> int:
        """Number of the first frame of a step in the caches."""
        return self.image_frames + (step - 1) * self.rule.frames + 1

    def rewind(self, to_step: int) -> None:
        """Forget the steps after `to_step`."""
        self.made = {step: made for step, made in self.made.items() if step <= to_step}

    def fork(self) -> PastSteps:
        """The same steps for another run: nobody writes to their tensors."""
        return PastSteps(self.rule, self.image_frames, self.history, self.made)
