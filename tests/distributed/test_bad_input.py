# SPDX-License-Identifier: Apache-2.0
"""Ranks that do not fit together are refused on every rank, with the same message, before anything has changed."""

import copy

import pytest
import torch

from aapt_fast.distributed import launch, sharded_generator
from aapt_fast.distributed.launch import require_gpus_of_all
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.shared_session import SharedSession
from aapt_fast.errors import CheckpointError
from aapt_fast.profiling.inputs import random_controls, random_image
from aapt_fast.testing.streams import STREAMS, random_model
from aapt_fast.testing.thread_ranks import on_ranks


@pytest.fixture(scope="module")
def model():
    return random_model(STREAMS["pose"])


def messages(size, call, kind=ValueError):
    """What each of so many ranks says when it makes a call that is refused."""

    def refused(transport):
        with pytest.raises(kind) as raised:
            call(transport)
        return str(raised.value)

    return on_ranks(size, refused)


@pytest.mark.parametrize(
    ("fact", "values"),
    [("torch", ("2.9.0", "2.13.0")), ("GPU", ("NVIDIA H100", "NVIDIA A100"))],
)
def test_other_versions_and_gpus(model, monkeypatch, fact, values):
    copies = [copy.deepcopy(model) for _ in range(2)]
    known = {0: values[0], 1: values[1]}
    monkeypatch.setattr(sharded_generator, "versions", lambda device: {fact: known[int(str(device)[-1])]})

    def call(transport):
        copies[transport.rank].device = f"cpu:{transport.rank}"
        shard(copies[transport.rank], transport)

    said = messages(2, call)
    assert said == [f"{fact}: expected the same on every rank, got {values[0]} on rank 0, {values[1]} on rank 1"] * 2
    assert not copies[1].generator.blocks[0]._forward_pre_hooks


def test_another_model_or_another_dtype(model):
    others = [model, copy.deepcopy(model)]
    with torch.no_grad():
        others[1].generator.blocks[0].video.up.weight.add_(1)
    said = messages(2, lambda transport: shard(copy.deepcopy(others[transport.rank]), transport))
    assert said[0] == said[1] and said[0].startswith("weights: expected the same on every rank")
    said = messages(2, lambda transport: shard(copy.deepcopy(model), transport, ("sp", "tp")[transport.rank]))
    assert said == ["scheme: expected the same on every rank, got sp on rank 0, tp on rank 1"] * 2


def test_fewer_gpus_than_ranks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    places = lambda transport: require_gpus_of_all(transport, torch.device("cuda", transport.rank))  # noqa: E731
    assert messages(4, places) == ["ranks: expected at most 2 on this machine, one per GPU, got 4"] * 4
    on_ranks(2, places)


def test_a_torch_without_nccl(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch.dist, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="device: expected 'cpu': this torch has no NCCL; one for CUDA brings it"):
        launch.start("cuda")


def test_a_saved_session_of_another_number_of_ranks(model, tmp_path):
    path = tmp_path / "walk.safetensors"

    def save(transport):
        session = SharedSession(shard(copy.deepcopy(model), transport, "tp"), random_image(model), transport=transport)
        with session:
            if transport.rank > 0:
                return session.follow()
            session.step(random_controls(model, 1)[0])
            session.save(path)

    on_ranks(2, save)
    own = lambda transport: shard(copy.deepcopy(model), transport, "tp")  # noqa: E731
    [said] = messages(
        1, lambda transport: SharedSession.load(path, own(transport), transport=transport), CheckpointError
    )
    assert "walk.rank-0-of-1.safetensors" in said
