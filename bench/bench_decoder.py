# SPDX-License-Identifier: Apache-2.0
"""Time of one more latent frame (four video frames) of a streaming decoder, with its layers one by one.

Decoders: AAPT's light one, those of Wan 2.1 and 2.2; random weights, or `--weights` of one. First come the layers:
FLOP, bytes that must move, and what part of the shortest possible time each of them is. Then the sides take turns:
    torch                   torch's operators, frames in channels_last_3d, one pass per norm and SiLU; the baseline
    torch, compiled         the same under torch.compile, with --compiled; takes minutes to compile
    kernels                 the kernels of this package, where they are on
    ..., recorded           each of these as a CUDA graph, on a GPU
    diffusers               the decoders of Wan as diffusers has them
    vLLM-Omni, SGLang       the same after the one's fast path, and the other's own, where they are installed
Each side's first video frames are compared with those of diffusers, for the light decoder with those of torch: peak
signal to noise in dB. cuDNN may try its algorithms out. Last comes the encoder of a picture, with kernels and without.

    python -m bench.bench_decoder [--decoder light|wan2.1|wan2.2] [--size 736x416|832x480|1280x720] [--compiled]
                                  [--weights FILE] [--layers]

`--layers` prints the layers only, on any machine. `--tiny` tries the program out with narrow decoders.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aapt_fast.cli.checks import parse_size
from aapt_fast.errors import require
from aapt_fast.models.files.load_vae import load_vae
from aapt_fast.models.vae.aapt import AAPTVAEConfig
from aapt_fast.models.vae.ring_cache import kernels_run
from aapt_fast.models.vae.wan import WanVAE
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.profiling.decoder_steps import (
    COMPARED_FRAMES,
    KERNELS,
    TORCH,
    OwnStep,
    Step,
    open_sides,
    own_sides,
    random_vae,
    result_name,
)
from aapt_fast.profiling.decoders import DECODERS, VAEConfig, decoder_layers, layer_rows, make_vae, table_of
from aapt_fast.profiling.document import Document, result
from aapt_fast.profiling.interleaved import Call, clock_for, time_interleaved
from aapt_fast.profiling.roofline import H100
from bench.baselines.wan_decoders import OTHERS, diffusers_step
from bench.harness import ceilings
from bench.harness.program import current_device, finish, open_document, parser

SIZES = ("736x416", "832x480", "1280x720")
COMPILED, DIFFUSERS = "torch, compiled", "diffusers"


@dataclass(frozen=True)
class Options:
    """How to measure: seconds of timed steps per side, weights of the decoder, and what compiles a step, or None."""

    limit_s: float
    weights: Path | None = None
    compiler: Callable[..., Any] | None = None
    tiny: bool = False


def tiny(config: VAEConfig) -> VAEConfig:
    """A narrow decoder of the same kind."""
    if isinstance(config, AAPTVAEConfig):
        return dataclasses.replace(config, encoder_widths=(32,) * 4, decoder_widths=(32,) * 4)
    return dataclasses.replace(config, base_dim=8, decoder_base_dim=8)


def grid_of(config: VAEConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the latents of a video of size (width, height). Raises ValueError for parts of a cell."""
    with torch.device("meta"):
        scale = make_vae(config).spatial_factor
    fits = size[0] % scale == size[1] % scale == 0
    require(fits, "--size", f"multiples of {scale} pixels", f"{size[0]}x{size[1]}")
    return size[1] // scale, size[0] // scale


def sides_of(vae: Any, options: Options, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Step]]:
    """What makes a step of a new stream, by the names of the sides."""
    sides = own_sides(vae, device, dtype)
    if options.compiler is not None:
        sides[COMPILED] = partial(OwnStep, vae, "none", options.compiler)
    if isinstance(vae, WanVAE):
        sides[DIFFUSERS] = partial(diffusers_step, vae)
        sides |= {name: partial(make, vae) for name, make in OTHERS.items()}
    return sides


