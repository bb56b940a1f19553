# SPDX-License-Identifier: Apache-2.0
"""Decoding frame by frame: one stream for every causal video VAE, and the protocol of such a VAE."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.limits import in_units, memory_left
from aapt_fast.models.autocast import without_autocast
from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.memory import DecoderMemory, Frames
from aapt_fast.models.vae.packed_weights import PackedWeights
from aapt_fast.models.vae.ring_cache import RingCache, RingPlan, kernels_run
from aapt_fast.ops.ring_conv3d import to_uint8

Memory: TypeAlias = FeatureCache | RingCache


class CausalDecoder(Protocol):
    """The part of a video VAE that a `DecoderStream` uses."""

    @property
    def latent_channels(self) -> int:
        """C, channels of a latent frame."""

    def decode_chunk(self, latents: Tensor, cache: Any) -> Tensor:
        """The next latents [B, C, n, h, w] -> their video frames [B, 3, F, H, W] in -1..1, in the dtype of the weights.

        An empty `cache` is the start of a video, where n = 1 and F = 1; later chunks give F = 4 n. Every layer that
        looks back keeps its past frames in `cache`, a `FeatureCache` which belongs to the stream; a `LayeredDecoder`
        takes any `DecoderMemory`.
        """


@runtime_checkable
class LayeredDecoder(Protocol):
    """A `CausalDecoder` whose layers are written in terms of a `DecoderMemory`; its widths are multiples of 16."""

    def decode_chunk(self, latents: Tensor, memory: Any, out: str = "float") -> Tensor:
        """As of a `CausalDecoder`: latents [B, C, n, h, w] -> video [B, 3, F, H, W].

        `out` goes to `DecoderMemory.output`: with "uint8" the video is colours in 0..255.
        """

    packed_weights: PackedWeights
    """Weights that all its streams share."""

    def run_layers(self, latents: Tensor, memory: DecoderMemory) -> Frames:
        """The next chunk [B, C, n, h, w], in the dtype of the weights, through all layers."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, which have one dtype and device."""


class VideoVAE(CausalDecoder, Protocol):
    """The part of a video VAE that a `StreamModel` uses."""

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell, down and across."""

    def encode(self, video: Tensor) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, C, 1 + n, h, w]."""

    def stream(self) -> DecoderStream:
        """A decoder at the start of a video."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, which have one dtype and device."""


@dataclass(frozen=True)
class DecoderState:
    """A decoder between two chunks, on the host."""

    tensors: dict[str, Tensor]
    """Tensors [...] by the names of their layers; none before the first chunk."""
    size: tuple[int, ...] | None
    """(B, h, w) of the latents; None before the first chunk."""


class VideoDecoder(Protocol):
    """The state of one stream of video: a `DecoderStream`, or its recording."""

    def decode_uint8(self, latents: Tensor) -> Tensor:
        """The next latents [B, C, n, h, w] -> video frames in uint8 [B, F, H, W, 3], a tensor of their own."""

    def clone(self) -> VideoDecoder:
        """A decoder that continues from here on its own, bit for bit."""

    def reset(self) -> None:
        """Forget everything decoded so far."""

    def state(self) -> DecoderState:
        """A copy of the state, on the host."""

    def restore(self, state: DecoderState, device: torch.device) -> None:
        """Go back to what `state()` was, of this decoder or of another one of the same VAE, whose weights are there."""


StreamT = TypeVar("StreamT", bound="DecoderStream")


