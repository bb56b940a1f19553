# SPDX-License-Identifier: Apache-2.0
"""Measure on this GPU the rates that the design of the kernels assumes, and compare them with predictions.

    python -m bench.measure_ceilings [--out F] [--only NUMBER] [--no-compile]

A prediction holds if the value is within 20 % of its range. A measurement that fails is noted in words. Without a GPU
nothing is measured, and the status is 3; --tiny tries the program out on any machine.

1  L2 to multiprocessor bandwidth                      bench/measure_hardware.py
2  bf16 matrix products at the generator's shapes      torch, that is cuBLASLt
3  attention of one frame over 36,000 keys             the backends of scaled_dot_product_attention
4  3-D convolutions of the video decoder               cuDNN, channels_last_3d
5  a whole step of the Wan 2.1 decoder                 eager; torch.compile and a CUDA graph
6  wgmma with shifted, swizzled descriptors            bench/measure_hardware.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.profiling.interleaved import captured, clock_for, time_interleaved
from aapt_fast.testing import targets
from aapt_fast.verification.baselines import BACKENDS, attention
from bench import measure_hardware
from bench.harness import ceilings
from bench.harness.predictions import Range, measurement
from bench.harness.program import current_device, finish, open_document, parser

Entries = Iterator[dict[str, Any]]
Failed = Callable[[str, str, object], None]
"""Called with a name, what ran, and the reason why there is no number."""

# (tokens, outputs, inputs) -> TFLOP/s predicted
MATRICES: dict[tuple[int, int, int], Range] = {
    (1196, 9216, 3072): (640, 680),
    (1196, 3072, 3072): (640, 680),
    (1196, 12288, 3072): (640, 680),
    (1196, 3072, 12288): (640, 680),
    (1196, 3584, 3584): (450, 520),
    (1196, 3584, 14336): (450, 520),
}
# (queries, keys, heads, width)
ATTENTIONS: dict[tuple[int, ...], Range] = {
    (1196, 35880, 24, 128): (585, 585),
    (1196, 35880, 28, 128): (455, 455),
    (1196, 35880, 32, 128): (520, 520),
}
# (channels, frames, height, width)
CONVOLUTIONS: dict[tuple[int, ...], Range] = {
    (384, 2, 104, 184): (600, 600),
    (192, 4, 208, 368): (420, 420),
    (96, 4, 416, 736): (300, 300),
}
DECODER_EAGER_MS: Range = (60, 60)
DECODER_GRAPH_MS: Range = (40, 40)

TINY_MATRICES = {(8, 24, 16): (1.0, 1.0)}
TINY_ATTENTIONS = {(8, 16, 2, 16): (1.0, 1.0)}
TINY_CONVOLUTIONS = {(4, 2, 6, 6): (1.0, 1.0)}


def shape_name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def matrices(device: torch.device, shapes: dict[tuple[int, int, int], Range]) -> Entries:
    """Measure linear layers on one frame's tokens."""
    for (tokens, outputs, inputs), predicted in shapes.items():
        x = torch.randn(tokens, inputs, device=device).bfloat16()
        weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).bfloat16()
        sample = time_interleaved({"linear": partial(F.linear, x, weight)}, clock_for(device), limit_s=2)["linear"]
        rate = 2 * tokens * outputs * inputs / sample.p50 / 1e9
        name = f"2/matmul/{shape_name((tokens, outputs, inputs))}/bf16"
        yield measurement(name, rate, "TFLOP/s", predicted, "torch linear, x [M, K], weight [N, K]", **sample.as_dict())


