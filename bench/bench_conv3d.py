# SPDX-License-Identifier: Apache-2.0
"""Convolutions of the streaming decoders one by one: three taps in time, one more latent frame, in bfloat16.

Each distinct 3x3x3 layer of a decoder is computed by, in turn:
    torch      conv3d of the past frames and the new ones, one tensor in channels_last_3d (cuDNN): the baseline
    CUTLASS    its own implicit GEMM for Hopper, compiled by nvcc when the program starts
    kernels    `ring_conv3d`, whose frames lie in a ring

    python -m bench.bench_conv3d [--decoder light|wan2.1|wan2.2] [--size 736x416] [--out F]

`--tiny` tries the program out with narrow decoders on any machine.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.cli.checks import parse_size
from aapt_fast.models.vae.ring_cache import kernels_run
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.ops.ring_conv3d import pack_weight, ring_conv3d
from aapt_fast.profiling.decoders import DECODERS, Layer, decoder_layers
from aapt_fast.profiling.document import Document, result
from aapt_fast.profiling.interleaved import Call, clock_for, time_interleaved
from bench.baselines import cutlass_conv3d
from bench.bench_decoder import grid_of, tiny
from bench.harness import ceilings
from bench.harness.program import current_device, finish, open_document, parser

TORCH, CUTLASS, KERNELS = "torch", "CUTLASS", "kernels"
TAPS = (3, 3, 3)


def calls_of(layer: Layer, device: torch.device, dtype: torch.dtype, library: Any) -> dict[str, Call]:
    """The sides for one layer. They read the same frames, and the same weights in the layout of each."""
    frames, height, width = layer.size
    ring = torch.randn(1, frames + 2, height, width, layer.inputs, device=device, dtype=dtype)
    weight = torch.randn(layer.outputs, layer.inputs, *TAPS, device=device, dtype=dtype) / (27 * layer.inputs) ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last_3d)
    x = ring.permute(0, 4, 1, 2, 3)
    calls: dict[str, Call] = {TORCH: partial(F.conv3d, x, weight, padding=(0, 1, 1))}
    out = torch.empty(1, frames, height, width, layer.outputs, device=device, dtype=dtype)
    if library is not None:
        calls[CUTLASS] = partial(cutlass_conv3d.convolve, library, x, weight, out.permute(0, 4, 1, 2, 3))
    with use_kernels("all"):
        if kernels_run(device, dtype):
            start, packed = torch.zeros(1, dtype=torch.int32, device=device), pack_weight(weight)
            calls[KERNELS] = partial(_with_kernels, ring, start, packed, out)
    return calls


def _with_kernels(ring: Tensor, start: Tensor, weight: Tensor, out: Tensor) -> None:
    with use_kernels("all"):
        ring_conv3d(ring, start, weight, None, None, out, None, out.shape[1])


def measure(document: Document, name: str, layer: Layer, calls: dict[str, Call], limit_s: float) -> None:
    """Time one layer; a side that does not take it becomes a failure in the document."""
    for side in list(calls):
        try:
            calls[side]()
        except RuntimeError as error:
            print(f"{name}: {side}: no result: {document.fail(name, side, error)}", flush=True)
            del calls[side]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    best = ceilings.of(document, device)
    floor_ms = best.floor_ms(layer.flops, 2 * layer.elements)
    for side, sample in (samples := time_interleaved(calls, clock_for(device), limit_s=limit_s)).items():
        entry = result(
            f"{name}/{side}",
            sample,
            side,
            baseline=TORCH,
            ratio=sample.times(samples[TORCH]),
            tflops=layer.flops / sample.p50 / 1e9,
            share_of_ceiling=floor_ms / sample.p50,
        )
        document.add("results", entry)
        print(f"{name:60} {side:8} {sample.p50:9.3f} ms {entry['tflops']:8.2f} TFLOP/s", flush=True)


def library_of(document: Document, device: torch.device, folder: Path) -> Any:
    """CUTLASS's convolution on a GPU of capability 9.0, or None, with the reason in the document."""
    try:
        if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
            raise RuntimeError("CUTLASS's convolution: expected a GPU of capability 9.0, got another device")
        return cutlass_conv3d.build(folder)
    except RuntimeError as error:
        print(f"{CUTLASS}: no result: {document.fail('conv3d', CUTLASS, error)}", flush=True)
        return None


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--decoder", action="append", choices=DECODERS, help="may be given several times; else all")
    command.add_argument("--size", default="736x416", help="WIDTHxHEIGHT")
    command.add_argument("--tiny", action="store_true", help="narrow decoders at 64x48, on any machine")
    arguments = command.parse_args()
    device = current_device(arguments.tiny, "--tiny")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cudnn.benchmark = True
    document, size = open_document(arguments.out), parse_size("64x48" if arguments.tiny else arguments.size)
    assert size is not None
    ceilings.of(document, device, **(ceilings.TINY if arguments.tiny else {}))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        library = library_of(document, device, Path(folder))
        for name in arguments.decoder or DECODERS:
            config = tiny(DECODERS[name]) if arguments.tiny else DECODERS[name]
            layers = dict.fromkeys(decoder_layers(config, *grid_of(config, size)))
            for layer in (layer for layer in layers if layer.taps == TAPS and not layer.attention):
                shape = "x".join(map(str, layer.size))
                what = f"conv3d/{name}/{layer.inputs}-{layer.outputs}/{shape}/{str(dtype).removeprefix('torch.')}"
                measure(document, what, layer, calls_of(layer, device, dtype, library), 0.05 if arguments.tiny else 2.0)
    finish(document)


if __name__ == "__main__":
    main()