class DecoderStream:
    """Decodes latent frames as they come. The whole state is in this object: past features and the video's size.

    The features lie in a `RingCache` where the decoder's kernels run, else in a `FeatureCache`.

    Args:
        vae: the decoder.
        memory: makes the memory of a video, in the place of that choice.
    """

    def __init__(self, vae: CausalDecoder, memory: Callable[[], Memory] | None = None) -> None:
        self.vae, self._make_memory = vae, memory
        self._closed = self._warned = self._fixed = False
        self.reset()

    def reset(self) -> None:
        """Forget everything decoded so far: the next chunk starts another video, of any size."""
        self._cache: Memory | None = None
        self._size: tuple[int, ...] | None = None

    def close(self) -> None:
        """Give the memory of the stream back; `decode` and `clone` raise ValueError from here on."""
        self.reset()
        self._closed = True

    @torch.no_grad()
    def decode(self, latents: Tensor, out: str = "float") -> Tensor:
        """The next latents [B, C, n, h, w] -> their F video frames.

        The first chunk of a stream is one latent frame and gives F = 1; later ones give F = 4 n. `out`: "float" for
        [B, 3, F, H, W] in -1..1 in the dtype of the VAE, "uint8" for [B, F, H, W, 3] in 0..255, rounded to nearest and
        ready for a screen or an image encoder.
        Latents that are not finite give frames that are not, for as long as layers look back on them. On a CPU a
        warning says so once; on a GPU nobody looks, because the host would have to wait.
        Raises ValueError for another shape, dtype or size than the stream began with, an unknown `out`, a stream that
        is closed, and a video for whose memory there is no room; the stream stays as it was.
        """
        require(not self._closed, "stream", "an open one", "one that has been closed")
        require(out in ("float", "uint8"), "out", "'float' or 'uint8'", repr(out))
        require_latents(latents, self.vae.latent_channels)
        length, size = latents.shape[2], (latents.shape[0], *latents.shape[3:])
        if self._size is None:
            require(length == 1, "latents", "exactly one frame in the first chunk of a stream", length)
        require(self._size in (None, size), "latents", f"batch, height and width {self._size} as before", size)
        self._warn_of_nan(latents)
        if self._cache is None:
            self._cache, self._size = self._new_memory(size), size
        return self.step(latents, out)

    def decode_uint8(self, latents: Tensor) -> Tensor:
        """`decode` with `out` "uint8": the next latents [B, C, n, h, w] -> [B, F, H, W, 3]."""
        return self.decode(latents, "uint8")

    @torch.no_grad()
    def step(self, latents: Tensor, out: str = "float") -> Tensor:
        """The next latents [B, C, n, h, w], which `decode` would take, -> its result; for steps that are recorded.

        Nothing is checked. The first chunk of a stream goes through `decode`.
        """
        memory = self._cache
        assert memory is not None
        with without_autocast(latents.device):
            chunks = (latents,) if isinstance(memory, FeatureCache) else latents.split(1, dim=2)
            videos = [self._decoded(chunk, memory, out) for chunk in chunks]
        frames = 2 if out == "float" else 1
        return videos[0] if len(videos) == 1 else torch.cat(videos, dim=frames)

    def _decoded(self, latents: Tensor, memory: Memory, out: str) -> Tensor:
        """Latents [B, C, n, h, w] that `memory` takes at once -> the result of `decode`."""
        if out == "float":
            return self.vae.decode_chunk(latents, memory)
        if isinstance(self.vae, LayeredDecoder):
            return self.vae.decode_chunk(latents, memory, out).permute(0, 2, 3, 4, 1).contiguous()
        return frames_to_uint8(self.vae.decode_chunk(latents, memory))

    def fix(self) -> list[Tensor]:
        """Keep the state in the same tensors from here on, for steps that are recorded.

        Returns those [...] that a step which shall not count has to find as they were. Raises ValueError before the
        first chunk.
        """
        require(self._cache is not None, "stream", "one that has decoded a first chunk", "a new one")
        assert self._cache is not None
        self._cache, self._fixed = self._cache.fixed(), True
        return self._cache.to_restore()

    def state(self) -> DecoderState:
        """A copy of the state, on the host."""
        tensors = {} if self._cache is None else self._cache.tensors()
        return DecoderState({name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}, self._size)

    def restore(self, state: DecoderState, device: torch.device) -> None:
        """Go back to what `state()` was, of this stream or of another one of the same VAE, whose weights are there.

        Raises ValueError, having changed nothing, for a stream that is recorded, if the state is of one whose kernels
        were on and the kernels of this one are off, or the other way round.
        """
        kind = RingCache if RingCache.made(state.tensors) else FeatureCache
        if not state.tensors:
            self._cache = None
        elif self._cache is None or not isinstance(self._cache, kind):
            got = "one that goes on with the same kernels off or on"
            require(not self._fixed, "stream", got, "a recorded one with others")
            layered: Any = self.vae
            if self._make_memory is not None:
                self._cache = self._make_memory()
            else:
                self._cache = RingCache(layered.packed_weights) if kind is RingCache else FeatureCache()
        with torch.inference_mode(False), torch.no_grad():  # a step outside of inference mode may write to them
            tensors = {name: tensor.to(device, copy=True) for name, tensor in state.tensors.items()}
        if self._cache is not None:
            self._cache.restore(tensors)
        self._size = state.size

    def clone(self: StreamT) -> StreamT:
        """A stream that continues from here on its own, bit for bit like this one."""
        require(not self._closed, "stream", "an open one", "one that has been closed")
        other = type(self)(self.vae, self._make_memory)
        other._cache, other._size = None if self._cache is None else self._cache.clone(), self._size
        other._warned = self._warned
        return other

    def _new_memory(self, size: tuple[int, ...]) -> Memory:
        """The memory of a video whose latents have this (batch, height, width)."""
        if self._make_memory is not None:
            return self._make_memory()
        if not isinstance(self.vae, LayeredDecoder):
            return FeatureCache()
        weight = next(self.vae.parameters())
        if not kernels_run(weight.device, weight.dtype):
            return FeatureCache()
        needed, left = ring_room(self.vae, self.vae.latent_channels, size)
        if left is not None:
            room = f"a size whose decoder fits into the {in_units(left)} of memory left on {weight.device}"
            require(needed <= left, "latents", room, f"{size}, which needs {in_units(needed)}")
        return RingCache(self.vae.packed_weights)

    def _warn_of_nan(self, latents: Tensor) -> None:
        if self._warned or not latents.is_cpu or latents.isfinite().all():
            return
        self._warned = True
        text = "latents: expected finite numbers, got nan or inf; the frames that depend on them are not finite either"
        warnings.warn(text, stacklevel=3)


