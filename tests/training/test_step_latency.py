# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.training import step_latency as module
from aapt_fast.training.step_latency import step_latency

TINY_VAE = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))


class Clock:
    """A clock that moves only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_the_generator_is_the_step_without_the_decoder(monkeypatch) -> None:
    """The generator takes 3 s per evaluation, the decoder 2 s; the first steps are slow and do not count."""
    clock, model = Clock(), StreamModel(Generator(NANO).eval(), MiniVAE(TINY_VAE).eval())
    forward, decode, calls = model.generator.forward, StreamModel.decode, []

    def slow_forward(*arguments: object, **named: object) -> torch.Tensor:
        calls.append(arguments)
        clock.now += 3.0 if len(calls) > 2 * 2 else 100.0
        return forward(*arguments, **named)

    def slow_decode(self: StreamModel, *arguments: object) -> torch.Tensor:
        clock.now += 2.0
        return decode(self, *arguments)

    monkeypatch.setattr(model.generator, "forward", slow_forward)
    monkeypatch.setattr(StreamModel, "decode", slow_decode)
    monkeypatch.setattr(module, "time", clock)
    times = step_latency(model, -torch.ones(3, 32, 32), torch.rand(9, 19, 3), nfe=2, steps=5, warm=2)
    assert len(calls) == 2 * (2 + 5)
    assert times["generator"]["p50"] == times["generator"]["p95"] == 6000
    assert times["step"]["p50"] == times["step"]["p95"] == 8000
