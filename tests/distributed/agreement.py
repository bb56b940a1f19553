# SPDX-License-Identifier: Apache-2.0
"""What one device and any number of ranks have to compute alike: `python agreement.py RESULTS`, under torchrun.

Each rank writes its own results to RESULTS/rank-N.pt before the job ends; so an error of the backend while it ends
changes nothing. test_agreement.py compares them with those of one device.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.distributed import launch
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.spatial_decoder import RowShards, ShardedVAE
from aapt_fast.distributed.transport import Transport
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.video_stream import VideoVAE
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.ops.window import WindowRule
from aapt_fast.profiling.inputs import random_controls, random_prompt
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import STREAMS, play, random_model, random_session
from aapt_fast.testing.wan import random_wan

STEPS = 5  # the window of 2 wraps, and the sink moves
ROWS = 9  # of the latents of the decoders: more than there are ranks, and not divisible by any number of them
SCHEMES = ("sp", "tp")
WAN = WanConfig(
    heads=8, head_dim=8, layers=2, ffn_width=80, text_width=24, window_rule=WindowRule(frames=2, window=2, sink=1)
)
WIDTHS = (4, 8, 8, 12)


def _aapt(name: str) -> StreamModel:
    return random_model(dataclasses.replace(STREAMS[name], width=64, heads=8))


def _wan() -> StreamModel:
    torch.manual_seed(2)
    vae = WanVAE(WanVAEConfig(base_dim=4, num_res_blocks=1)).eval().requires_grad_(False)
    return StreamModel(random_wan(WAN), vae, grid=(8, 4))


MODELS: dict[str, Callable[[], StreamModel]] = {
    "pose": partial(_aapt, "pose"),
    "text and maps": partial(_aapt, "text and maps"),
    "wan": _wan,
}
VAES: dict[str, Callable[[], VideoVAE]] = {
    "light": partial(AAPTVAE, AAPTVAEConfig(encoder_widths=WIDTHS, decoder_widths=WIDTHS, norm_num_groups=4)),
    "wan 2.1": partial(WanVAE, WanVAEConfig(base_dim=4, num_res_blocks=1)),
    "wan 2.2": partial(
        WanVAE, WanVAEConfig(base_dim=4, decoder_base_dim=6, num_res_blocks=1, is_residual=True, patch_size=2)
    ),
}


def stream(model: StreamModel) -> tuple[Tensor, Tensor]:
    """Frames [1, C, steps + 1, h, w] of a session across the window's wrap and of its fork; video of the session."""
    if model.generator.needs_image:
        opened = random_session(model)
    else:
        opened = StreamSession(model, prompt=random_prompt(model), seed=7)
    with opened as session:
        frames, video = play(session, random_controls(model, STEPS, seed=3))
        with session.fork() as fork:
            more, _ = play(fork, random_controls(model, 1, seed=4))
        return torch.cat([frames, more], 2), video


def decode(vae: VideoVAE) -> Tensor:
    """Video [1, 3, T, H, W] of a stream of latents, of which the last is decoded by a fork."""
    latents = torch.randn(1, 16, 4, ROWS, 3, generator=torch.Generator().manual_seed(4)).split(1, 2)
    stream = vae.stream()
    video = [stream.decode(frame) for frame in latents[:3]]
    fork = stream.clone()
    stream.decode(latents[0])
    fork.fix()  # as a recording does
    return torch.cat([*video, fork.decode(latents[3])], 2)


def make_vae(name: str) -> VideoVAE:
    """The decoder called `name`, with the same random weights every time."""
    torch.manual_seed(4)
    return VAES[name]().eval().requires_grad_(False)


def results_of_one() -> dict[str, Tensor]:
    """All results, by name, of one device."""
    results = {}
    for kind, make in MODELS.items():
        results[f"{kind}, frames"], results[f"{kind}, video"] = stream(make())
    return results | {f"{name}, decoded": decode(make_vae(name)) for name in VAES}


def results_of_ranks(transport: Transport) -> dict[str, dict[str, Tensor]]:
    """The same results of this rank, for every scheme."""
    decoded = {
        f"{name}, decoded": decode(ShardedVAE(make_vae(name), RowShards(transport, ROWS)))  # type: ignore[arg-type]
        for name in VAES
    }
    results = {}
    for scheme in SCHEMES:
        results[scheme] = dict(decoded)
        for kind, make in MODELS.items():
            frames, video = stream(shard(make(), transport, scheme, whole_decoder=False))
            results[scheme] |= {f"{kind}, frames": frames, f"{kind}, video": video}
    return results


def main(folder: str) -> None:
    torch.set_num_threads(1)
    transport, _ = launch.start("cpu")
    with torch.no_grad():
        results = results_of_ranks(transport)
    torch.save(results, Path(folder, f"rank-{transport.rank}.pt"))
    launch.end()


if __name__ == "__main__":
    main(sys.argv[1])
