# SPDX-License-Identifier: Apache-2.0
"""Decoding frame by frame: one stream for every causal video VAE, and the protocol of such a VAE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.models.autocast import without_autocast
from aapt_fast.models.vae.feature_cache import FeatureCache


class CausalDecoder(Protocol):
    """The part of a video VAE that a `DecoderStream` uses."""

    @property
    def latent_channels(self) -> int:
        """C, channels of a latent frame."""

    def decode_chunk(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        """The next latents [B, C, n, h, w] -> their video frames [B, 3, F, H, W] in -1..1, in the dtype of the weights.

        An empty `cache` is the start of a video, where n = 1 and F = 1; later chunks give F = 4 n. Every layer that
        looks back keeps its past frames in `cache`, which belongs to the stream.
        """


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

    def decode(self, latents: Tensor) -> Tensor:
        """The next latents [B, C, n, h, w] -> video frames [B, 3, F, H, W], as `DecoderStream.decode` gives them."""

    def clone(self) -> VideoDecoder:
        """A decoder that continues from here on its own, bit for bit."""

    def reset(self) -> None:
        """Forget everything decoded so far."""

    def state(self) -> DecoderState:
        """A copy of the state, on the host."""

    def restore(self, state: DecoderState, device: torch.device) -> None:
        """Go back to what `state()` was, of this decoder or of another one of the same VAE, whose weights are there."""


class DecoderStream:
    """Decodes latent frames as they come. The whole state is in this object: past features and the video's size."""

    def __init__(self, vae: CausalDecoder) -> None:
        self.vae = vae
        self.reset()

    def reset(self) -> None:
        """Forget everything decoded so far: the next chunk starts another video, of any size."""
        self._cache = FeatureCache()
        self._size: tuple[int, ...] | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor, out: str = "float") -> Tensor:
        """The next latents [B, C, n, h, w] -> their F video frames.

        The first chunk of a stream is one latent frame and gives F = 1; later ones give F = 4 n. `out`: "float" for
        [B, 3, F, H, W] in -1..1 in the dtype of the VAE, "uint8" for [B, F, H, W, 3] in 0..255, rounded to nearest and
        ready for a screen or an image encoder.
        Raises ValueError for another shape, dtype or size than the stream began with, and an unknown `out`.
        """
        require(out in ("float", "uint8"), "out", "'float' or 'uint8'", repr(out))
        require_latents(latents, self.vae.latent_channels)
        length, size = latents.shape[2], (latents.shape[0], *latents.shape[3:])
        if self._size is None:
            require(length == 1, "latents", "exactly one frame in the first chunk of a stream", length)
            self._size = size
        require(size == self._size, "latents", f"batch, height and width {self._size} as before", size)
        with without_autocast(latents.device):
            video = self.vae.decode_chunk(latents, self._cache)
        return video if out == "float" else frames_to_uint8(video)

    def fix(self) -> list[Tensor]:
        """Keep the state in the same tensors [...] from here on, for steps that are recorded, and return these.

        Raises ValueError before the first chunk.
        """
        require(len(self._cache) > 0, "stream", "one that has decoded a first chunk", "a new one")
        self._cache = self._cache.fixed()
        return list(self._cache.tensors().values())

    def state(self) -> DecoderState:
        """A copy of the state, on the host."""
        tensors = {name: tensor.to("cpu", copy=True) for name, tensor in self._cache.tensors().items()}
        return DecoderState(tensors, self._size)

    def restore(self, state: DecoderState, device: torch.device) -> None:
        """Go back to what `state()` was, of this stream or of another one of the same VAE, whose weights are there."""
        self._cache.restore({name: tensor.to(device, copy=True) for name, tensor in state.tensors.items()})
        self._size = state.size

    def clone(self) -> DecoderStream:
        """A stream that continues from here on its own, bit for bit like this one."""
        other = DecoderStream(self.vae)
        other._cache, other._size = self._cache.clone(), self._size
        return other


def require_latents(latents: Tensor, channels: int) -> None:
    """Raise ValueError unless `latents` are floating-point [B, channels, n, h, w] with at least one element."""
    require_shape("latents", latents, "B", channels, "n", "h", "w")
    require(latents.is_floating_point(), "latents", "a floating-point dtype", latents.dtype)
    require(min(latents.shape) > 0, "latents", "at least one element in every dimension", list(latents.shape))


def frames_to_uint8(video: Tensor) -> Tensor:
    """Video [B, 3, F, H, W] in -1..1 -> uint8 [B, F, H, W, 3] on the same device, rounded to nearest."""
    wide = video.float().clamp(-1, 1).add_(1).mul_(127.5).round_()
    return wide.permute(0, 2, 3, 4, 1).to(torch.uint8, memory_format=torch.contiguous_format)
