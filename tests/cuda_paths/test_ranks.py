# SPDX-License-Identifier: Apache-2.0
"""One rank of eight at 1280x720 on the fake GPU: no mix of devices, one copy and one wait per step, and its memory."""

from __future__ import annotations

import dataclasses

import pytest

from aapt_fast import StreamSession
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.profiling.inputs import random_image, random_prompt
from aapt_fast.profiling.systems import find_system
from aapt_fast.testing.fake_models import aapt_model
from aapt_fast.testing.thread_ranks import EchoTransport

GIB = 2**30
RANKS = 8


@pytest.mark.parametrize(("scheme", "most_gib"), [("sp", 22), ("tp", 15)])
def test_a_rank_of_aapt_8b_at_1280x720(gpu, scheme, most_gib):
    system = find_system("aapt-8b", (1280, 720), window=15)

    def peak_with(layers: int) -> int:
        whole = aapt_model(dataclasses.replace(system.config, layers=layers), vae=system.vae)
        model = shard(whole, EchoTransport(3, RANKS), scheme, whole_decoder=False)
        with StreamSession(model, random_image(model), prompt=random_prompt(model, system.prompt)) as session:
            session.step()
            with gpu.counting() as second:
                session.step()
        assert second.uploads.total() <= 1 and second.syncs.total() <= 1
        return second.peak_bytes

    one, two = peak_with(1), peak_with(2)
    peak = one + (system.config.layers - 1) * (two - one)
    assert peak < most_gib * GIB, f"{peak / GIB:.1f} GiB"
