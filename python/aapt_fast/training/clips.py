# SPDX-License-Identifier: Apache-2.0
"""Batches of latent clips with their controls, for the three stages of AAPT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import ControlConfig, GeneratorConfig
from aapt_fast.streaming.controls import clip_controls


@dataclass(frozen=True)
class Batch:
    """Spans of F consecutive frames, one per row."""

    clean: Tensor  # [B, C, F, h, w]
    recycled: Tensor  # [B, C, F, h, w], the true frame before each
    control: Tensor  # [B, step_channels, F, h, w]

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of what `change` makes of each tensor [B, ...]."""
        return Batch(change(self.clean), change(self.recycled), change(self.control))

    def cut(self, span: slice) -> Batch:
        """The frames of `span` of every row."""
        return self.each(lambda frames: frames[:, :, span])


class Clips(Protocol):
    """A source of batches for the three stages."""

    @property
    def frames(self) -> int:
        """Latent frames of a clip."""

    def require_frames(self, frames: int, least: int = 1) -> None:
        """Raise ValueError unless spans of `frames` frames exist and are at least `least` long."""

    def sample(self, rows: int, frames: int, share_at_start: float) -> Batch:
        """Rows of `frames` consecutive frames; a share of the batches begins where clips begin."""

    def chain(self, rows: int, clips: int) -> Batch:
        """Rows as long as `clips` clips together."""


def require_control(model: GeneratorConfig) -> ControlConfig:
    """The control of `model`; raises ValueError if it has none."""
    require(model.control is not None, "model.control", "a control", None)
    assert model.control is not None
    return model.control


class LatentClips:
    """A set of clips in latent space.

    Args:
        latents: [clips, C, 1 + n, h, w].
        controls: [clips, 1 + 4 n, J, 3] or [clips, 1 + 4 n, C, h, w], the control of every video frame.
        model: the configuration for whose controls and window the batches are.
        scenes: int [clips], as `World.scene` numbers them; None means that every clip has a scene of its own.
        drop_first_control: share of rows whose first control does not describe the image, as some users do not.

    Raises:
        ValueError: no clips, clips that do not fit each other, a model without a control.
    """

    def __init__(
        self,
        latents: Tensor,
        controls: Tensor,
        model: GeneratorConfig,
        scenes: Tensor | None = None,
        drop_first_control: float = 0.1,
    ) -> None:
        clips, _, frames = latents.shape[:3]
        require(clips > 0, "latents", "at least one clip", "an empty set")
        require(len(controls) == clips, "controls", f"{clips} clips", len(controls))
        expected = 1 + 4 * (frames - 1)
        require(controls.shape[1] == expected, "controls", f"{expected} video frames", controls.shape[1])
        self._control = require_control(model)
        scenes = torch.arange(clips) if scenes is None else scenes
        require(len(scenes) == clips, "scenes", f"{clips} clips", len(scenes))
        self.latents, self.controls, self.frames = latents, controls, frames - 1
        self._scene, counts = scenes.unique(return_inverse=True, return_counts=True)[1:]
        self._clips_of_scene = counts[self._scene]  # of the scene of each clip
        self._grid, self._drop_first_control = model.grid, drop_first_control

    def __len__(self) -> int:
        return len(self.latents)

    def require_frames(self, frames: int, least: int = 1) -> None:
        """Raise ValueError unless spans of `frames` frames exist and are at least `least` long."""
        require(frames <= self.frames, "clip_frames", f"at most {self.frames}, the frames of a clip", frames)
        require(frames >= least, "clip_frames", f"at least {least} (window and sink)", frames)

    def sample(self, rows: int, frames: int, share_at_start: float) -> Batch:
        """Rows from random clips, all cut at one random place; `share_at_start` of the batches at the clips' start."""
        picks = torch.randint(len(self), (rows,))
        at_start = bool(torch.rand(()) < share_at_start)
        first = 0 if at_start else int(torch.randint(self.frames - frames + 1, ()))
        span = slice(first, first + frames)
        latents = self.latents[picks]
        control = self._step_controls(self.controls[picks])
        return Batch(latents[:, :, 1:], latents[:, :, :-1], control).cut(span)

    def chain(self, rows: int, clips: int) -> Batch:
        """Rows of `clips` whole clips of one scene each, one after the other: longer than any clip there is.

        Between two clips the control jumps. Raises ValueError if no scene has that many clips.
        """
        most = int(self._clips_of_scene.max())
        require(clips <= most, "clips", f"at most {most}, the most clips of a scene", clips)
        enough = (self._clips_of_scene >= clips).nonzero()[:, 0]
        first = enough[torch.randint(len(enough), (rows,))]
        picks = torch.stack([self._with_others(int(clip), clips) for clip in first])
        latents, controls = self.latents[picks], self.controls[picks]  # [B, clips, ...]
        clean = latents[:, :, :, 1:].transpose(1, 2).flatten(2, 3)
        image = latents[:, 0, :, :1]
        joined = torch.cat([controls[:, 0, :1], controls[:, :, 1:].flatten(1, 2)], dim=1)
        return Batch(clean, torch.cat([image, clean[:, :, :-1]], dim=2), self._step_controls(joined))

    def _with_others(self, clip: int, clips: int) -> Tensor:
        """Numbers [clips] of clip number `clip` and of others of its scene."""
        same = (self._scene == self._scene[clip]).nonzero()[:, 0]
        others = same[same != clip]
        return torch.cat([torch.tensor([clip]), others[torch.randperm(len(others))[: clips - 1]]])

    def _step_controls(self, controls: Tensor) -> Tensor:
        """Controls of video frames [B, 1 + 4 n, ...] -> those of steps [B, step_channels, n, h, w]."""
        steps = clip_controls(controls, self._control, self._grid)
        if self._control.with_previous:
            dropped = torch.rand(len(steps)) < self._drop_first_control
            steps[dropped, steps.shape[1] // 2 :, 0] = 0
        return steps


def disturb_recycled(batch: Batch, most: float) -> Batch:
    """The batch with noise on its recycled frames after the first, of a level 0..`most` drawn for each row."""
    if most == 0:
        return batch
    recycled = batch.recycled.clone()
    noise_level = most * torch.rand(len(recycled), 1, 1, 1, 1)
    recycled[:, :, 1:] += noise_level * torch.randn_like(recycled[:, :, 1:])
    return dataclasses.replace(batch, recycled=recycled)
