# SPDX-License-Identifier: Apache-2.0
"""A clip through the Wan VAE piece by piece: the state of one stream, in one object, for decoding and for encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.vae.layers import FeatureCache, frames_to_uint8, require_output, without_autocast

if TYPE_CHECKING:
    from aapt_fast.models.vae.wan import WanVAE

AnyStream = TypeVar("AnyStream", bound="_Stream")


class _Stream:
    """The state of a clip between two chunks: the features that causal layers look back on, and the clip's size."""

    def __init__(self, vae: WanVAE) -> None:
        self.vae = vae
        self.reset()

    def reset(self) -> None:
        """Forget the clip: the next chunk is the first of another, of any size."""
        self._cache = FeatureCache()
        self._size: tuple[int, ...] | None = None

    def clone(self: AnyStream) -> AnyStream:
        """A stream that goes on from here on its own, bit for bit like this one."""
        other = type(self)(self.vae)
        other._cache, other._size = self._cache.clone(), self._size
        return other

    def _take(self, argument: str, chunk: Tensor, per_step: int) -> None:
        """Check that `chunk` [B, C, T, H, W] can follow: one frame, then multiples of `per_step`, all of one size."""
        length, size = chunk.shape[2], (chunk.shape[0], *chunk.shape[3:])
        if self._size is None:
            require(length == 1, argument, "exactly one frame in the first chunk of a stream", length)
            self._size = size
        require(size == self._size, argument, f"batch, height and width {self._size} as before", size)
        if len(self._cache):
            require(length % per_step == 0, argument, f"a multiple of {per_step} frames after the first", length)


class DecoderStream(_Stream):
    """Decodes latent frames as they come; the whole state is in this object."""

    @torch.no_grad()
    def decode(self, latents: Tensor, out: str = "float") -> Tensor:
        """The next normalised latents [B, z, t, h, w] -> their F video frames.

        The first chunk of a stream is one latent frame and gives F = 1; later ones give F = 4 t. `out`: "float" for
        [B, 3, F, H, W] in -1..1 in the dtype of the VAE, "uint8" for [B, F, H, W, 3] in 0..255, rounded to nearest and
        ready for a screen or an image encoder.
        Raises ValueError for another shape, dtype or size than the stream began with, and an unknown `out`.
        """
        require_output(out)
        self.vae._check_latents(latents)
        self._take("latents", latents, per_step=1)
        with without_autocast(latents.device):
            frames = self.vae._decode_chunk(latents, self._cache)
        return frames if out == "float" else frames_to_uint8(frames)

    def fix(self) -> list[Tensor]:
        """Keep the state in the same tensors from here on, and give them. Raises ValueError before the first chunk."""
        require(len(self._cache) > 0, "stream", "one that has decoded a first chunk", "a new one")
        self._cache = self._cache.fixed()
        return list(self._cache.tensors().values())


class EncoderStream(_Stream):
    """Encodes video frames as they come; the whole state is in this object."""

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """The next video [B, 3, F, H, W] in -1..1 -> normalised latents [B, z, t, h, w], the posterior mean.

        The first chunk of a stream is one video frame and gives t = 1; later ones are F = 4 t.
        Raises ValueError for another shape, dtype or size than the stream began with.
        """
        self.vae._check_video(video)
        self._take("video", video, per_step=self.vae.config.temporal_factor)
        with without_autocast(video.device):
            mean = self.vae._encode_chunk(video, self._cache).chunk(2, dim=1)[0]
            return self.vae._normalise(mean)
