# SPDX-License-Identifier: Apache-2.0
"""Most memory of large models on the fake GPU, without kernels of this package.

The page list of a step has its full length from the first step on, so the first steps take as much as those with a full
window. A layer adds its weights and its pages to the memory of a session and nothing else, so one layer is run: the
peak of aapt-8b computed so is that of all 36 layers, to the byte.
"""

from __future__ import annotations

import dataclasses

import torch

from aapt_fast import StreamSession
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.profiling.inputs import random_image, random_prompt
from aapt_fast.profiling.systems import find_system
from aapt_fast.streaming.pages import PAGE_SLOTS
from aapt_fast.testing.fake_models import aapt_model, wan_model, weight_bytes

GIB = 2**30


def pages_of_a_layer(session: StreamSession, heads: int, width: int) -> int:
    """Bytes of keys and values in bfloat16."""
    return 2 * session._pool.pages * PAGE_SLOTS * heads * width * 2


def test_aapt_8b_at_736x416_with_its_full_window(gpu):
    system = find_system("aapt-8b", (736, 416))
    one, two = (dataclasses.replace(system.config, layers=layers) for layers in (1, 2))
    with gpu.counting() as counts:
        model = aapt_model(one, vae=system.vae)
        session = StreamSession(model, random_image(model), prompt=random_prompt(model, system.prompt))
        session.step()
    layer = weight_bytes(lambda: Generator(two)) - weight_bytes(lambda: Generator(one))
    layer += pages_of_a_layer(session, one.heads, one.head_dim)
    peak = counts.peak_bytes + (system.config.layers - 1) * layer
    assert 30 * GIB < peak < 36 * GIB, f"{peak / GIB:.2f} GiB"


def test_wan_1_3b_at_480p_fits_a_card_of_24_gb(gpu):
    config = WanConfig()
    one, two = (dataclasses.replace(config, layers=layers) for layers in (1, 2))
    with gpu.counting() as counts:
        one_evaluation = FewStepSampler(steps=(1000,))  # four of them take no more memory
        session = StreamSession(wan_model(one), prompt=torch.randn(20, config.text_width), sampler=one_evaluation)
        session.step()
        with gpu.counting() as step:  # the decoder takes more than in the first step, which has one frame less
            session.step()
    assert step.uploads.total() <= 7 and step.syncs.total() <= 1
    layer = weight_bytes(lambda: WanTransformer(two)) - weight_bytes(lambda: WanTransformer(one))
    layer += pages_of_a_layer(session, config.heads, config.head_dim)
    peak = counts.peak_bytes + (config.layers - 1) * layer
    assert 10 * GIB < peak < 16 * GIB, f"{peak / GIB:.2f} GiB"
