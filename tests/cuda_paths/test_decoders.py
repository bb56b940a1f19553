# SPDX-License-Identifier: Apache-2.0
"""Steps of decoders, and encoders of a picture, on the fake GPU against budgets: launches and memory.

They may only fall.
With kernels the ops of the decoder are stand-ins that launch once and allocate nothing, as the kernels do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from aapt_fast.models.vae.video_stream import DecoderStream
from aapt_fast.profiling.decoders import DECODERS, make_vae
from aapt_fast.streaming.graph import GraphMemory, record
from aapt_fast.testing.fake_cuda import FAKE_GPU, on_fake_gpu
from aapt_fast.testing.fake_gpu import Counts, FakeGPU
from aapt_fast.testing.fake_models import on_meta

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Budget:
    """Budgets of one more latent frame at 736x416 in bfloat16."""

    launches: int
    """All; of the decoder's ops with kernels."""
    kernels: int
    state: int
    """MiB that stay between two steps, without weights."""
    taken: int
    """MiB of all new tensors together."""
    peak: int
    """MiB at a time beside weights and state."""


# Convolutions and norms of Wan 2.1: 37 and 29; on Hopper convolutions take 14 norms along. With rings, a frame is
# written once by the layer that makes it, twice where a norm has a launch of its own or a residual is needed. Without,
# SiLU writes it behind the frames before it, which are copied. With kernels the frames end as colours.
WITH_KERNELS = {
    "wan2.1": Budget(launches=96, kernels=52, state=3845, taken=1430, peak=455),
    "wan2.2": Budget(launches=161, kernels=67, state=2920, taken=2220, peak=605),
    "light": Budget(launches=104, kernels=52, state=2955, taken=1800, peak=600),
}
WITHOUT = {
    "wan2.1": Budget(launches=234, kernels=0, state=1390, taken=11570, peak=1130),
    "wan2.2": Budget(launches=279, kernels=0, state=1050, taken=9735, peak=1355),
    "light": Budget(launches=438, kernels=0, state=1070, taken=8795, peak=1275),
}


def stream_of(name: str) -> DecoderStream:
    return on_fake_gpu(on_meta(lambda: make_vae(DECODERS[name]), torch.bfloat16)).stream()


def latents_of(stream: DecoderStream) -> torch.Tensor:
    scale = stream.vae.spatial_factor
    shape = (1, stream.vae.latent_channels, 1, 416 // scale, 736 // scale)
    return torch.zeros(shape, dtype=torch.bfloat16, device=FAKE_GPU)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As in sessions; with autograd's kernels of a torch without CUDA some operators would fall apart."""
    with torch.inference_mode():
        yield


def third_step(gpu: FakeGPU, name: str, out: str) -> tuple[DecoderStream, Counts, int]:
    """A stream after three steps, the counts of the third one, and the bytes in use before it; `out` as in `decode`."""
    stream = stream_of(name)
    latents = latents_of(stream)
    for _ in range(2):
        stream.decode(latents, out)
    live = gpu.live_bytes
    with gpu.counting() as counts:
        stream.decode(latents, out)
    assert not counts.uploads and not counts.syncs
    return stream, counts, live


def assert_within(budget: Budget, stream: DecoderStream, counts: Counts, live: int) -> None:
    assert stream._cache is not None
    found = Budget(
        counts.operators.total(),
        counts.operators["zero_"],
        stream._cache.bytes() // MIB,
        counts.taken_bytes // MIB,
        (counts.peak_bytes - live) // MIB,
    )
    for name, most in dataclasses.asdict(budget).items():
        assert getattr(found, name) <= most, f"{name} of {found}"


@pytest.mark.parametrize("name", DECODERS)
def test_a_step_with_kernels(name, gpu, decoder_kernels):
    stream, counts, live = third_step(gpu, name, "uint8")
    assert counts.operators["cat"] == counts.operators["constant_pad_nd"] == counts.operators["convolution"] == 0
    assert_within(WITH_KERNELS[name], stream, counts, live)
    assert counts.taken_bytes < 3 * 2**30


@pytest.mark.parametrize("name", DECODERS)
def test_a_step_without_kernels(name, gpu):
    assert_within(WITHOUT[name], *third_step(gpu, name, "float"))


def test_a_recorded_step_with_kernels(gpu, decoder_kernels):
    """Recording copies the slots only; replays read nothing but the rings, the latents and the weights."""
    stream = stream_of("wan2.1")
    latents = latents_of(stream)
    stream.decode(latents)
    stream.decode(latents)
    live = gpu.live_bytes
    with gpu.counting() as counts:
        recording = record(lambda: stream.step(latents), GraphMemory(FAKE_GPU), stream.fix())
    assert (counts.peak_bytes - live) // MIB <= 2 * WITH_KERNELS["wan2.1"].peak
    assert recording.replay().shape == (1, 3, 4, 416, 736)


def test_a_gpu_without_room_says_so_before_anything_is_allocated(gpu, decoder_kernels):
    stream = stream_of("wan2.1")
    hog = torch.empty(gpu.total_bytes - gpu.live_bytes - 3 * 2**30, dtype=torch.uint8, device=FAKE_GPU)
    latents, live = latents_of(stream), gpu.live_bytes
    with pytest.raises(ValueError, match=r"latents: expected a size whose decoder fits into the 3.22 GB .* on cuda:0"):
        stream.decode(latents)
    assert gpu.live_bytes == live
    del hog
    stream.decode(latents)


PICTURES = {"wan2.1": (143, 285), "light": (170, 380)}
"""Launches, and MiB of new tensors at a time, while a picture of 736x416 is encoded with kernels.

Every layer's weight is packed, a launch each."""


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_with_kernels(name, gpu, decoder_kernels):
    vae = stream_of(name).vae
    picture = torch.zeros(1, 3, 1, 416, 736, dtype=torch.bfloat16, device=FAKE_GPU)
    vae.encode(picture)
    live = gpu.live_bytes
    with gpu.counting() as counts:
        latents = vae.encode(picture)
    assert latents.shape == latents_of(vae.stream()).shape and latents.device == FAKE_GPU
    assert not counts.uploads and not counts.syncs
    assert counts.operators["convolution"] == 0 and counts.operators["zero_"] > 40
    found = counts.operators.total(), (counts.peak_bytes - live) // MIB
    assert all(each <= most for each, most in zip(found, PICTURES[name], strict=True)), found
