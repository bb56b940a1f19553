# SPDX-License-Identifier: Apache-2.0
"""Batches of latent clips with their controls: what all three stages of AAPT draw from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

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


class LatentClips:
    """A set of clips in latent space.

    Args:
        latents: [clips, C, 1 + n, h, w].
        points: [clips, 1 + 4 n, J, 3], the pose of every video frame.
        model: whose controls and window the batches are for.
        persons: int [clips], who is in each clip; None means that everybody is in one clip only.
        drop_first_pose: share of rows whose first control does not say the pose of the image, as some users will not.

    Raises:
        ValueError: no clips, clips that do not fit each other, a model without a pose control.
    """

    def __init__(
        self,
        latents: Tensor,
        points: Tensor,
        model: GeneratorConfig,
        persons: Tensor | None = None,
        drop_first_pose: float = 0.1,
    ) -> None:
        clips, _, frames = latents.shape[:3]
        require(clips > 0, "latents", "at least one clip", "an empty set")
        require(len(points) == clips, "points", f"{clips} clips", len(points))
        expected = 1 + 4 * (frames - 1)
        require(points.shape[1] == expected, "points", f"{expected} video frames", points.shape[1])
        require(model.control is not None, "model.control", "a pose control", None)
        assert model.control is not None
        persons = torch.arange(clips) if persons is None else persons
        require(len(persons) == clips, "persons", f"{clips} clips", len(persons))
        self.latents, self.points, self.frames = latents, points, frames - 1
        self._person, counts = persons.unique(return_inverse=True, return_counts=True)[1:]
        self._clips_of_person = counts[self._person]  # of the person of each clip
        self._control: ControlConfig = model.control
        self._grid, self._drop_first_pose = model.grid, drop_first_pose

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
        return Batch(latents[:, :, 1:][:, :, span], latents[:, :, :-1][:, :, span], self._controls(picks)[:, :, span])

    def chain(self, rows: int, clips: int) -> Batch:
        """Rows of `clips` whole clips of one person each, one after the other: longer than any clip there is.

        Between two clips the person jumps to another pose. Raises ValueError if nobody is in that many clips.
        """
        most = int(self._clips_of_person.max())
        require(clips <= most, "clips", f"at most {most}, the most clips of a person", clips)
        enough = (self._clips_of_person >= clips).nonzero()[:, 0]
        first = enough[torch.randint(len(enough), (rows,))]
        picks = torch.stack([self._with_others(int(clip), clips) for clip in first])
        latents, points = self.latents[picks], self.points[picks]  # [B, clips, ...]
        clean = latents[:, :, :, 1:].transpose(1, 2).flatten(2, 3)
        image = latents[:, 0, :, :1]
        joined = torch.cat([points[:, 0, :1], points[:, :, 1:].flatten(1, 2)], dim=1)
        return Batch(clean, torch.cat([image, clean[:, :, :-1]], dim=2), self._as_controls(joined))

    def _with_others(self, clip: int, clips: int) -> Tensor:
        """Clip number `clip` and others of its person, `clips` in all."""
        same = (self._person == self._person[clip]).nonzero()[:, 0]
        others = same[same != clip]
        return torch.cat([torch.tensor([clip]), others[torch.randperm(len(others))[: clips - 1]]])

    def _controls(self, picks: Tensor) -> Tensor:
        return self._as_controls(self.points[picks])

    def _as_controls(self, points: Tensor) -> Tensor:
        """Points [B, 1 + 4 n, J, 3] -> controls [B, step_channels, n, h, w]."""
        controls = clip_controls(points, self._control, self._grid)
        if self._control.with_previous:
            dropped = torch.rand(len(points)) < self._drop_first_pose
            controls[dropped, controls.shape[1] // 2 :, 0] = 0
        return controls


def disturb_recycled(batch: Batch, most: float) -> Batch:
    """The batch with noise on its recycled frames after the first, of a level 0..`most` drawn for each row."""
    if most == 0:
        return batch
    recycled = batch.recycled.clone()
    noise_level = most * torch.rand(len(recycled), 1, 1, 1, 1)
    recycled[:, :, 1:] += noise_level * torch.randn_like(recycled[:, :, 1:])
    return dataclasses.replace(batch, recycled=recycled)
