# SPDX-License-Identifier: Apache-2.0
"""Layers that the video VAEs share: the causal convolution and what a stream remembers for it, space to channels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.errors import require
from aapt_fast.ops.causal_conv3d import causal_conv3d, tap_major


class FeatureCache:
    """What a stream remembers between chunks: per layer, the last frames it has seen.

    The owner of the stream owns the cache and passes it to every forward call. Stored tensors [B, C, n, H, W] are
    replaced, never written to, so a clone may share them and still is an independent, bit-exact copy.
    """

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self._frames = dict(tensors or {})

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, key: str) -> Tensor | None:
        """The frames [B, C, n, H, W] remembered under `key`, or None before the first chunk."""
        return self._frames.get(key)

    def append(self, key: str, frames: Tensor, keep: int) -> None:
        """Add `frames` [B, C, T, H, W] to those under `key` and keep the last `keep`; at first the past is zero."""
        self._frames[key] = self._recent(key, frames, keep).clone(memory_format=torch.channels_last_3d)

    def _recent(self, key: str, frames: Tensor, keep: int) -> Tensor:
        past = self._frames.get(key)
        recent = frames[:, :, -keep:]
        missing = keep - recent.shape[2]
        if not missing:
            return recent
        if past is None:
            return F.pad(recent, (0, 0, 0, 0, missing, 0))
        return torch.cat([past[:, :, -missing:], recent], dim=2)

    def clone(self) -> FeatureCache:
        """An independent copy, for the fork of a session."""
        return FeatureCache(self._frames)

    def fixed(self) -> FixedFeatureCache:
        """An independent copy that stays in the same tensors, for steps that are recorded."""
        return FixedFeatureCache({key: frames.clone() for key, frames in self._frames.items()})

    def tensors(self) -> dict[str, Tensor]:
        """The remembered frames by layer, for saving a session; `FeatureCache(tensors)` is the way back."""
        return dict(self._frames)


class FixedFeatureCache(FeatureCache):
    """What a stream remembers, from its second chunk on, in tensors that are written to and never replaced."""

    def append(self, key: str, frames: Tensor, keep: int) -> None:
        """As `FeatureCache.append`, frames [B, C, T, H, W]. KeyError for a layer that has seen no frame before."""
        self._frames[key].copy_(self._recent(key, frames, keep))

    def clone(self) -> FeatureCache:
        """An independent copy, which need not stay in the same tensors."""
        return FeatureCache({key: frames.clone() for key, frames in self._frames.items()})


class CausalConv3d(nn.Conv3d):
    """`ops.causal_conv3d` with parameters `weight` [O, C, kt, kh, kw] and `bias` [O].

    The weight is stored in the layout of `tap_major`. Its shape, and so a state dict, is the usual one, but
    `weight.is_contiguous()` is False: safetensors asks for `.contiguous()` before saving.

    `cache_key` names the layer in a `FeatureCache`; the model that owns the layer sets it with `name_cached_layers`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.weight = nn.Parameter(tap_major(self.weight.detach()))
        self.cache_key = ""

    @property
    def past(self) -> int:
        """Number of frames before the present one that an output depends on."""
        return self.kernel_size[0] - 1

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """The next chunk [B, C, T, H, W] of the stream that `cache` belongs to, or a whole clip -> [B, O, T, H, W]."""
        history = cache.get(self.cache_key) if cache is not None else None
        y = causal_conv3d(x, self.weight, self.bias, history)
        if self.past and cache is not None:
            cache.append(self.cache_key, x, self.past)
        return y


def name_cached_layers(model: nn.Module) -> None:
    """Give every `CausalConv3d` in `model` its qualified module name as `cache_key`."""
    for name, layer in model.named_modules():
        if isinstance(layer, CausalConv3d):
            layer.cache_key = name


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The context in which a stream computes: in the dtype of its weights, whatever autocast the caller is in."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def constant(values: Sequence[float]) -> Tensor:
    """`values` as a tensor [n] for a buffer that no file holds: it has them even where a module is built on meta."""
    device = torch.get_default_device()
    return torch.tensor(values, dtype=torch.float32, device="cpu" if device.type == "meta" else device)


def frames_to_uint8(video: Tensor) -> Tensor:
    """Video [B, 3, F, H, W] in -1..1 -> uint8 [B, F, H, W, 3] on the same device, rounded to nearest."""
    wide = video.float().clamp(-1, 1).add_(1).mul_(127.5).round_()
    return wide.permute(0, 2, 3, 4, 1).to(torch.uint8, memory_format=torch.contiguous_format)


def require_output(out: str) -> None:
    """Check what a streaming decoder is asked to give: `float` video or `uint8` frames."""
    require(out in ("float", "uint8"), "out", "'float' or 'uint8'", repr(out))


def fold_space(x: Tensor, factor: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C factor^2, T, H/factor, W/factor]: pixel blocks become channels."""
    return _per_frame(x, F.pixel_unshuffle, factor)


def unfold_space(x: Tensor, factor: int) -> Tensor:
    """[B, C factor^2, T, H, W] -> [B, C, T, H factor, W factor], the inverse of `fold_space`."""
    return _per_frame(x, F.pixel_shuffle, factor)


def _per_frame(x: Tensor, rearrange, factor: int) -> Tensor:  # type: ignore[no-untyped-def]
    batch, _, frames = x.shape[:3]
    y = rearrange(x.transpose(1, 2).flatten(0, 1), factor)
    return y.unflatten(0, (batch, frames)).transpose(1, 2)
