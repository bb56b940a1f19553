# SPDX-License-Identifier: Apache-2.0
"""Speed of diffusers' `AutoencoderKLWan` on the CPU after `aapt_fast.patch`, and its change along a stream.

Three systems with the same weights decode the same latents through diffusers' own feature cache, in turn:
    patched              `AutoencoderKLWan` after `aapt_fast.patch`
    diffusers            as it is
    diffusers + oneDNN   with every 3-D convolution handed to oneDNN
Then the patched one alone decodes `--stream` more frames, and the median of the last third is compared with that of
the first.

    python -m bench.bench_patch_vae [--full] [--rounds N] [--stream N] [--threads N]    a table, then the document
    pytest bench/bench_patch_vae.py                                                     under pytest-benchmark
"""

from __future__ import annotations

import statistics

import pytest
from torch import Tensor

import aapt_fast
from bench.baselines.diffusers_vae import diffusers_stream, diffusers_vae
from bench.bench_wan_vae import (
    BASELINES,
    WARM_UP,
    Systems,
    begin,
    benchmark_system,
    measure,
    random_latents,
    vae_parser,
)
from bench.harness.program import finish
from bench.harness.timing import Stream, time_streams

PATCHED = "patched"


def patched_stream(base_dim: int, latents: Tensor) -> Stream:
    """Steps of the patched module over latents [steps, z, h, w]; every part of it has to be replaced."""
    vae = diffusers_vae(base_dim)
    aapt_fast.patch(vae, strict=True)
    return diffusers_stream(vae, latents)


SYSTEMS: Systems = {PATCHED: patched_stream, **BASELINES}


def flatness(base_dim: int, frames: int) -> dict[str, float]:
    """Compare the time per frame of the last third of a patched stream with that of the first."""
    streams = {PATCHED: patched_stream(base_dim, random_latents(WARM_UP + frames))}
    times = time_streams(streams, PATCHED, warm_up=WARM_UP, steps=frames)[0][PATCHED].milliseconds
    third = max(frames // 3, 1)
    first, last = statistics.median(times[:third]), statistics.median(times[-third:])
    return {"frames": frames, "first_third_ms": first, "last_third_ms": last, "last_to_first": last / first}


def main() -> None:
    options = vae_parser(__doc__)
    options.add_argument("--stream", type=int, default=200, help="frames of the long stream, at base_dim 32")
    arguments = options.parse_args()
    document = begin(arguments)
    for base_dim in (32, 96) if arguments.full else (32,):
        measure(document, SYSTEMS, PATCHED, base_dim, arguments.rounds)
    stream = flatness(32, arguments.stream)
    document.set(stream=stream)
    print(
        f"stream of {arguments.stream} frames: {stream['first_third_ms']:.1f} ms per frame in the first third, "
        f"{stream['last_third_ms']:.1f} ms in the last ({stream['last_to_first']:.2f} times)"
    )
    finish(document)


@pytest.mark.parametrize("system", SYSTEMS)
def test_steady_frame(benchmark, system: str) -> None:
    benchmark_system(benchmark, SYSTEMS, system)


if __name__ == "__main__":
    main()
