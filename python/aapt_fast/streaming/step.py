# SPDX-License-Identifier: Apache-2.0
"""The step of B sessions: their next frames in one evaluation of the sampler. A session alone is a batch of one.

    host      per session: pages and rotations of its next block -> the tensors of the caches
              noise of (seed, frame), recycled frames, controls -> the step's inputs
    device    inputs and caches -> frames       launched, or replayed from a CUDA graph
    device    per session: frames -> its decoder -> video

A replayed step runs the same operators on the same tensors, so it gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from aapt_fast.errors import require_shape
from aapt_fast.models.sampling import Sampler, noise_numbers
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import philox_normal
from aapt_fast.streaming.boundary import ordinary, wait_for
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.controls import model_entries
from aapt_fast.streaming.graph import Recording, record
from aapt_fast.streaming.run import Run


class Step:
    """Takes the steps of B runs; holds the inputs, the caches and, maybe, the recording.

    Args:
        model: of all runs.
        sampler: likewise.
        runs: one per session, at least one; in one pool. All or none are at their first step when a step is taken, if
            the sampler begins differently.
        cuda_graph: record the step now, with the kernels that are on now; it takes a few evaluations. The first step of
            a run is never replayed.

    Raises:
        ValueError: runs that do not fit together.
        PoolExhausted: pages of the pool were taken without a reservation.
        RuntimeError: recording failed.
    """

    def __init__(self, model: StreamModel, sampler: Sampler, runs: Sequence[Run], cuda_graph: bool = False) -> None:
        self.model, self.sampler, self.runs = model, sampler, list(runs)
        self._frames = sampler.rule(model.generator).frames
        self.caches = [PagedCache(rows) for rows in zip(*(run.rows for run in runs), strict=True)]
        rows, channels, control = len(self.runs), model.config.latent_channels, model.control

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(*sizes, *model.grid, dtype=torch.float32, device=model.device)

        self._noise = zeros(sampler.draws, rows, channels, self._frames)
        self._recycled = zeros(rows, channels, 1) if model.generator.needs_image else None
        self._control = None if control is None else zeros(rows, control.step_channels, 1)
        self._context = sampler.join([run.context for run in self.runs])
        self._recording: Recording | None = None
        if cuda_graph:
            self._record()

    def prepare(self, controls: Sequence[object]) -> list[Tensor | None]:
        """Check the controls of a step, one per run, and take its pages; until `take`, no step has begun.

        The result is for `take`: float32 [entries * entry_channels, h, w], or None, per run. Raises TypeError and
        ValueError for a bad control, PoolExhausted if pages of the pool were taken without a reservation.
        """
        entries = [model_entries(control, self.model) for control in controls]
        for cache in self.caches:
            cache.prepare(self._frames)
        return entries

    def take(self, entries: Sequence[Tensor | None], on_stage: Callable[[str], None] | None = None) -> list[Tensor]:
        """The next video of every run, uint8 [F, H, W, 3], complete.

        `entries` are from `prepare`, float32 [entries * entry_channels, h, w] or None. `on_stage` is called with
        "generator" before the frames are computed, and with "decode" after.
        """
        first = any(run.steps == 0 for run in self.runs)
        self._write_inputs(entries)
        if on_stage is not None:
            on_stage("generator")
        if self._recording is None or first:
            with self.model.autocast():
                frames = self._sample(first)
        else:
            frames = self._recording.replay().clone()
            for cache in self.caches:
                cache.finish()
        if on_stage is not None:
            on_stage("decode")
        videos = [ordinary(run.decode(self.model, made)) for run, made in zip(self.runs, frames.split(1), strict=True)]
        wait_for(videos[-1])
        for run, made, control in zip(self.runs, frames.split(1), entries, strict=True):
            run.frame, run.control, run.steps = made, control, run.steps + 1
        return videos

    def _sample(self, first: bool) -> Tensor:
        """The frames of the sampler, float32 [B, C, n, h, w]. Raises TypeError and ValueError for others."""
        inputs = (self._noise, self._recycled, self._control, self._context, self.caches)
        frames = self.sampler.sample(self.model.generator, *inputs, first)
        shape = (len(self.runs), self.model.config.latent_channels, self._frames, *self.model.grid)
        require_shape(f"frames of {type(self.sampler).__name__}.sample", frames, *shape)
        return frames

    def _write_inputs(self, entries: Sequence[Tensor | None]) -> None:
        draws, device = self.sampler.draws, self.model.device
        numbers = torch.stack(
            [noise_numbers(run.steps * self._frames + 1, self._frames, draws) for run in self.runs], 1
        )
        seeds = torch.tensor([run.start.seed for run in self.runs])[None, :, None].expand(numbers.shape)
        shape = (self.model.config.latent_channels, *self.model.grid)
        noise = philox_normal(seeds.flatten().to(device), numbers.flatten().to(device), shape)
        self._noise.copy_(noise.unflatten(0, numbers.shape).transpose(2, 3))
        config = self.model.control
        for row, (run, own) in enumerate(zip(self.runs, entries, strict=True)):
            if self._recycled is not None and run.frame is not None:
                self._recycled[row].copy_(run.frame[0])
            if config is not None and own is not None and self._control is not None:
                before = run.control if config.with_previous else None
                self._control[row, :, 0].copy_(own if before is None else torch.cat([own, before]))

    def _record(self) -> None:
        for cache in self.caches:
            cache.prepare(self._frames)
            cache.recording = True
        try:
            with self.model.autocast():
                self._recording = record(partial(self._sample, False), self.model.device)
        finally:
            for cache in self.caches:
                cache.recording = False
