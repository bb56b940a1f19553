# SPDX-License-Identifier: Apache-2.0
"""Protocol of generators: streaming knows them by it only, never by their class.

vae/video_stream.py has the one of video VAEs.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    @property
    def heads(self) -> int:
        """Heads of a layer, for queries and keys alike."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    @property
    def latent_channels(self) -> int:
        """C, channels of a frame."""

    @property
    def text_width(self) -> int:
        """Width of prompt embeddings; 0 without a text stream."""

    @property
    def eps(self) -> float:
        """Epsilon of the RMSNorm of queries and keys."""

    @property
    def window_rule(self) -> WindowRule:
        """Frames that a step makes and sees, unless a sampler says otherwise."""


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

    @property
    def control(self) -> ControlConfig | None:
        """Control of a step; None without."""

    @property
    def weight(self) -> Tensor:
        """A parameter [...] that has the device and the dtype of the network."""

    @property
    def text_modules(self) -> Sequence[nn.Module]:
        """Modules that only a prompt runs through, when a run begins; none without text. They may rest on the host."""

    def fit_grid(self, grid: tuple[int, int] | None, spatial_factor: int) -> tuple[int, int]:
        """Latent height and width of sessions. Raises ValueError for a `grid` that the network cannot have.

        `spatial_factor` is the VAE's; None stands for the grid that the network was trained at.
        """

    def tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of a frame of latent height and width `grid`."""

    def rope(self, height: int, width: int) -> FrameRope:
        """Rotary positions of the tokens of frames of latent height and width."""

    def prepare_prompt(self, embeddings: Tensor) -> Tensor:
        """Prompt embeddings [1, L, text_width] as the network was trained on them."""

    def default_sampler(self) -> Any:
        """The `Sampler` of a session that names none."""
