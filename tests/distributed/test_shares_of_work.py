# SPDX-License-Identifier: Apache-2.0
"""Each of n ranks does 1 / n of the work of the blocks, and sends the bytes of the formula."""

import copy
import dataclasses

import pytest
from torch.utils.flop_counter import FlopCounterMode

from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.profiling.inputs import random_controls
from aapt_fast.profiling.roofline import BYTES, exchanged_bytes
from aapt_fast.testing.streams import STREAMS, random_model, random_session
from aapt_fast.testing.thread_ranks import EchoTransport, on_ranks

CONFIG = dataclasses.replace(STREAMS["pose"], width=64, heads=8, grid=(8, 8))  # 16 tokens
FLOAT = 4


def linear_flops(model):
    """FLOP of the linear layers of all blocks in one step."""
    [control] = random_controls(model, 1, seed=3)
    with random_session(model) as session, FlopCounterMode(display=False) as counter:
        session.step(control)
    counts = counter.get_flop_counts()
    return sum(sum(counts[f"Generator.blocks.{number}"].values()) for number in range(CONFIG.layers))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("scheme", ["sp", "tp"])
def test_work_of_a_rank(model, scheme, size):
    own = shard(copy.deepcopy(model), EchoTransport(1, size), scheme)
    assert linear_flops(own) == linear_flops(model) // size


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("scheme", ["sp", "tp"])
def test_bytes_of_a_rank(model, scheme, size):
    copies = [copy.deepcopy(model) for _ in range(size)]
    [control] = random_controls(model, 1, seed=3)

    def sent(transport):
        with random_session(shard(copies[transport.rank], transport, scheme)) as session:
            before = transport.bytes
            session.step(control)
            return transport.bytes - before

    last_layer = CONFIG.tokens // size * CONFIG.head_width * CONFIG.patch**2 * FLOAT * (size - 1)
    expected = exchanged_bytes(CONFIG, size, scheme) / BYTES * FLOAT + last_layer
    assert on_ranks(size, sent) == [expected] * size
