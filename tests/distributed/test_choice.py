# SPDX-License-Identifier: Apache-2.0
"""The choice of the scheme, and of the decoder's, by the roofline and by memory."""

import copy
import dataclasses
from functools import partial

import pytest
import torch

from aapt_fast.distributed import choice
from aapt_fast.distributed.choice import best_scheme, blocks_of, whole_decoder_is_faster
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.spatial_decoder import ShardedVAE
from aapt_fast.distributed.tensor_parallel import TensorParallel
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.aapt import AAPTVAE, LIGHT, AAPTVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.profiling.roofline import H100, sharing_s
from aapt_fast.testing.streams import STREAMS, random_model
from aapt_fast.testing.thread_ranks import EchoTransport, on_ranks

CPU = torch.device("cpu")
LARGE = (90, 160)
WIDTHS = (4, 8, 8, 12)


def aapt_8b(grid):
    config = dataclasses.replace(generator_preset("aapt-8b"), grid=grid, window=15)
    with torch.device("meta"):
        return Generator(config).to(torch.bfloat16)


@pytest.fixture
def room(monkeypatch):
    """Sets the memory that is left."""
    return lambda gib: monkeypatch.setattr(choice, "memory_left", lambda device: int(gib * 2**30))


def test_the_faster_scheme_is_taken(room):
    room(80)
    large, small = aapt_8b(LARGE), aapt_8b((8, 8))
    assert best_scheme(large, None, 8, CPU) == "sp"
    assert best_scheme(small, None, 8, CPU) == "tp"  # 16 tokens: a rank waits for its weights alone
    for generator, best, other in ((large, "sp", "tp"), (small, "tp", "sp")):
        blocks = blocks_of(generator, generator.config.grid)
        assert sharing_s(blocks, H100, 8, best) < sharing_s(blocks, H100, 8, other)


def test_weights_that_do_not_fit_are_shared(room):
    generator = aapt_8b(LARGE)
    room(20)  # 15 GiB of weights, and keys and values
    assert best_scheme(generator, None, 8, CPU) == "tp"
    room(30)
    assert best_scheme(generator, None, 8, CPU) == "sp"


def test_a_wan_transformer_has_blocks_of_frames(room):
    room(80)
    with torch.device("meta"):
        generator = WanTransformer(WanConfig())
    blocks = blocks_of(generator, (60, 104))
    assert (blocks.tokens, blocks.width, blocks.hidden, blocks.layers) == (3 * 1560, 1536, 8960, 30)
    assert best_scheme(generator, None, 4, CPU) == "sp"


def test_large_frames_are_decoded_by_rows():
    with torch.device("meta"):
        vae = AAPTVAE(LIGHT)
    assert not whole_decoder_is_faster(vae, LARGE, 8, CPU)
    assert whole_decoder_is_faster(vae, (8, 8), 8, CPU)


def test_one_rank_with_little_memory_decides_for_all(monkeypatch):
    model = random_model(STREAMS["pose"])
    copies = partial(copy.deepcopy, model)
    cut: list[int] = []
    whole = TensorParallel.cut
    monkeypatch.setattr(
        TensorParallel, "cut", lambda self, *rest: (cut.append(rest[-1].transport.rank), whole(self, *rest))[1]
    )

    monkeypatch.setattr("aapt_fast.distributed.sharded_generator.best_scheme", lambda *_: "sp")
    on_ranks(2, lambda transport: shard(copies(), transport))
    assert not cut
    answers = iter(["sp", "tp"])
    monkeypatch.setattr("aapt_fast.distributed.sharded_generator.best_scheme", lambda *_: next(answers))
    on_ranks(2, lambda transport: shard(copies(), transport))
    assert sorted(cut) == [0, 1]


@pytest.mark.parametrize("whole", [True, False])
def test_the_decoder_is_switchable(whole):
    vae = AAPTVAE(AAPTVAEConfig(encoder_widths=WIDTHS, decoder_widths=WIDTHS, norm_num_groups=4))
    small = StreamModel(random_model(STREAMS["pose"]).generator, vae)
    model = shard(small, EchoTransport(0, 2), whole_decoder=whole)
    assert isinstance(model.vae, ShardedVAE) != whole
