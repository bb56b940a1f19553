# SPDX-License-Identifier: Apache-2.0
"""Several recorded sessions whose step is one recording: `step_together` without launches one by one.

    host    per session: pages and rotations of its next frame -> its tables
            noise, recycled frames, controls -> inputs
    graph   tables of all sessions, joined; inputs -> a frame per session
    graph   per session: its frame -> video frames (the decoder that it has anyway)

The tables are those that the sessions' own recordings read, so a session may take steps alone in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aapt_fast.models.aapt.sampling import sample_frame, timesteps
from aapt_fast.streaming.boundary import computing
from aapt_fast.streaming.cache_batch import CacheBatch
from aapt_fast.streaming.fixed_cache import FixedPagedCache
from aapt_fast.streaming.recording import Recording, record
from aapt_fast.streaming.runner import RecordedFrameSampler
from aapt_fast.streaming.samplers import noise_of
from aapt_fast.streaming.session import StreamSession
from aapt_fast.streaming.together import batched_samplers, items, take_step


class RecordedBatch:
    """Sessions with `cuda_graph=True` that take their steps together, as one recording. Not safe to use from threads.

    The sessions stay the caller's: each may step alone, fork and be reset between two steps of the batch, and belong to
    several batches. The batch is for these sessions; when somebody comes or goes, make another one. As long as one of
    them is at the first frame of its run, which is recorded apart, all take that step one after the other. A reset is
    noticed: the step after it records the batch anew, which takes as long as this constructor.

    Args:
        sessions: as `step_together` wants them (one AAPT model, one pool, one nfe), but with `cuda_graph=True`. They
            are recorded with the kernels that are on now; it takes a few evaluations.

    Raises:
        TypeError, ValueError: sessions that cannot be batched.
        SessionClosed: one of them is closed.
        PoolExhausted: somebody has taken pages of the pool without a reservation.
        RuntimeError: recording failed. In all cases the sessions are as they were.
    """

    def __init__(self, sessions: Sequence[StreamSession]) -> None:
        self._sessions: list[StreamSession] = items("sessions", sessions)
        expected = "sessions of an AAPT generator with cuda_graph=True"
        self._samplers = batched_samplers(self._sessions, RecordedFrameSampler, expected)
        self._caches: list[list[FixedPagedCache]] = []  # those that the recording knows, by session
        self._recording: Recording | None = None
        self._record()

    @property
    def sessions(self) -> tuple[StreamSession, ...]:
        """In the order of the controls and videos of `step`."""
        return tuple(self._sessions)

    def step(self, controls: Sequence[object] | None = None) -> list[Tensor]:
        """The next four video frames of every session, uint8 [4, H, W, 3] each: what `step_together` gives.

        Args:
            controls: one per session, as in `StreamSession.step`; None for a model without control.

        Raises:
            TypeError, ValueError: a bad control. Nothing has changed.
            PoolExhausted: as in `StreamSession.step`; nothing has changed.
            SessionClosed: one of the sessions is closed; nothing has changed, the others need a batch of their own.
            RuntimeError: recording anew after a reset failed; nothing has changed. Any other error in the middle of a
                step closes all sessions.
        """
        for session in self._sessions:
            session._require_open()
        if self._recording is None or self._caches != [list(sampler._caches) for sampler in self._samplers]:
            self._record()
        return take_step(self._sessions, self._samplers, controls, self._evaluate)

    def _record(self) -> None:
        """Make the inputs and the recording. What the runs write before is the next frames', and written again."""
        self._recording = None  # its memory goes first
        self._caches = [list(sampler._caches) for sampler in self._samplers]
        model, first = self._sessions[0].model, self._samplers[0]
        config, device, rows = first.generator.config, model.device, len(self._samplers)
        frames = (rows, config.latent_channels, 1, *config.grid)
        channels = config.control.step_channels if config.control else 0
        with computing(model):
            self._noise, self._recycled = torch.zeros(2, *frames, dtype=torch.float32, device=device).unbind()
            self._control = torch.zeros(rows, channels, 1, *config.grid, dtype=torch.float32, device=device)
            self._levels = timesteps(first.nfe, config.shift).to(device)
            for sampler in self._samplers:
                sampler.prepare()
            for cache in self._all_caches():
                cache.records_first = False
            self._recording = record(self._recorded, device)

    def _recorded(self) -> Tensor:
        """What is recorded: inputs and tables -> frames [B, C, 1, h, w]."""
        first = self._samplers[0]
        batches = [CacheBatch(of_evaluation) for of_evaluation in zip(*self._caches, strict=True)]
        control = self._control if first.generator.config.control else None
        with first.model.autocast():
            return sample_frame(first.generator, self._noise, self._recycled, control, batches, self._levels)

    def _evaluate(self, recycled: Tensor, control: Tensor) -> Tensor:
        """recycled [B, C, 1, h, w], control [B, step_channels, 1, h, w] -> frames [B, C, 1, h, w]."""
        seeds, steps = [session.seed for session in self._sessions], [session.steps + 1 for session in self._sessions]
        if 1 in steps:
            inputs = control[:, :, 0] if control.shape[1] else [None] * len(steps)
            rows = zip(self._samplers, seeds, steps, recycled.split(1), inputs, strict=True)
            return torch.cat([sampler.step(*row) for sampler, *row in rows])
        self._noise.copy_(noise_of(self._samplers[0].model, seeds, steps)[:, :, None])
        self._recycled.copy_(recycled)
        self._control.copy_(control)
        assert self._recording is not None
        frames = self._recording.replay().clone()
        for cache in self._all_caches():
            cache.finish()
        return frames

    def _all_caches(self) -> list[FixedPagedCache]:
        return [cache for caches in self._caches for cache in caches]