def attentions(device: torch.device, shapes: dict[tuple[int, ...], Range], failed: Failed) -> Entries:
    """Measure scaled dot product attention; the verdict is about the fastest backend."""
    for shape, predicted in shapes.items():
        queries, keys, heads, width = shape
        name = f"3/attention/{shape_name(shape)}/bf16"
        q = torch.randn(1, heads, queries, width, device=device).bfloat16()
        k, v = torch.randn(2, 1, heads, keys, width, device=device).bfloat16().unbind()
        calls: dict[str, Callable[[], Tensor]] = {}
        for label, backend in BACKENDS.items() if device.type == "cuda" else [("CPU", None)]:
            call = partial(attention, backend, q, k, v)
            try:
                call()
            except RuntimeError as error:
                failed(name, f"SDPA {label}", error)
                continue
            calls[label] = call
        samples = time_interleaved(calls, clock_for(device), limit_s=3) if calls else {}
        rates = {label: 4 * queries * keys * heads * width / sample.p50 / 1e9 for label, sample in samples.items()}
        if rates:
            best = max(rates, key=rates.__getitem__)
            more = {**samples[best].as_dict(), "all": rates}
            yield measurement(name, rates[best], "TFLOP/s", predicted, f"SDPA {best}, contiguous", **more)


def convolutions(device: torch.device, shapes: dict[tuple[int, ...], Range]) -> Entries:
    """Measure 3 x 3 x 3 convolutions of a stream: two past frames come along, space is padded."""
    for shape, predicted in shapes.items():
        channels, frames, height, width = shape
        x = torch.randn(1, channels, frames + 2, height, width, device=device).bfloat16()
        weight = (torch.randn(channels, channels, 3, 3, 3, device=device) / (27 * channels) ** 0.5).bfloat16()
        x, weight = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, weight))
        call = partial(F.conv3d, x, weight, padding=(0, 1, 1))
        sample = time_interleaved({"conv": call}, clock_for(device), limit_s=3)["conv"]
        rate = 2 * 27 * channels**2 * frames * height * width / sample.p50 / 1e9
        name = f"4/conv3d/{shape_name(shape)}/bf16"
        what = f"conv3d channels_last_3d, cuDNN {torch.backends.cudnn.version()}, the fastest algorithm it finds"
        yield measurement(name, rate, "TFLOP/s", predicted, what, **sample.as_dict())


# ---- the decoder ----


def decoder(device: torch.device, config: WanVAEConfig, grid: tuple[int, int]) -> tuple[WanVAE, Tensor]:
    """Make Wan's VAE with random weights, and latents [1, z, 1, h, w]."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        vae = WanVAE(config).to(dtype).eval().requires_grad_(False)
        latents = torch.randn(1, config.z_dim, 1, *grid).to(dtype)
    return vae, latents


def decoder_eager(
    device: torch.device, config: WanVAEConfig, grid: tuple[int, int], failed: Failed, limit_s: float = 8.0
) -> Entries:
    """Measure a steady step of the package's decoder and, if diffusers is there, of its decoder."""
    vae, latents = decoder(device, config, grid)
    stream = vae.stream()
    calls: dict[str, Callable[[], object]] = {"aapt_fast, eager": lambda: stream.decode(latents)}
    name = f"5/wan decoder step/{8 * grid[1]}x{8 * grid[0]}/{'bf16' if latents.dtype == torch.bfloat16 else 'fp32'}"
    try:
        calls["diffusers, eager"] = _diffusers_step(device, config, latents)
        calls["diffusers, eager"]()
    except Exception as error:
        calls.pop("diffusers, eager", None)
        failed(name, "diffusers, eager", error)
    for _ in range(3):  # first frame, first doubled one, then the steady state
        for call in calls.values():
            call()
    samples = time_interleaved(calls, clock_for(device), limit_s=limit_s, warm_ups=3)
    for what, sample in samples.items():
        yield measurement(name, sample.p50, "ms", DECODER_EAGER_MS, what, **sample.as_dict())


def _diffusers_step(device: torch.device, config: WanVAEConfig, latents: Tensor) -> Callable[[], Tensor]:
    from bench.baselines.diffusers_vae import diffusers_stream, diffusers_vae  # diffusers may be missing

    vae = diffusers_vae(config.base_dim).to(device, latents.dtype)
    for conv in (layer for layer in vae.modules() if isinstance(layer, torch.nn.Conv3d)):
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return partial(diffusers_stream(vae, latents[:, :, 0]), 0)


