# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ComfyUI's Wan VAE: the names, attributes and calls that `patch` meets there, in two small layers.

ComfyUI's convolution takes its past out of a list that the caller fills, and its layers may cast their weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAST = 2


class Casting:
    comfy_cast_weights = False
    weight_function: tuple[object, ...] = ()
    bias_function: tuple[object, ...] = ()
    casts = 0

    def plain(self) -> bool:
        self.casts += not (plain := not (self.comfy_cast_weights or self.weight_function or self.bias_function))
        return plain


class Conv2d(Casting, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.plain() else super().forward(x.float()).to(x.dtype)


Conv2d.__module__ = "comfy.ops"


class CausalConv3d(Casting, nn.Conv3d):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs, 3)
        self._padding = (1, 1, 1, 1, PAST, 0)

    def forward(
        self, x: Tensor, cache_x: Tensor | None = None, cache_list: list | None = None, cache_idx: int | None = None
    ) -> Tensor:
        if cache_list is not None:
            cache_x, cache_list[cache_idx] = cache_list[cache_idx], None
        known = 0 if cache_x is None else cache_x.shape[2]
        x = x if cache_x is None else torch.cat([cache_x, x], 2)
        self.plain()
        return super().forward(F.pad(x, (1, 1, 1, 1, PAST - known, 0)))


class RMS_norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_first, self.scale, self.bias = True, channels**0.5, None
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale * self.gamma


class Resample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mode = "upsample2d"
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact"), Conv2d(channels, channels // 2, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        frames = self.resample(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(x), -1)).transpose(1, 2)


class WanVAE(nn.Module):
    """Decodes a frame at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([CausalConv3d(8, 8), CausalConv3d(4, 3)])
        self.norm, self.up = RMS_norm(8), Resample(8)

    def decode(self, z: Tensor) -> Tensor:
        """z [B, 8, T, h, w] -> [B, 3, T, 2 h, 2 w]."""
        past: list[Tensor | None] = [None, None]
        video = []
        for frame in z.split(1, 2):
            frame = self.up(self.norm(self._convolve(0, frame, past)))
            video.append(self._convolve(1, frame, past))
        return torch.cat(video, 2)

    def _convolve(self, number: int, x: Tensor, past: list[Tensor | None]) -> Tensor:
        before = past[number]
        kept = x if before is None else torch.cat([before[:, :, -1:], x], 2)
        out = self.convs[number](x, cache_list=past, cache_idx=number)
        assert past[number] is None  # the convolution gives the memory back
        past[number] = kept
        return out


WanVAE.__module__ = "comfy.ldm.wan.vae"


class VAE:
    """The object that ComfyUI's nodes hand on."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.first_stage_model = WanVAE().eval().requires_grad_(False)
        self.patcher = type("ModelPatcher", (), {})()
        self.patcher.model = self.first_stage_model
