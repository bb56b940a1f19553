# SPDX-License-Identifier: Apache-2.0
"""Protocols of what a `StreamModel` is made of: a generator, a video VAE, and the VAE's streaming decoder.

Streaming knows models by these protocols only, never by their class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.ops import FrameRope
from aapt_fast.ops.window import WindowRule


class GeneratorShape(Protocol):
    """The part of a generator's configuration that streaming uses."""

    @property
    def layers(self) -> int:
        """Layers with attention."""
        ...

    @property
    def heads(self) -> int:
        """Heads of a layer, for queries and keys alike."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        ...

    @property
    def latent_channels(self) -> int:
        """C, channels of a frame."""
        ...

    @property
    def text_width(self) -> int:
        """Width of prompt embeddings; 0 without a text stream."""
        ...

    @property
    def eps(self) -> float:
        """Of the RMSNorm of queries and keys."""
        ...

    @property
    def window_rule(self) -> WindowRule:
        """Frames that a step makes and sees, unless a sampler says otherwise."""
        ...


class VideoGenerator(Protocol):
    """A network that streams frames through a cache."""

    needs_image: bool
    """True if a run cannot begin without an image."""
    needs_prompt: bool
    """True if a run cannot begin without a prompt."""
    text_in_pages: bool
    """True if frames attend to the prompt through the cache, so that its keys take pages."""
    autocasts: bool
    """True if autocast chooses the dtype of its layers; False if the network does that itself."""

    @property
    def config(self) -> GeneratorShape:
        """Shape of the network."""
        ...

    @property
    def control(self) -> ControlConfig | None:
        """Control of a step; None without."""
        ...

    @property
    def weight(self) -> Tensor:
        """A parameter [...] that has the device and the dtype of the network."""
        ...

    def fit_grid(self, grid: tuple[int, int] | None, spatial_factor: int) -> tuple[int, int]:
        """Latent height and width of sessions. Raises ValueError for a `grid` that the network cannot have.

        `spatial_factor` is the VAE's; None stands for the grid that the network was trained at.
        """
        ...

    def tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a frame of latent height and width `grid`."""
        ...

    def rope(self, height: int, width: int) -> FrameRope:
        """Rotary positions of the tokens of frames of latent height and width."""
        ...

    def prepare_prompt(self, embeddings: Tensor) -> Tensor:
        """Prompt embeddings [1, L, text_width] as the network was trained on them."""
        ...

    def default_sampler(self) -> Any:
        """The `Sampler` of a session that names none."""
        ...


class VideoDecoder(Protocol):
    """The streaming side of a video VAE: the state of one stream of video."""

    def decode(self, latents: Tensor, out: str = "float") -> Tensor:
        """The next latents [B, C, n, h, w] -> F video frames: 1 for the first latent frame, 4 for every other.

        `out`: "float" for [B, 3, F, H, W] in -1..1, "uint8" for [B, F, H, W, 3].
        """
        ...

    def clone(self) -> VideoDecoder:
        """A decoder that continues from here on its own, bit for bit."""
        ...

    def reset(self) -> None:
        """Forget everything decoded so far."""
        ...


class FixableDecoder(VideoDecoder, Protocol):
    """A decoder whose steps can be recorded."""

    def clone(self) -> FixableDecoder:
        """See `VideoDecoder.clone`."""
        ...

    def fix(self) -> list[Tensor]:
        """From here on, keep the state in the same tensors [...], and give them. ValueError before the first frame."""
        ...


class VideoVAE(Protocol):
    """The part of a video VAE that streaming uses."""

    @property
    def latent_channels(self) -> int:
        """C, channels of a latent frame."""
        ...

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell, down and across."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """Video [B, 3, 1 + 4 n, H, W] in -1..1 -> latents [B, C, 1 + n, h, w]."""
        ...

    def stream(self) -> FixableDecoder:
        """A decoder at the start of a video."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, which have one dtype and device."""
        ...
