# SPDX-License-Identifier: Apache-2.0
"""Latency of one viewer's step, with and without the decoder, once the stream is warm."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import VideoDecoder
from aapt_fast.streaming.latency import LatencyCounter
from aapt_fast.streaming.session import StreamSession


class _TimedModel(StreamModel):
    """Notes in `decoding` how many seconds each call of `decode` took."""

    def __init__(self, model: StreamModel) -> None:
        super().__init__(model.generator, model.vae, model.name)
        self.decoding: list[float] = []

    def decode(self, decoder: VideoDecoder, frame: Tensor) -> Tensor:
        _finish(frame)
        begun = time.perf_counter()
        video = super().decode(decoder, frame)
        _finish(video)
        self.decoding.append(time.perf_counter() - begun)
        return video


def _finish(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def step_latency(
    model: StreamModel, image: Tensor, controls: Tensor, nfe: int = 1, steps: int = 60, warm: int = 12
) -> dict[str, dict[str, float | None]]:
    """Milliseconds per step, {"generator": {"p50": ..., "p95": ..., ...}, "step": {...}}; a step includes the decoder.

    One session that starts from `image` [3, H, W] in -1..1 and follows the controls [T, ...], over and over,
    for `warm` steps that do not count and `steps` that do.
    """
    timed = _TimedModel(model)
    generator, whole = LatencyCounter(), LatencyCounter()
    image_control = controls[0] if model.control is not None and model.control.with_previous else None
    with StreamSession(timed, image, sampler=EulerSampler(nfe), image_control=image_control) as session:
        blocks = controls[1:].split(4)
        for number in range(warm + steps):
            begun = time.perf_counter()
            video = session.step(blocks[number % len(blocks)])
            seconds = time.perf_counter() - begun
            if number >= warm:
                whole.record_step(seconds, len(video))
                generator.record_step(seconds - timed.decoding[-1], len(video))
    return {"generator": generator.step_ms, "step": whole.step_ms}