def psnr(video: Tensor, expected: Tensor) -> float:
    """Peak signal to noise of a video in -1..1 against another one, [1, 3, F, H, W], in dB; equal ones have inf."""
    error = (video.double() - expected.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def measure(
    document: Document, name: str, config: VAEConfig, size: tuple[int, int], device: torch.device, options: Options
) -> None:
    """Time one decoder at one size; every side is a result, torch launched the baseline."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    best = ceilings.of(document, device, **(ceilings.TINY if options.tiny else {}))
    if options.weights is not None:
        vae = load_vae(options.weights, device=device, dtype=dtype)
    else:
        vae = random_vae(config, device, dtype)
    height, width = grid_of(config, size)
    latents = torch.randn(1, vae.latent_channels, COMPARED_FRAMES, height, width, device=device, dtype=dtype)
    where = result_name(name, size, dtype)
    with torch.inference_mode():
        calls, videos = open_sides(document, where, sides_of(vae, options, device, dtype), list(latents.split(1, 2)))
        samples = time_interleaved(calls, clock_for(device), limit_s=options.limit_s * len(calls), warm_ups=2)
    layers = decoder_layers(config, height, width)
    flops, itemsize = sum(layer.flops for layer in layers), latents.element_size()
    rows = layer_rows(layers, best.matmul_tflops * 1e12, best.copy_tb_s * 1e12, itemsize)
    floor_ms = sum(row["ceiling_ms"] for row in rows)
    expected = videos.get(DIFFUSERS, videos[TORCH])
    for side, sample in samples.items():
        likeness = psnr(videos[side.removesuffix(", recorded")], expected)
        entry = result(
            f"{where}/{side}",
            sample,
            side,
            baseline=TORCH,
            ratio=sample.times(samples[TORCH]),
            tflops=flops / sample.p50 / 1e9,
            share_of_ceiling=floor_ms / sample.p50,
            psnr_db=None if math.isinf(likeness) else likeness,
            psnr_against=DIFFUSERS if DIFFUSERS in videos else TORCH,
        )
        document.add("results", entry)
        print(f"{side:26} {sample.p50:10.2f} ms {entry['tflops']:8.2f} TFLOP/s {likeness:7.1f} dB", flush=True)
    measure_picture(document, where.replace("decoder", "encoder", 1), vae, size, device, options.limit_s / 2)


def measure_picture(
    document: Document, name: str, vae: Any, size: tuple[int, int], device: torch.device, limit_s: float
) -> None:
    """Time the encoder of one picture of `size` (width, height), with which a session begins."""
    picture = torch.rand(1, 3, 1, size[1], size[0], device=device, dtype=next(vae.parameters()).dtype) * 2 - 1

    def encode(kernels: str) -> Tensor:
        with use_kernels(kernels):
            return vae.encode(picture)

    calls: dict[str, Call] = {TORCH: partial(encode, "none")}
    with use_kernels("all"):
        if kernels_run(device, picture.dtype):
            calls[KERNELS] = partial(encode, "all")
    with torch.inference_mode():
        samples = time_interleaved(calls, clock_for(device), limit_s=limit_s * len(calls), warm_ups=2)
    for side, sample in samples.items():
        entry = result(f"{name}/{side}", sample, side, baseline=TORCH, ratio=sample.times(samples[TORCH]))
        document.add("results", entry)
        print(f"a picture, {side:15} {sample.p50:10.2f} ms", flush=True)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--decoder", action="append", choices=DECODERS, help="may be given several times; else all")
    command.add_argument("--size", action="append", help="WIDTHxHEIGHT, may be given several times; else three sizes")
    command.add_argument("--compiled", action="store_true", help="torch's operators under torch.compile as well")
    command.add_argument("--weights", type=Path, help="checkpoint of the one decoder; without it weights are random")
    command.add_argument("--layers", action="store_true", help="the layers only, on any machine")
    command.add_argument("--tiny", action="store_true", help="narrow decoders at 64x48, on any machine")
    arguments = command.parse_args()
    names = arguments.decoder or list(DECODERS)
    fits = arguments.weights is None or (len(names) == 1 and not arguments.tiny)
    require(fits, "--weights", "one --decoder, and no --tiny", ", ".join(names))
    device = current_device(arguments.tiny or arguments.layers, "--tiny")
    torch.backends.cudnn.benchmark = True
    document, layers = open_document(arguments.out), {}
    options = Options(
        limit_s=0.2 if arguments.tiny else 4.0,
        weights=arguments.weights,
        compiler=torch.compile if arguments.compiled else None,
        tiny=arguments.tiny,
    )
    for text in arguments.size or (["64x48"] if arguments.tiny else SIZES):
        size = parse_size(text)
        assert size is not None
        for name in names:
            config = tiny(DECODERS[name]) if arguments.tiny else DECODERS[name]
            grid = grid_of(config, size)
            rows = layer_rows(decoder_layers(config, *grid), H100.matmul, H100.copy)
            print(f"{name}, {text}: one latent frame, bfloat16, shares of the shortest time on an {H100.name}")
            print("\n".join(table_of(rows)), flush=True)
            layers[f"{name}/{text}"] = rows
            if not arguments.layers:
                measure(document, name, config, size, device, options)
    document.set(layers=layers)
    finish(document)


if __name__ == "__main__":
    main()
