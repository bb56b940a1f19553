# SPDX-License-Identifier: Apache-2.0
"""Time of one more latent frame (four video frames) of a running stream of the Wan VAE on the CPU.

Three systems with the same weights decode the same latents, in turn, round after round:
    aapt_fast            `WanVAE.stream()`
    diffusers            `AutoencoderKLWan` as it is, frame by frame through its own feature cache
    diffusers + oneDNN   the same module with every 3-D convolution handed to oneDNN in channels_last_3d

    python -m bench.bench_wan_vae [--full] [--rounds N] [--threads N]    a table, then the document
    pytest bench/bench_wan_vae.py                                        the same systems under pytest-benchmark
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import diffusers
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_keys import WanVAEKeys
from aapt_fast.profiling.document import Document, result
from bench.baselines.diffusers_vae import diffusers_stream, diffusers_vae, with_onednn
from bench.harness.program import finish, open_document, parser
from bench.harness.timing import Stream, time_streams

HEIGHT, WIDTH = 96, 128
WARM_UP = 2  # chunks before the steady state: the first frame and the first doubled one take other paths
OURS, STOCK, FAIR = "aapt_fast", "diffusers", "diffusers + oneDNN"

Systems = Mapping[str, Callable[[int, Tensor], Stream]]
"""By name: (base_dim, latents [steps, z, h, w]) -> stream."""


def our_stream(base_dim: int, latents: Tensor) -> Stream:
    """Steps of `aapt_fast` with the weights of `diffusers_vae`, over latents [steps, z, h, w]."""
    vae = WanVAE(WanVAEConfig(base_dim=base_dim)).eval()
    theirs, keys = diffusers_vae(base_dim).state_dict(), WanVAEKeys()
    vae.load_state_dict({keys.to_original(key): tensor for key, tensor in theirs.items()})
    stream = vae.stream()
    return lambda number: stream.decode(latents[number][None, :, None])


BASELINES: Systems = {
    STOCK: lambda base_dim, latents: diffusers_stream(diffusers_vae(base_dim), latents),
    FAIR: lambda base_dim, latents: diffusers_stream(with_onednn(diffusers_vae(base_dim)), latents),
}
SYSTEMS: Systems = {OURS: our_stream, **BASELINES}


def random_latents(steps: int) -> Tensor:
    """Make latent frames [steps, 16, h, w], the same ones each time."""
    return torch.randn(steps, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(0))


def flops_per_frame(base_dim: int) -> int:
    """Count the operations of one steady step, convolutions as the direct sum over all their taps."""
    step = diffusers_stream(diffusers_vae(base_dim), random_latents(WARM_UP + 1))
    for number in range(WARM_UP):
        step(number)
    with FlopCounterMode(display=False) as counter:
        step(WARM_UP)
    return counter.get_total_flops()


def measure(document: Document, systems: Systems, ours: str, base_dim: int, rounds: int) -> None:
    """Add one result per system and print it; the baseline of all is diffusers with oneDNN."""
    latents = random_latents(WARM_UP + rounds)
    streams = {name: build(base_dim, latents) for name, build in systems.items()}
    samples, differences = time_streams(streams, ours, warm_up=WARM_UP, steps=rounds)
    flops = flops_per_frame(base_dim)
    print(f"base_dim {base_dim}, {HEIGHT}x{WIDTH}, float32: {flops / 1e9:.1f} GFLOP per latent frame")
    print(f"{'system':20} {'p50 ms':>10} {'GFLOP/s':>10} {'times ours':>11} {'difference':>11}")
    for name, sample in samples.items():
        entry = result(
            f"vae/wan/{WIDTH}x{HEIGHT}/base {base_dim}/fp32/{name}",
            sample,
            name,
            baseline=FAIR,
            ratio=sample.times(samples[FAIR]),
            tflops=flops / sample.p50 / 1e9,
            times_ours=samples[ours].times(sample),
            largest_difference_to_ours=differences[name],
        )
        document.add("results", entry)
        rate = f"{sample.p50:10.1f} {1e3 * entry['tflops']:10.1f}"
        print(f"{name:20} {rate} {entry['times_ours']:11.2f} {differences[name]:11.1e}")


def vae_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of this script and of bench_patch_vae."""
    options = parser(description)
    options.add_argument("--full", action="store_true", help="also the published width, base_dim 96")
    options.add_argument("--rounds", type=int, default=15, help="measured latent frames per system")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    return options


def begin(arguments: argparse.Namespace) -> Document:
    """Set the threads and open the document."""
    torch.set_num_threads(arguments.threads)
    document = open_document(arguments.out)
    document.set(diffusers=diffusers.__version__)
    return document


def main() -> None:
    arguments = vae_parser(__doc__).parse_args()
    document = begin(arguments)
    for base_dim in (32, 96) if arguments.full else (32,):
        measure(document, SYSTEMS, OURS, base_dim, arguments.rounds)
    finish(document)


def benchmark_system(benchmark: Callable, systems: Systems, system: str) -> None:
    """Time steady steps of a system at base_dim 32 under pytest-benchmark."""
    rounds = 5
    step = systems[system](32, random_latents(WARM_UP + rounds))
    for number in range(WARM_UP):
        step(number)
    numbers = iter(range(WARM_UP, WARM_UP + rounds))
    video = benchmark.pedantic(lambda: step(next(numbers)), rounds=rounds)
    assert video.shape == (1, 3, 4, HEIGHT, WIDTH)


@pytest.mark.parametrize("system", SYSTEMS)
def test_steady_frame(benchmark, system: str) -> None:
    benchmark_system(benchmark, SYSTEMS, system)


if __name__ == "__main__":
    main()
