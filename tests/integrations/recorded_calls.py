# SPDX-License-Identifier: Apache-2.0
"""Fixtures and calls for the tests of recorded forward passes."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from tests.integrations.diffusers_models import IMAGE_WIDTH, random_transformer
from torch import Tensor

import aapt_fast
from aapt_fast.integrations.recorded_forward import RecordedForward
from aapt_fast.streaming import graph
from aapt_fast.testing.recorder import record_on_cpu

KEPT = RecordedForward.kept_by_swap[0]


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Records on the CPU; lists what was recorded."""
    recorded: list[str] = []

    def recorder(function, device):
        recorded.append(device.type)
        return record_on_cpu(function, device)

    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder)
    return recorded


@pytest.fixture
def model(made) -> WanTransformer3DModel:
    return patched(random_transformer())


def patched(model: WanTransformer3DModel) -> WanTransformer3DModel:
    report = aapt_fast.patch(model, attention=False, cuda_graph=True, strict=True)
    assert report.parts() == {"cuda_graph"}
    return model


def inputs(seed: int = 0, frames: int = 3, batch: int = 2, like: WanTransformer3DModel | None = None) -> dict:
    """A call with latents, a time and a prompt of their own."""
    generator = torch.Generator().manual_seed(seed)
    given = dict(hidden_states=torch.randn(batch, 4, frames, 8, 12, generator=generator))
    given["timestep"] = torch.randint(1000, (batch,), generator=generator)
    given["encoder_hidden_states"] = torch.randn(batch, 512, 16, generator=generator)
    if like is not None and like.config.image_dim is not None:
        given["encoder_hidden_states_image"] = torch.randn(batch, 7, IMAGE_WIDTH, generator=generator)
    return given


def plain(model: WanTransformer3DModel, *tensors: Tensor, **given) -> Tensor:
    """What diffusers' own forward gives."""
    return WanTransformer3DModel.forward(model, *tensors, **given)[0]


def assert_right(model: WanTransformer3DModel, *seeds: int) -> None:
    for seed in seeds:
        given = inputs(seed, like=model)
        assert torch.equal(model(**given).sample, plain(model, **given))


def assert_left_alone(model: WanTransformer3DModel, made: list[str], reason: str) -> None:
    """It runs as diffusers' does, nothing new is recorded, nothing old kept, and `explain` says why."""
    before = len(made)
    given = inputs()
    torch.manual_seed(3)
    expected = plain(model, **given)
    torch.manual_seed(3)
    assert torch.equal(model(**given).sample, expected)
    assert len(made) == before and not vars(model)[KEPT]
    (finding,) = [f for f in aapt_fast.explain(model).left_alone if f.part == "cuda_graph"]
    assert finding.what.startswith("replaced, but the original runs: ") and reason in finding.what
