# SPDX-License-Identifier: Apache-2.0
"""Most memory of large models on the fake GPU, without kernels of this package.

The page list of a step has its full length from the first step on, so the first steps take what those with a full
window take, within a megabyte. A layer adds to the memory of an open session (weights, pages, keys of the prompt) and
nothing to that of a step. So steps are taken with one layer, and the other layers are added: for aapt-8b a run of all
36 layers gives the same peak.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aapt_fast import StreamSession
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.profiling.inputs import random_image, random_prompt
from aapt_fast.profiling.memory import plan_memory
from aapt_fast.profiling.systems import find_system
from aapt_fast.testing.fake_gpu import Counts, FakeGPU
from aapt_fast.testing.fake_models import aapt_model, wan_model

GIB = 2**30
PLAN_IS_WITHIN = 0.15
"""Tolerance of the planned peak: memory inside a step is an estimate."""


@pytest.fixture
def planned_aapt_8b() -> int:
    """Bytes by `aapt-fast doctor --plan aapt-8b`. Listed before `gpu`, so that it plans without the fake GPU."""
    return find_system("aapt-8b", (736, 416)).memory(torch.bfloat16).total()


@pytest.fixture
def planned_wan() -> int:
    """Bytes by the same rules for Wan 1.3B at 832 x 480."""
    with torch.device("meta"):
        generator, vae = WanTransformer(WanConfig()), WanVAE(WanVAEConfig())
    parts = generator.to("meta", torch.bfloat16), vae.to("meta", torch.bfloat16)
    return plan_memory(*parts, (60, 104), prompt=WanConfig().text_length).total()


def test_aapt_8b_at_736x416_with_its_full_window(planned_aapt_8b, gpu):
    system = find_system("aapt-8b", (736, 416))

    def open_session(layers: int) -> StreamSession:
        model = aapt_model(dataclasses.replace(system.config, layers=layers), vae=system.vae)
        return StreamSession(model, random_image(model), prompt=random_prompt(model, system.prompt))

    live, peak, _ = memory_of_two_steps(gpu, open_session(1))
    session = open_session(2)
    peak += (system.config.layers - 1) * (gpu.live_bytes - live)
    session.close()
    assert 30 * GIB < peak < 34.5 * GIB, f"{peak / GIB:.2f} GiB"
    assert planned_aapt_8b == pytest.approx(peak, rel=PLAN_IS_WITHIN)


def test_wan_1_3b_at_480p_fits_a_card_of_24_gb(planned_wan, gpu):
    config, prompt = WanConfig(), torch.randn(20, 4096)
    one_evaluation = FewStepSampler(steps=(1000,))  # four of them take no more memory

    def open_session(layers: int) -> StreamSession:
        model = wan_model(dataclasses.replace(config, layers=layers))
        return StreamSession(model, prompt=prompt, sampler=one_evaluation)

    live, peak, step = memory_of_two_steps(gpu, open_session(1))
    assert step.uploads.total() <= 1 and step.syncs.total() <= 1
    session = open_session(2)
    peak += (config.layers - 1) * (gpu.live_bytes - live)
    session.close()
    assert 10 * GIB < peak < 15 * GIB, f"{peak / GIB:.2f} GiB"
    assert planned_wan == pytest.approx(peak, rel=PLAN_IS_WITHIN)


def memory_of_two_steps(gpu: FakeGPU, session: StreamSession) -> tuple[int, int, Counts]:
    """Bytes of an open session and most in its steps, and the counts of the second, whose decoder may take more."""
    live = gpu.live_bytes
    with gpu.counting() as both:
        session.step()
        with gpu.counting() as second:
            session.step()
    return live, both.peak_bytes, second