class ChunkedVAE(nn.Module):
    """Base of VAEs whose `decode_chunk` does everything: a whole clip is its frames one after the other."""

    latent_channels: int
    decode_chunk: Callable[[Tensor, Any], Tensor]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, 1 + n, h, w], as `encode` gives them -> video [B, 3, 1 + 4 n, H, W], clamped to -1..1.

        Raises ValueError for another shape or dtype.
        """
        require_latents(latents, self.latent_channels)
        cache = FeatureCache()
        return torch.cat([self.decode_chunk(frame, cache) for frame in latents.split(1, dim=2)], dim=2)

    def stream(self) -> DecoderStream:
        """A streaming decoder at the start of a clip."""
        return DecoderStream(self)


def ring_plan(vae: LayeredDecoder, channels: int, size: tuple[int, ...]) -> RingPlan:
    """The bytes of a `RingCache` for latents of `size` = (batch, height, width). Nothing is allocated."""
    plan, (batch, *grid) = RingPlan(), size
    dtype = next(vae.parameters()).dtype
    vae.run_layers(torch.empty(batch, channels, 1, *grid, dtype=dtype, device="meta"), plan)
    return plan


def ring_room(vae: LayeredDecoder, channels: int, size: tuple[int, ...]) -> tuple[int, int | None]:
    """Bytes that a new `RingCache` for latents of `size` = (batch, height, width) needs, and bytes that are left.

    Packed weights that are not there yet are included. The latter is None where it is unknown.
    """
    plan = ring_plan(vae, channels, size)
    needed = plan.bytes() + max(0, plan.weight_bytes - vae.packed_weights.bytes())
    return needed, memory_left(next(vae.parameters()).device)


def require_latents(latents: Tensor, channels: int) -> None:
    """Raise ValueError unless `latents` are floating-point [B, channels, n, h, w] with at least one element."""
    require_shape("latents", latents, "B", channels, "n", "h", "w")
    require(latents.is_floating_point(), "latents", "a floating-point dtype", latents.dtype)
    require(min(latents.shape) > 0, "latents", "at least one element in every dimension", list(latents.shape))


def frames_to_uint8(video: Tensor) -> Tensor:
    """Video [B, 3, F, H, W] in -1..1 -> uint8 [B, F, H, W, 3] on the same device, rounded to nearest."""
    return to_uint8(video.permute(0, 2, 3, 4, 1))
