# SPDX-License-Identifier: Apache-2.0
"""How long does the Wan VAE take on the CPU for one more latent frame (four video frames) of a running stream?

Three systems with the same weights decode the same latents, in turn, round after round:
    aapt_fast            `WanVAE.stream()`
    diffusers            `AutoencoderKLWan` as it is, frame by frame through its own feature cache
    diffusers + oneDNN   the same module with every 3-D convolution handed to oneDNN in channels_last_3d. torch sends
                         float32 conv3d to a slow path on the CPU; this baseline shows what remains without that.

    python bench/bench_wan_vae.py [--full] [--rounds N] [--threads N]    a table; the last line is one JSON document
    pytest bench/bench_wan_vae.py                                        the same systems under pytest-benchmark
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_keys import from_diffusers_state_dict
from aapt_fast.ops import implementations

HEIGHT, WIDTH = 96, 128
WARM_UP = 2  # chunks before the steady state: the first frame and the first doubled one take other paths
OURS = "aapt_fast"
QUESTION = "steady latent frame of the Wan VAE decoder"

Step = Callable[[Tensor], Tensor]
Systems = Mapping[str, Callable[[int], Step]]
"""By name what makes a stream of a VAE of some base_dim."""


def diffusers_vae(base_dim: int) -> AutoencoderKLWan:
    """The oracle with reproducible random weights."""
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=base_dim).eval().requires_grad_(False)


def diffusers_stream(vae: AutoencoderKLWan) -> Step:
    """Steps of diffusers' own decoding loop, from normalised latents [1, z, 1, h, w] to video [1, 3, F, H, W]."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    vae.clear_cache()
    features = vae._feat_map

    def step(latents: Tensor) -> Tensor:
        x = vae.post_quant_conv(latents * std + mean)
        return vae.decoder(x, feat_cache=features, feat_idx=[0]).clamp(-1, 1)

    return step


def convolve_with_onednn(conv: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """`WanCausalConv3d.forward` on [B, C, T, H, W] without torch's choice of a backend, padding inside oneDNN."""
    pad_width, _, pad_height, _, pad_time, _ = conv._padding
    if cache_x is not None and pad_time:
        x = torch.cat([cache_x, x], dim=2)
        pad_time -= cache_x.shape[2]
    x = F.pad(x, (0, 0, 0, 0, pad_time, 0)) if pad_time else x
    x = x.contiguous(memory_format=torch.channels_last_3d)
    padding = [0, pad_height, pad_width]
    return torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups)


def with_onednn(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Route every 3-D convolution of `vae` to oneDNN, weights in its preferred memory format."""
    for conv in vae.modules():
        if isinstance(conv, WanCausalConv3d):
            conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
            conv.forward = partial(convolve_with_onednn, conv)
    return vae


def our_stream(base_dim: int) -> Step:
    """Steps of `aapt_fast` with the weights of `diffusers_vae`."""
    vae = WanVAE(WanVAEConfig(base_dim=base_dim)).eval()
    vae.load_state_dict(from_diffusers_state_dict(diffusers_vae(base_dim).state_dict()))
    return vae.stream().decode


SYSTEMS: dict[str, Callable[[int], Step]] = {
    OURS: our_stream,
    "diffusers": lambda base_dim: diffusers_stream(diffusers_vae(base_dim)),
    "diffusers + oneDNN": lambda base_dim: diffusers_stream(with_onednn(diffusers_vae(base_dim))),
}


def latents(seed: int) -> Tensor:
    """One latent frame [1, 16, 1, h, w]."""
    return torch.randn(1, 16, 1, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(seed))


def flops_per_frame(base_dim: int) -> int:
    """Floating-point operations of one steady step, convolutions counted as the direct sum over all their taps."""
    step = diffusers_stream(diffusers_vae(base_dim))
    for seed in range(WARM_UP):
        step(latents(seed))
    with FlopCounterMode(display=False) as counter:
        step(latents(WARM_UP))
    return counter.get_total_flops()


def measure(question: str, systems: Systems, ours: str, base_dim: int, rounds: int) -> list[dict]:
    """One result per system: milliseconds per latent frame over interleaved rounds, and the median ratio to `ours`."""
    steps = {name: build(base_dim) for name, build in systems.items()}
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    differences = dict.fromkeys(steps, 0.0)
    for number in range(WARM_UP + rounds):
        videos = {}
        for name, step in steps.items():
            start = time.perf_counter()
            videos[name] = step(latents(number))
            if number >= WARM_UP:
                milliseconds[name].append(1e3 * (time.perf_counter() - start))
        for name, video in videos.items():
            differences[name] = max(differences[name], (video - videos[ours]).abs().max().item())
    return [
        {
            "question": question,
            "system": name,
            "base_dim": base_dim,
            "size": [HEIGHT, WIDTH],
            "dtype": "float32",
            "rounds": rounds,
            "median_ms": statistics.median(times),
            "min_ms": min(times),
            "max_ms": max(times),
            "times_ours": statistics.median(t / ours for t, ours in zip(times, milliseconds[ours], strict=True)),
            "max_difference_to_ours": differences[name],
        }
        for name, times in milliseconds.items()
    ]


def what_ran() -> dict:
    """Versions, machine and the implementation behind our convolution."""
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "causal_conv3d": implementations()["causal_conv3d"]["cpu"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also the published width, base_dim 96")
    parser.add_argument("--rounds", type=int, default=15, help="measured latent frames per system")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for base_dim in (32, 96) if arguments.full else (32,):
        work = flops_per_frame(base_dim)
        print(f"base_dim {base_dim}, {HEIGHT}x{WIDTH}, float32: {work / 1e9:.1f} GFLOP per latent frame")
        print(f"{'system':20} {'median ms':>10} {'min ms':>10} {'GFLOP/s':>10} {'times ours':>11} {'difference':>11}")
        for result in measure(QUESTION, SYSTEMS, OURS, base_dim, arguments.rounds):
            rate = work / result["median_ms"] / 1e6
            print(
                f"{result['system']:20} {result['median_ms']:10.1f} {result['min_ms']:10.1f} {rate:10.1f} "
                f"{result['times_ours']:11.2f} {result['max_difference_to_ours']:11.1e}"
            )
            results.append({**result, "gflop_direct": work / 1e9})
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
