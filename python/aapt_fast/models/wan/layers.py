# SPDX-License-Identifier: Apache-2.0
"""The parts of a Wan block. Norms, modulation and gates are computed in float32, as the original does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.models.resting import visiting
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.ops import normalise_and_rotate
from aapt_fast.ops.cache import Cache, KeysAndValues, attention

MAX_PERIOD = 10000.0


@dataclass(frozen=True)
class WanContext:
    """Keys (normalised) and values [B or 1, L, H, D] per layer, of the prompt and, maybe, of image tokens."""

    text: list[KeysAndValues]
    image: list[KeysAndValues] | None = None

    def layer(self, number: int) -> list[KeysAndValues]:
        """The keys and values that one layer attends to, one entry per kind of token."""
        return [self.text[number]] if self.image is None else [self.text[number], self.image[number]]

    @staticmethod
    def join(contexts: Sequence[WanContext]) -> WanContext:
        """One context of several rows, from contexts of one row each and with as many tokens."""

        def rows(parts: Sequence[list[KeysAndValues]]) -> list[KeysAndValues]:
            layers = zip(*parts, strict=True)
            return [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]

        images = [context.image for context in contexts if context.image is not None]
        return WanContext(rows([context.text for context in contexts]), rows(images) if images else None)


def layer_norm(x: Tensor, eps: float, affine: nn.LayerNorm | None = None) -> Tensor:
    """LayerNorm of x [..., d] over d in float32 (float64 if x is), with the weight and bias of `affine`, if any."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None, None) if affine is None else (affine.weight.to(wide), affine.bias.to(wide))
    return F.layer_norm(x.to(wide), x.shape[-1:], weight, bias, eps)


def sinusoids(timestep: Tensor, features: int) -> Tensor:
    """Timesteps [...] -> float32 [..., features]: cosines, then sines, of timestep / 10000^(i / half)."""
    half = features // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) * (-math.log(MAX_PERIOD) / half)
    angles = timestep.float()[..., None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], -1)


class SelfAttention(nn.Module):
    """Attention of the frames through the cache, which normalises, rotates and remembers."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width, self.head_dim = config.width, config.head_dim
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(width, config.eps) for _ in range(2))

    def forward(self, x: Tensor, cache: Cache, layer: int) -> Tensor:
        """Tokens x [B, F, N, d] -> [B, F, N, d]."""
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        return self.o(cache.attend(layer, q, k, v, self.norm_q.weight, self.norm_k.weight).flatten(-2))


class CrossAttention(nn.Module):
    """Attention to the text and, in a model that has them, to image tokens; the two results are added."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width, self.heads, self.eps = config.width, config.heads, config.eps
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = (nn.RMSNorm(width, config.eps) for _ in range(2))
        if config.image_width:
            self.k_img, self.v_img = (nn.Linear(width, width) for _ in range(2))
            self.norm_k_img = nn.RMSNorm(width, config.eps)

    @property
    def text_modules(self) -> list[nn.Module]:
        """The layers that only text and image tokens run through."""
        of_text: list[nn.Module] = [self.k, self.v, self.norm_k]
        return [*of_text, self.k_img, self.v_img, self.norm_k_img] if hasattr(self, "k_img") else of_text

    def text(self, tokens: Tensor) -> KeysAndValues:
        """Embedded text tokens [B, L, d] -> keys and values [B, L, H, D]."""
        return self._keys_and_values(tokens, self.k, self.v, self.norm_k)

    def image(self, tokens: Tensor) -> KeysAndValues:
        """Embedded image tokens [B, L, d] -> keys and values [B, L, H, D]."""
        return self._keys_and_values(tokens, self.k_img, self.v_img, self.norm_k_img)

    def forward(self, x: Tensor, context: list[KeysAndValues]) -> Tensor:
        """Tokens x [B, F, N, d], keys and values [B or 1, L, H, D] of each kind of context token -> [B, F, N, d]."""
        q = self.q(x).flatten(1, 2).unflatten(-1, (self.heads, -1))
        q = normalise_and_rotate(q, self.norm_q.weight, None, None, self.eps)
        attended = [attention(q, [(k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1))]) for k, v in context]
        return self.o(sum(attended[1:], attended[0]).flatten(-2)).view(x.shape)

    def _keys_and_values(self, tokens: Tensor, k: nn.Linear, v: nn.Linear, norm: nn.RMSNorm) -> KeysAndValues:
        keys, values = (visiting(linear, tokens.device)(tokens).unflatten(-1, (self.heads, -1)) for linear in (k, v))
        norm = visiting(norm, tokens.device)
        return normalise_and_rotate(keys, norm.weight, None, None, self.eps), values


class ImageEmbedding(nn.Module):
    """Image tokens [B, L, image_width] -> context tokens [B, L, d]. Its norms have torch's own eps."""

    def __init__(self, image_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_width),
            nn.Linear(image_width, image_width),
            nn.GELU(),
            nn.Linear(image_width, width),
            nn.LayerNorm(width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, image_width] -> [B, L, d]."""
        norm_in, first, act, second, norm_out = self.proj
        x = layer_norm(tokens, norm_in.eps, norm_in).to(tokens.dtype)
        return layer_norm(second(act(first(x))), norm_out.eps, norm_out).to(tokens.dtype)


class Head(nn.Module):
    """The last norm, modulated by the embedded timestep, and the projection to patches."""

    def __init__(self, width: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(width, outputs)
        self.modulation = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Tokens x [B, F, N, d] and time [B, F or 1, N or 1, d] -> [B, F, N, outputs]."""
        normed = layer_norm(x, self.eps)
        shift, scale = (self.modulation + time[..., None, :].to(normed.dtype)).unbind(-2)
        return self.head((normed * (1 + scale) + shift).to(x.dtype))
