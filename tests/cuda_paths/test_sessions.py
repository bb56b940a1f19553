# SPDX-License-Identifier: Apache-2.0
"""Sessions on the fake GPU: copies from the host and waits of a step, against budgets that may only fall."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

from aapt_fast import PagePool, SessionBatch, StreamSession
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.ops import registry
from aapt_fast.ops.calls import observe_ops
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.testing.fake_cuda import FAKE_GPU
from aapt_fast.testing.fake_models import aapt_model

WAITS = 1
"""Waits of the host in a step: one, for its frames."""

COPIES = 1
"""Copies from the host in a step: one, of all numbers that it gives to the device."""


def one_layer(preset: str) -> GeneratorConfig:
    """A preset with one layer: further ones repeat it."""
    return dataclasses.replace(generator_preset(preset), layers=1)


@pytest.mark.parametrize(
    ("preset", "dtype", "recorded"),
    [("mini-person", torch.bfloat16, False), ("nano-text", torch.float32, True)],
    ids=str,
)
def test_a_session(preset, dtype, recorded, gpu):
    model = aapt_model(one_layer(preset), dtype)
    weights, (first, second) = gpu.live_bytes, random_controls(model, 2)
    with observe_ops() as calls:
        session = StreamSession(model, random_image(model), prompt=random_prompt(model), cuda_graph=recorded)
        session.step(first)
    assert calls.what_ran()["paged_attention"] == registry.FUSED
    with gpu.counting() as counts:
        video = session.step(second)
    assert video.device == FAKE_GPU and video.dtype == torch.uint8 and video.shape == (4, *model.video_size, 3)
    assert counts.syncs.total() <= WAITS, counts.syncs
    assert counts.uploads.total() <= COPIES, counts.uploads
    assert counts.operators["replay"] == (2 if recorded else 0)  # step and decoder
    if not recorded:
        with session.fork() as fork:
            fork.step(first)
        del fork
    assert gpu.live_bytes > weights + 2**17
    session.close()
    del session, video
    gc.collect()
    assert gpu.live_bytes < weights + 2**10  # all pages and recordings are given back


def test_a_batch(gpu):
    model = aapt_model(one_layer("nano"))
    pool = PagePool.for_sessions(model, 2)
    sessions = [StreamSession(model, random_image(model), seed=seed, pool=pool) for seed in range(2)]
    batch = SessionBatch(sessions, cuda_graph=True)
    for replays in (0, 1):  # the first step is another computation
        with gpu.counting() as counts:
            batch.step(random_controls(model, 2))
        assert counts.syncs.total() <= WAITS, counts.syncs
        assert counts.uploads.total() <= COPIES, counts.uploads
        assert counts.operators["replay"] == replays
