# SPDX-License-Identifier: Apache-2.0
"""Decoders whose ranks have some rows each: exchange, state, mistakes; test_agreement.py compares their pictures."""

import copy
from functools import partial

import pytest
import torch
from tests.distributed.agreement import make_vae

from aapt_fast.distributed.spatial_decoder import RowShards, ShardedVAE
from aapt_fast.testing.thread_ranks import on_ranks

ROWS = 5  # not divisible by 2, 4


@pytest.mark.parametrize("name", ["light", "wan 2.1"])
def test_videos_are_exchanged_as_bytes(name):
    vae = make_vae(name)
    latents = torch.randn(1, 16, 3, ROWS, 3).split(1, 2)
    whole = vae.stream()
    expected = torch.cat([whole.decode(frame, "uint8") for frame in latents], 1)

    def decoded(copies, transport):
        stream = ShardedVAE(copies[transport.rank], RowShards(transport, ROWS)).stream()
        video, sent = [stream.decode(latents[0], "uint8")], []
        for kind in ("float", "uint8"):
            before, stream = transport.bytes, stream.clone()
            video.append(stream.clone().decode(latents[1], kind))
            sent.append(transport.bytes - before)
        stream.decode(latents[1])
        return torch.cat([video[0], video[2], stream.decode(latents[2], "uint8")], 1), sent

    [(video, sent), (other, _)] = on_ranks(2, partial(decoded, [copy.deepcopy(vae) for _ in range(2)]))
    assert torch.equal(video, other) and (video.int() - expected.int()).abs().max() <= 1
    pixels = 4 * 3 * 3 * 8 * (3 * 8)  # frames, colours, the most rows of a rank, columns
    assert sent[0] - sent[1] == 3 * pixels  # float32 less uint8


def test_a_stream_without_a_first_frame_goes_on_from_its_state():
    vae = make_vae("wan 2.1")
    latents = torch.randn(1, 16, 3, ROWS, 3).split(1, 2)

    def decoded(copies, transport):
        shared = ShardedVAE(copies[transport.rank], RowShards(transport, ROWS))
        before, after = shared.stream(), shared.stream()
        for frame in latents[:2]:
            before.decode(frame)
        after.restore(before.state(), torch.device("cpu"))
        return torch.equal(after.decode(latents[2]), before.decode(latents[2]))

    assert on_ranks(2, partial(decoded, [copy.deepcopy(vae) for _ in range(2)])) == [True, True]


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(ValueError, match="ranks: expected at most 1, the rows of the latents, got 2"):
        on_ranks(2, lambda transport: RowShards(transport, 1))
