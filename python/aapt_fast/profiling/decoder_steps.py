# SPDX-License-Identifier: Apache-2.0
"""Steps of video decoders, one latent frame each, and their times: torch's operators against this package's kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aapt_fast.models.vae.ring_cache import kernels_run
from aapt_fast.models.vae.video_stream import DecoderStream
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.profiling.decoders import VAEConfig, make_vae
from aapt_fast.profiling.document import Document, result
from aapt_fast.profiling.interleaved import Call, clock_for, time_interleaved
from aapt_fast.profiling.systems import default_dtype
from aapt_fast.streaming.graph import RECORDERS, GraphMemory, record

Step = Callable[[Tensor], Tensor]
"""The next latents of a stream [1, z, 1, h, w] -> video frames [1, 3, F, H, W]."""

TORCH, KERNELS = "torch", "kernels"
COMPARED_FRAMES = 3
"""Latent frames that a stream decodes before it is timed: the first one, the first doubled one, the steady state."""


class OwnStep:
    """A `Step` of a new stream of this package under a choice of kernels, compiled from the second latent frame on."""

    def __init__(self, vae: Any, kernels: str, compiler: Callable[..., Any] | None = None) -> None:
        self._vae, self._kernels, self._compiler = vae, kernels, compiler
        self.stream: DecoderStream = vae.stream()
        self._later: Step | None = None

    def __call__(self, latents: Tensor) -> Tensor:
        """The next latents [1, z, 1, h, w] -> [1, 3, F, H, W]."""
        with use_kernels(self._kernels):
            if self._later is not None:
                return self._later(latents)
            video = self.stream.decode(latents)
            if self._compiler is not None:
                self.stream.fix()
                self._later = self._compiler(self.stream.step)
            return video

    def recorded(self, latents: Tensor) -> Call:
        """The next step with these latents [1, z, 1, h, w] as a recording, of a stream of its own; after two steps."""
        if self._later is not None:
            return record(partial(self, latents), GraphMemory(latents.device), self.stream.fix()).replay
        other = self.stream.clone()
        state = other.fix()
        with use_kernels(self._kernels):
            return record(partial(other.step, latents), GraphMemory(latents.device), state).replay


def random_vae(config: VAEConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Make a VAE with random weights on a device."""
    with device, default_dtype(dtype), torch.no_grad():
        return make_vae(config).eval().requires_grad_(False).to(dtype)


def own_sides(vae: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Step]]:
    """Makers of a step of a new stream of this package: by torch's operators, and by the kernels where they run."""
    sides: dict[str, Callable[[], Step]] = {TORCH: partial(OwnStep, vae, "none")}
    with use_kernels("all"):
        if kernels_run(device, dtype):
            sides[KERNELS] = partial(OwnStep, vae, "all")
    return sides


def open_sides(
    document: Document, name: str, sides: Mapping[str, Callable[[], Step]], frames: list[Tensor]
) -> tuple[dict[str, Call], dict[str, Tensor]]:
    """Calls that decode the last of `frames`, each [1, z, 1, h, w], and the videos of all, by side.

    A side that cannot run becomes a failure in the document.
    """
    calls: dict[str, Call] = {}
    videos: dict[str, Tensor] = {}
    for side, open_side in sides.items():
        try:
            step = open_side()
            videos[side] = torch.cat([step(frame) for frame in frames], 2).float().cpu()
            calls[side] = partial(step, frames[-1])
            if isinstance(step, OwnStep) and frames[-1].device.type in RECORDERS:
                calls[f"{side}, recorded"] = step.recorded(frames[-1])
        except (ImportError, RuntimeError) as error:
            print(f"{name}: {side}: no result: {document.fail(name, side, error)}", flush=True)
    return calls, videos


def result_name(decoder: str, size: tuple[int, int], dtype: torch.dtype) -> str:
    """Begin the names of a decoder's results; the side follows. `size` is (width, height) of the video."""
    return f"decoder/{decoder}/{size[0]}x{size[1]}/{str(dtype).removeprefix('torch.')}"


def measure_decoder(
    document: Document,
    decoder: str,
    config: VAEConfig,
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    limit_s: float,
) -> None:
    """Time one more latent frame of a decoder with random weights; adds a result per side, torch's is the baseline.

    `size` is (width, height) of the video, a multiple of the decoder's cell; `limit_s` the seconds for each side.
    """
    vae, name = random_vae(config, device, dtype), result_name(decoder, size, dtype)
    height, width = (length // vae.spatial_factor for length in (size[1], size[0]))
    latents = torch.randn(1, vae.latent_channels, COMPARED_FRAMES, height, width, device=device, dtype=dtype)
    with torch.inference_mode():
        calls, _ = open_sides(document, name, own_sides(vae, device, dtype), list(latents.split(1, 2)))
        samples = time_interleaved(calls, clock_for(device), limit_s=limit_s * len(calls), warm_ups=2) if calls else {}
    for side, sample in samples.items():
        baseline = samples.get(TORCH)
        ratio = None if baseline is None else sample.times(baseline)
        entry = result(f"{name}/{side}", sample, side, baseline=TORCH if ratio else None, ratio=ratio)
        document.add("results", entry)
