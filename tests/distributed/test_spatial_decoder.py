# SPDX-License-Identifier: Apache-2.0
"""Decoders whose ranks have some rows each, against the whole decoders."""

import copy
from functools import partial

import pytest
import torch

from aapt_fast.distributed.spatial_decoder import RowShards, ShardedVAE
from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.testing.thread_ranks import on_ranks

WIDTHS = (4, 8, 8, 12)
VAES = {
    "light": partial(AAPTVAE, AAPTVAEConfig(encoder_widths=WIDTHS, decoder_widths=WIDTHS, norm_num_groups=4)),
    "wan 2.1": partial(WanVAE, WanVAEConfig(base_dim=4, num_res_blocks=1)),
    "wan 2.2": partial(
        WanVAE, WanVAEConfig(base_dim=4, decoder_base_dim=6, num_res_blocks=1, is_residual=True, patch_size=2)
    ),
}
ROWS = 5  # not divisible by 2, 4


@pytest.mark.parametrize("name", VAES)
def test_rows_of_all_ranks_are_the_picture(name):
    torch.manual_seed(4)
    vae = VAES[name]().eval().requires_grad_(False)
    latents = torch.randn(1, 16, 4, ROWS, 3).split(1, 2)
    whole = vae.stream()
    expected = torch.cat([whole.decode(frame) for frame in latents], 2)

    def decoded(copies, transport):
        stream = ShardedVAE(copies[transport.rank], RowShards(transport, ROWS)).stream()
        video = [stream.decode(frame) for frame in latents[:3]]
        fork = stream.clone()
        stream.decode(latents[0])
        fork.fix()  # as a recording does
        return torch.cat([*video, fork.decode(latents[3])], 2)

    for size in (1, 2, 5):
        videos = on_ranks(size, partial(decoded, [copy.deepcopy(vae) for _ in range(size)]))
        torch.testing.assert_close(videos[0], expected, rtol=5e-5, atol=5e-5)
        assert all(torch.equal(video, videos[0]) for video in videos)


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(ValueError, match="ranks: expected at most 1, the rows of the latents, got 2"):
        on_ranks(2, lambda transport: RowShards(transport, 1))
