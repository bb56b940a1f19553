# SPDX-License-Identifier: Apache-2.0
"""Time of one more latent frame (four video frames) of a streaming decoder, with its layers one by one.

Decoders: AAPT's light one, those of Wan 2.1 and 2.2; random weights. First come the layers: FLOP, bytes that must move,
and what part of the shortest possible time each of them is. Then the sides take turns: torch's own operators and, where
they are on, the kernels; on a GPU also recorded as CUDA graphs.

    python -m bench.bench_decoder [--decoder light|wan2.1|wan2.2] [--size 736x416|832x480|1280x720] [--layers]

`--layers` prints the layers only, on any machine. `--tiny` tries the program out with narrow decoders.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor

from aapt_fast.cli.checks import parse_size
from aapt_fast.errors import require
from aapt_fast.models.vae.aapt import AAPTVAEConfig
from aapt_fast.models.vae.ring_cache import kernels_run
from aapt_fast.models.vae.video_stream import DecoderStream
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.profiling.decoders import DECODERS, VAEConfig, decoder_layers, layer_rows, make_vae, table_of
from aapt_fast.profiling.document import Document, result
from aapt_fast.profiling.interleaved import Call, clock_for, time_interleaved
from aapt_fast.profiling.roofline import H100
from aapt_fast.profiling.systems import default_dtype
from aapt_fast.streaming.graph import RECORDERS, GraphMemory, record
from bench.harness.program import current_device, finish, open_document, parser

SIZES = ("736x416", "832x480", "1280x720")
TORCH, KERNELS = "torch", "kernels"


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


def sides_of(stream: DecoderStream, kernels: str, latents: Tensor) -> dict[str, Call]:
    """Calls that decode `latents` [1, C, 1, h, w], launched and, on a GPU, recorded, with this choice of kernels."""
    with use_kernels(kernels):
        for _ in range(3):  # the first frame, the first doubled one, the steady state
            stream.decode(latents)
        name = KERNELS if kernels == "all" else TORCH

        def step() -> Tensor:
            with use_kernels(kernels):
                return stream.decode(latents)

        calls: dict[str, Call] = {name: step}
        if latents.device.type in RECORDERS:
            other = stream.clone()
            state = other.fix()
            recording = record(partial(other.step, latents), GraphMemory(latents.device), state)
            calls[f"{name}, recorded"] = recording.replay
    return calls


def measure(
    document: Document, name: str, config: VAEConfig, size: tuple[int, int], device: torch.device, limit_s: float
) -> None:
    """Time one decoder at one size, `limit_s` seconds per side; every side is a result, torch launched the baseline."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device, default_dtype(dtype), torch.no_grad():
        vae = make_vae(config).eval().requires_grad_(False).to(dtype)
    height, width = grid_of(config, size)
    latents = torch.randn(1, vae.latent_channels, 1, height, width, device=device, dtype=dtype)
    calls = sides_of(vae.stream(), "none", latents)
    with use_kernels("all"):
        if kernels_run(device, dtype):
            calls |= sides_of(vae.stream(), "all", latents)
    flops = sum(layer.flops for layer in decoder_layers(config, height, width))
    with torch.inference_mode():
        samples = time_interleaved(calls, clock_for(device), limit_s=limit_s, warm_ups=2)
    for side, sample in samples.items():
        entry = result(
            f"decoder/{name}/{size[0]}x{size[1]}/{str(dtype).removeprefix('torch.')}/{side}",
            sample,
            side,
            baseline=TORCH,
            ratio=sample.times(samples[TORCH]),
            tflops=flops / sample.p50 / 1e9,
        )
        document.add("results", entry)
        print(f"{side:20} {sample.p50:10.2f} ms {entry['tflops']:8.2f} TFLOP/s")


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--decoder", action="append", choices=DECODERS, help="may be given several times; else all")
    command.add_argument("--size", action="append", help="WIDTHxHEIGHT, may be given several times; else three sizes")
    command.add_argument("--layers", action="store_true", help="the layers only, on any machine")
    command.add_argument("--tiny", action="store_true", help="narrow decoders at 64x48, on any machine")
    arguments = command.parse_args()
    device = current_device(arguments.tiny or arguments.layers, "--tiny")
    document, layers = open_document(arguments.out), {}
    for text in arguments.size or (["64x48"] if arguments.tiny else SIZES):
        size = parse_size(text)
        assert size is not None
        for name in arguments.decoder or DECODERS:
            config = tiny(DECODERS[name]) if arguments.tiny else DECODERS[name]
            grid = grid_of(config, size)
            rows = layer_rows(decoder_layers(config, *grid), H100.matmul, H100.copy)
            print(f"{name}, {text}: one latent frame, bfloat16, shares of the shortest time on an {H100.name}")
            print("\n".join(table_of(rows)), flush=True)
            layers[f"{name}/{text}"] = rows
            if not arguments.layers:
                measure(document, name, config, size, device, 0.2 if arguments.tiny else 4.0)
    document.set(layers=layers)
    finish(document)


if __name__ == "__main__":
    main()
