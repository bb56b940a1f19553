# SPDX-License-Identifier: Apache-2.0
"""What does `aapt_fast.patch` make of diffusers' `AutoencoderKLWan` on the CPU, and does a stream stay as fast?

Three systems with the same weights decode the same latents frame by frame through diffusers' own feature cache, in
turn, round after round, so that what else runs on the machine meets all of them:
    patched              `AutoencoderKLWan` after `aapt_fast.patch`
    diffusers            as it is
    diffusers + oneDNN   with every 3-D convolution handed to oneDNN (see bench_wan_vae.py)
Then the patched one alone decodes `--stream` more frames, and the median of the last third is compared with that of
the first.

    python -m bench.bench_patch_vae [--full] [--rounds N] [--stream N] [--threads N]
    pytest bench/bench_patch_vae.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import pytest
import torch

import aapt_fast
from bench.bench_wan_vae import (
    HEIGHT,
    WARM_UP,
    WIDTH,
    Step,
    diffusers_stream,
    diffusers_vae,
    latents,
    measure,
    what_ran,
    with_onednn,
)

QUESTION = "steady latent frame of AutoencoderKLWan after aapt_fast.patch"
PATCHED, STOCK, FAIR = "patched", "diffusers", "diffusers + oneDNN"


def patched_stream(base_dim: int) -> Step:
    """Steps of the patched module; every part of it has to be replaced."""
    vae = diffusers_vae(base_dim)
    aapt_fast.patch(vae, strict=True)
    return diffusers_stream(vae)


SYSTEMS = {
    PATCHED: patched_stream,
    STOCK: lambda base_dim: diffusers_stream(diffusers_vae(base_dim)),
    FAIR: lambda base_dim: diffusers_stream(with_onednn(diffusers_vae(base_dim))),
}


def flatness(base_dim: int, frames: int) -> dict:
    """How the time per frame of a patched stream changes from its first third to its last."""
    step, times = patched_stream(base_dim), []
    for number in range(WARM_UP + frames):
        start = time.perf_counter()
        step(latents(number))
        times.append(1e3 * (time.perf_counter() - start))
    third = max(frames // 3, 1)
    first, last = (statistics.median(part) for part in (times[WARM_UP : WARM_UP + third], times[-third:]))
    return {
        "question": "time per frame along a stream of the patched AutoencoderKLWan",
        "system": PATCHED,
        "base_dim": base_dim,
        "size": [HEIGHT, WIDTH],
        "frames": frames,
        "first_third_ms": first,
        "last_third_ms": last,
        "last_to_first": last / first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also the published width, base_dim 96")
    parser.add_argument("--rounds", type=int, default=15, help="measured latent frames per system")
    parser.add_argument("--stream", type=int, default=200, help="frames of the long stream, at base_dim 32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for base_dim in (32, 96) if arguments.full else (32,):
        print(f"base_dim {base_dim}, {HEIGHT}x{WIDTH}, float32")
        print(f"{'system':20} {'median ms':>10} {'min ms':>10} {'times patched':>14} {'difference':>11}")
        for result in measure(QUESTION, SYSTEMS, PATCHED, base_dim, arguments.rounds):
            print(
                f"{result['system']:20} {result['median_ms']:10.1f} {result['min_ms']:10.1f} "
                f"{result['times_ours']:14.2f} {result['max_difference_to_ours']:11.1e}"
            )
            results.append(result)
    stream = flatness(32, arguments.stream)
    print(
        f"stream of {arguments.stream} frames: {stream['first_third_ms']:.1f} ms per frame in the first third, "
        f"{stream['last_third_ms']:.1f} ms in the last ({stream['last_to_first']:.2f} times)"
    )
    results.append(stream)
    print(json.dumps({"schema": "aapt_fast.profiling/1", "results": results, "what_ran": what_ran()}))


@pytest.mark.parametrize("system", SYSTEMS)
def test_steady_frame(benchmark, system: str) -> None:
    step = SYSTEMS[system](32)
    for seed in range(WARM_UP):
        step(latents(seed))
    video = benchmark.pedantic(step, args=(latents(WARM_UP),), rounds=5)
    assert video.shape == (1, 3, 4, HEIGHT, WIDTH)


if __name__ == "__main__":
    main()
