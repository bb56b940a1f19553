# SPDX-License-Identifier: Apache-2.0
"""The shape of a Wan transformer: a plain dataclass, checked when made."""

from __future__ import annotations

from dataclasses import dataclass

from aapt_fast.errors import require
from aapt_fast.ops.window import WindowRule

SELF_FORCING = WindowRule(frames=3, window=18)
"""Rule of the published Self-Forcing checkpoint, which itself counts the block and says 21."""


@dataclass(frozen=True)
class WanConfig:
    """The transformer of Wan 2.1 and 2.2; the defaults are those of Wan 2.1 T2V 1.3B.

    `image_width` > 0 adds image tokens of that width to the cross-attention (Wan 2.1 I2V: 1280). `text_length` is
    what prompts are padded to with zeros. `cross_norm`: whether the input of the cross-attention is normalised. `eps`
    is that of every norm, except for the image tokens'. `window_rule` says which frames see which when the model runs
    causally; it has no weights. The patch is 2 x 2 in one frame, in all of these models.
    """

    heads: int = 12
    head_dim: int = 128
    layers: int = 30
    ffn_width: int = 8960
    in_channels: int = 16
    out_channels: int = 16
    text_width: int = 4096
    text_length: int = 512
    image_width: int = 0
    timestep_features: int = 256
    cross_norm: bool = True
    eps: float = 1e-6
    window_rule: WindowRule = SELF_FORCING

    def __post_init__(self) -> None:
        sizes = ("heads", "layers", "ffn_width", "in_channels", "out_channels", "text_width", "text_length")
        for name in sizes:
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("head_dim", "timestep_features"):
            size = getattr(self, name)
            require(size >= 2 and size % 2 == 0, name, "a positive even number", size)
        require(self.image_width >= 0, "image_width", "at least 0", self.image_width)
        require(self.eps > 0, "eps", "a positive number", self.eps)

    @property
    def width(self) -> int:
        """Width of the token stream."""
        return self.heads * self.head_dim

    @property
    def latent_channels(self) -> int:
        """Channels of the frames that the model makes."""
        return self.out_channels