def decoder_compiled(
    device: torch.device, config: WanVAEConfig, grid: tuple[int, int], limit_s: float = 6.0
) -> Entries:
    """Measure the same step through torch.compile, replayed as a CUDA graph. New features are copied over old ones."""
    vae, latents = decoder(device, config, grid)
    with torch.no_grad():
        past = FeatureCache()
        for _ in range(3):
            vae.decode_chunk(latents, past)
        static = {key: frames.clone() for key, frames in past.tensors().items()}

        def functional(frames: Tensor, features: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            cache = FeatureCache(features)
            return vae.decode_chunk(frames, cache), cache.tensors()

        compiled = torch.compile(functional, dynamic=False) if device.type == "cuda" else functional

        def step() -> Tensor:
            video, features = compiled(latents, static)
            for key, frames in features.items():
                static[key].copy_(frames)
            return video

        for _ in range(3):
            step()
        call = captured(step) if device.type == "cuda" else step
        sample = time_interleaved({"step": call}, clock_for(device), limit_s=limit_s, warm_ups=3)["step"]
    name = f"5/wan decoder step/{8 * grid[1]}x{8 * grid[0]}/compiled"
    what = "aapt_fast, torch.compile and CUDA graph" if device.type == "cuda" else "aapt_fast, eager and functional"
    yield measurement(name, sample.p50, "ms", DECODER_GRAPH_MS, what, **sample.as_dict())


# ---- the program ----


def hardware(measure: Callable[[targets.Target], dict[str, Any]]) -> Entries:
    """Run one of `bench.measure_hardware`; raises RuntimeError where the probes cannot run."""
    target = targets.cuda()
    reason = target.why_not_hopper()
    if reason:
        raise RuntimeError(reason)
    yield measure(target)


def measurements(
    device: torch.device, tiny: bool, with_compile: bool, failed: Failed
) -> Iterator[tuple[str, Callable[[], Entries]]]:
    """List (label, function) of every measurement; the label begins with its number."""
    config, grid = (WanVAEConfig(base_dim=8), (4, 6)) if tiny else (WanVAEConfig(), (52, 92))
    yield "1 L2 bandwidth", partial(hardware, measure_hardware.l2_bandwidth)
    yield "2 matrix products", partial(matrices, device, TINY_MATRICES if tiny else MATRICES)
    yield "3 attention", partial(attentions, device, TINY_ATTENTIONS if tiny else ATTENTIONS, failed)
    yield "4 convolutions", partial(convolutions, device, TINY_CONVOLUTIONS if tiny else CONVOLUTIONS)
    yield "5 decoder, eager", partial(decoder_eager, device, config, grid, failed)
    yield "6 shifted descriptors", partial(hardware, measure_hardware.shifted_descriptors)
    if with_compile:
        yield "5 decoder, compiled", partial(decoder_compiled, device, config, grid)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", action="append", help="0 (the ceilings) to 6; may be given several times")
    options.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes a minute")
    options.add_argument("--tiny", action="store_true", help="tiny shapes, on any device")
    arguments = options.parse_args()
    device = current_device(arguments.tiny, "--tiny")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # cuDNN's best algorithm for each shape, not its guess
    document = open_document(arguments.out)
    document.note_clocks("before ceilings")
    print(ceilings.of(document, device, **(ceilings.TINY if arguments.tiny else {})))

    def failed(name: str, what_ran: str, reason: object) -> None:
        print(f"{name}: {what_ran}: no result: {document.fail(name, what_ran, reason)}", flush=True)

    for label, function in measurements(device, arguments.tiny, not arguments.no_compile, failed):
        if arguments.only and label.split()[0] not in arguments.only:
            continue
        try:
            for entry in function():
                document.add("measurements", entry)
                print(f"{entry['name']:48} {entry['value']} {entry['unit']}: {entry['verdict']} ({entry['what_ran']})")
        except Exception as error:
            failed(label, "measurement", error)
            if device.type == "cuda":
                torch.cuda.synchronize()  # ends the process if the context did not survive
    document.note_clocks("after ceilings")
    finish(document)


if __name__ == "__main__":
    main()
