# SPDX-License-Identifier: Apache-2.0
"""The step of B sessions: their next frames in one evaluation of the sampler. A session alone is a batch of one.

    host      per session: seed, frame, control, pages and rotations of its next block -> one copy to the device
    device    that copy, recycled frames -> the step's inputs and the tensors of the caches; limb maps are drawn
    device    noise, inputs, caches -> frames   launched, or replayed from a CUDA graph
    device    per session: frames -> its decoder -> video

A replayed step runs the same operators on the same tensors, so it gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from aapt_fast.errors import require_shape
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.sampling import Sampler, noise_numbers
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import philox_normal
from aapt_fast.streaming.boundary import ordinary, wait_for
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.controls import entry_maps, model_values
from aapt_fast.streaming.graph import GraphMemory, Recording, record
from aapt_fast.streaming.run import Run
from aapt_fast.streaming.uploads import to_device


@dataclass(frozen=True)
class Computed:
    """Frames of a step that the runs have not taken over yet."""

    frames: Sequence[Tensor]  # per run, float32 [1, C, n, h, w]
    controls: Sequence[Tensor | None]  # per run, float32 [entries * entry_channels, h, w]
    first: Sequence[bool]  # per run, whether this is its first step


class Step:
    """Takes the steps of B runs; holds the inputs, the caches and, maybe, the recording.

    Args:
        model: of all runs.
        sampler: likewise.
        runs: one per session, at least one; in one pool. All or none are at their first step when a step is taken, if
            the sampler begins differently.
        memory: record the step now, in this memory, with the kernels that are on now; it takes a few evaluations. The
            first step of a run is never replayed. The recording lasts until one of the runs is released.

    Raises:
        ValueError: runs that do not fit together.
        PoolExhausted: pages of the pool were taken without a reservation.
        RuntimeError: recording failed.
    """

    def __init__(
        self, model: StreamModel, sampler: Sampler, runs: Sequence[Run], memory: GraphMemory | None = None
    ) -> None:
        self.model, self.sampler, self.runs = model, sampler, list(runs)
        self._frames = sampler.rule(model.generator).frames
        self.caches = [PagedCache(rows) for rows in zip(*(run.rows for run in runs), strict=True)]
        for cache in self.caches:
            cache.moves_rows = False  # `adopt` does
        rows, channels, control = len(self.runs), model.config.latent_channels, model.control

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(*sizes, *model.grid, dtype=torch.float32, device=model.device)

        numbers = (2, sampler.draws, rows, self._frames)
        self._numbers = torch.zeros(numbers, dtype=torch.int64, device=model.device)  # of noises: seed, Philox step
        self._recycled = zeros(rows, channels, 1) if model.generator.needs_image else None
        self._control = None if control is None else zeros(rows, control.step_channels, 1)
        self._context = sampler.join([run.context for run in self.runs])
        self._recording = None if memory is None else self._record(memory)

    def prepare(self, controls: Sequence[object]) -> list[Tensor]:
        """Check the controls of a step, one per run, and take its pages; until `take`, no step has begun.

        The result is for `take`: the values of the controls, float32 [entries, J, 3] or [entries, C, h, w] per run;
        nothing for a model without control. Raises TypeError and ValueError for a bad control, PoolExhausted if pages
        of the pool were taken without a reservation.
        """
        checked = [model_values(control, self.model) for control in controls]
        for cache in self.caches:
            cache.plan(self._frames)
        return [values for values in checked if values is not None]

    def take(self, controls: Sequence[Tensor], on_stage: Callable[[str], None] | None = None) -> list[Tensor]:
        """The next video of every run, uint8 [F, H, W, 3], complete.

        `controls` are from `prepare`, float32 [entries, J, 3] or [entries, C, h, w] per run. `on_stage` is called with
        "generator" before the frames are computed, and with "decode" after.
        """
        computed = self.compute(controls, on_stage)
        videos = self.decode(computed, on_stage)
        self.adopt(computed)
        self.remember()
        return videos

    def compute(self, controls: Sequence[Tensor], on_stage: Callable[[str], None] | None = None) -> Computed:
        """Compute the next frames of every run, float32 [1, C, n, h, w] each: the first part of `take`.

        No run has changed: `adopt` lets them continue from these frames, `drop` takes them back.
        """
        first = [run.steps == 0 for run in self.runs]
        maps = self._write_inputs(controls)
        if on_stage is not None:
            on_stage("generator")
        if self._recording is None or any(first):
            frames = self._compute(any(first))
        else:
            frames = self._recording.replay().clone()
        return Computed(frames.split(1), maps, first)

    def adopt(self, computed: Computed) -> None:
        """Let every run continue from its computed frames."""
        for cache in self.caches:
            cache.finish()
        for run, frames, control in zip(self.runs, computed.frames, computed.controls, strict=True):
            run.frame, run.control, run.steps = frames, control, run.steps + 1
            if run.past is not None:
                run.past.add(run.steps, frames, control)

    def remember(self) -> None:
        """Keep the state of every run after an adopted and decoded step, for `StreamSession.rewind`."""
        for run in self.runs:
            run.remember()

    def drop(self) -> None:
        """Take back a step that is prepared or computed, and not adopted."""
        for cache in self.caches:
            cache.drop()

    def decode(self, computed: Computed, on_stage: Callable[[str], None] | None = None) -> list[Tensor]:
        """Decode computed frames, in the order of the steps. Returns the videos, uint8 [F, H, W, 3], complete."""
        if on_stage is not None:
            on_stage("decode")
        parts = zip(self.runs, computed.frames, computed.first, strict=True)
        videos = [ordinary(run.decode(self.model, frames, first)) for run, frames, first in parts]
        wait_for(videos[-1])
        return videos

    def _compute(self, first: bool) -> Tensor:
        """Noise, and the frames of the sampler, float32 [B, C, n, h, w]. Raises TypeError and ValueError for others."""
        channels, grid = self.model.config.latent_channels, self.model.grid
        noise = draw_noise(self._numbers, channels, grid)
        inputs = (noise, self._recycled, self._control, self._context, self.caches)
        with self.model.autocast():
            frames = self.sampler.sample(self.model.generator, *inputs, first)
        shape = (len(self.runs), channels, self._frames, *grid)
        require_shape(f"frames of {type(self.sampler).__name__}.sample", frames, *shape)
        return frames

    def _write_inputs(self, controls: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Give the device everything that differs from step to step.

        Returns the control of each run, float32 [entries * entry_channels, h, w], or None for a model without.
        """
        config, runs = self.model.control, self.runs
        seeds, steps = [run.start.seed for run in runs], [run.steps + 1 for run in runs]
        numbers = noise_inputs(seeds, steps, self._frames, self.sampler.draws)
        on_host = [[numbers], controls, *(cache.inputs() for cache in self.caches)]
        [numbers], controls, *of_caches = to_device(on_host, self.model.device)
        self._numbers.copy_(numbers)
        for cache, inputs in zip(self.caches, of_caches, strict=True):
            cache.write(inputs)
        if self._recycled is not None:
            for recycled, run in zip(self._recycled, self.runs, strict=True):
                if run.frame is not None:
                    recycled.copy_(run.frame[0])
        if config is not None and self._control is not None:
            maps = entry_maps(torch.stack(controls), config, self.model.grid).flatten(1, 2)
            for shown, own, run in zip(self._control, maps, self.runs, strict=True):
                shown[:, 0].copy_(shown_control(config, own, run.control))
            return maps.unbind()
        return [None] * len(self.runs)

    def _record(self, memory: GraphMemory) -> Recording:
        for cache in self.caches:
            cache.prepare(self._frames)
            cache.recording = True
        try:
            recording = record(partial(self._compute, False), memory)
        finally:
            for cache in self.caches:
                cache.recording = False
        for run in self.runs:
            run.recordings.add(recording)
        return recording


def noise_inputs(seeds: Sequence[int], steps: Sequence[int], frames: int, draws: int) -> Tensor:
    """Seeds and Philox steps of the noises of B runs' steps, counted from 1: int64 [2, draws, B, frames]."""
    numbers = torch.stack([noise_numbers((step - 1) * frames + 1, frames, draws) for step in steps], 1)
    return torch.stack((torch.tensor(seeds)[:, None].expand(numbers.shape), numbers))


def draw_noise(numbers: Tensor, channels: int, grid: tuple[int, int]) -> Tensor:
    """Normal noise, float32 [draws, B, C, n, h, w], of the numbers [2, draws, B, n] of `noise_inputs`."""
    seeds, steps = numbers.flatten(1)
    noise = philox_normal(seeds, steps, (channels, *grid)).unflatten(0, numbers.shape[1:])
    return noise.transpose(2, 3).contiguous()


def shown_control(config: ControlConfig, own: Tensor, before: Tensor | None) -> Tensor:
    """Control [step_channels, h, w] that the generator sees in a step: its `own` entries, and those of the step before.

    Both are [entries * entry_channels, h, w]; those before are left out where the model does not take them.
    """
    return torch.cat((own, before)) if config.with_previous and before is not None else own
