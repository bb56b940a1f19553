# SPDX-License-Identifier: Apache-2.0
"""One rank of several on the fake GPU: no mix of devices, one copy and one wait per step, recordings, memory."""

from __future__ import annotations

import dataclasses

import pytest

from aapt_fast import StreamSession
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.profiling.inputs import random_image, random_prompt
from aapt_fast.profiling.systems import find_system
from aapt_fast.testing.fake_models import aapt_model, wan_model
from aapt_fast.testing.thread_ranks import EchoTransport

GIB = 2**30
RANKS = 8


def aapt_8b(layers: int):
    system = find_system("aapt-8b", (1280, 720), window=15)
    return aapt_model(dataclasses.replace(system.config, layers=layers), vae=system.vae)


def opened(model, **options):
    image = random_image(model) if model.generator.needs_image else None
    return StreamSession(model, image, prompt=random_prompt(model, 128), **options)


@pytest.mark.parametrize(("scheme", "most_gib"), [("sp", 22), ("tp", 15)])
def test_a_rank_of_aapt_8b_at_1280x720(gpu, scheme, most_gib):
    def peak_with(layers: int) -> int:
        model = shard(aapt_8b(layers), EchoTransport(3, RANKS), scheme, whole_decoder=False)
        with opened(model) as session:
            session.step()
            with gpu.counting() as second:
                session.step()
        assert second.uploads.total() <= 1 and second.syncs.total() <= 1
        return second.peak_bytes

    one, two = peak_with(1), peak_with(2)
    layers = find_system("aapt-8b").config.layers
    peak = one + (layers - 1) * (two - one)
    assert peak < most_gib * GIB, f"{peak / GIB:.1f} GiB"


@pytest.mark.parametrize("scheme", ["sp", "tp"])
def test_a_recorded_step_holds_its_exchanges(gpu, scheme):
    """The generator and the decoder by rows are two replays; outside of them nothing is exchanged."""
    transport = CountingTransport(3, RANKS)
    with opened(shard(aapt_8b(1), transport, scheme, whole_decoder=False), cuda_graph=True) as session:
        session.step()
        transport.calls = 0
        with gpu.counting() as counts:
            session.step()
        assert counts.operators["replay"] == 2 and transport.calls == 0
        assert counts.uploads.total() <= 1 and counts.syncs.total() <= 1


@pytest.mark.parametrize(("scheme", "recorded"), [("sp", False), ("tp", True)], ids=["sp eager", "tp recorded"])
def test_a_rank_of_a_wan_transformer(gpu, scheme, recorded):
    """Its norm across heads, and blocks of three frames. Without a first image its decoder is not recorded."""
    transport = CountingTransport(1, 4)
    model = shard(wan_model(WanConfig(layers=1)), transport, scheme, whole_decoder=recorded)
    with opened(model, cuda_graph=recorded) as session:
        session.step()
        transport.calls = 0
        with gpu.counting() as counts:
            session.step()
        assert counts.uploads.total() <= 1 and counts.syncs.total() <= 1
        assert counts.operators["replay"] == recorded and (transport.calls > 0) != recorded


class CountingTransport(EchoTransport):
    """An `EchoTransport` that counts its calls by Python: a replay makes none."""

    calls = 0

    def all_to_all(self, parts):
        self.calls += 1
        return super().all_to_all(parts)

    def all_gather(self, x):
        self.calls += 1
        return super().all_gather(x)

    def neighbours(self, to_previous, to_next):
        self.calls += 1
        return super().neighbours(to_previous, to_next)
