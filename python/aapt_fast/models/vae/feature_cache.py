# SPDX-License-Identifier: Apache-2.0
"""The memory of causal layers between the chunks of a stream, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.ops._checks import records_gradients
from aapt_fast.ops.causal_conv3d import causal_conv3d
from aapt_fast.ops.ring_conv3d import spread_columns, to_uint8


class FeatureCache:
    """The memory of a stream between chunks: per layer, the last frames it has seen.

    The owner of the stream owns the cache and passes it to every forward call. Stored tensors [B, C, n, H, W] are
    replaced, never written to, so a clone may share them and still is an independent, bit-exact copy.

    It also is the memory of differentiable encoders and decoders (`memory.py`): every step calls the layers themselves.
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

    # ---- steps; frames are tensors [B, C, T, H, W] in `torch.channels_last_3d` ----

    def conv(self, x: Tensor, conv: nn.Module, residual: Tensor | None = None) -> Tensor:
        """A causal convolution of x [B, C, T, H, W], plus `residual` [B, O, T, H, W]."""
        return _plus(conv(x, self), residual)

    def norm_conv(
        self, x: Tensor, norm: Any, conv: Any, residual: Tensor | None = None, last_use: bool = False
    ) -> Tensor:
        """Norm, SiLU and a causal convolution of x [B, C, T, H, W], plus `residual` [B, O, T, H, W]."""
        if in_one_tensor(x) and not records_gradients(x, conv.weight, *norm.parameters()):
            return _plus(self._norm_conv_in_one_tensor(x, norm, conv), residual)
        return _plus(conv(F.silu(norm(x), inplace=True), self), residual)

    def enlarge(self, x: Tensor, resample: nn.Module) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T, 2 H, 2 W] by `resample`."""
        return resample(x)

    def double_time(self, x: Tensor, time_conv: Any) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 2 T, H, W]; the first frame of a stream stays one, later ones do not see it."""
        if self.get(time_conv.cache_key) is None:
            self.append(time_conv.cache_key, torch.zeros_like(x), time_conv.past)
            return x
        pairs = time_conv(x, self).permute(0, 2, 3, 4, 1).unflatten(-1, (2, -1))  # [B, T, H, W, 2, C]
        frames = pairs.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        return frames.permute(0, 4, 1, 2, 3)

    def shuffle_up(self, x: Tensor, upscale: nn.Module, conv: Any, time: int) -> Tensor:
        """[B, C, T, H, W] -> [B, O, time T, 2 H, 2 W]; the first frame of a stream stays one."""
        first = self.get(conv.cache_key) is None
        frames = spread_columns(upscale(x, self).permute(0, 2, 3, 4, 1), conv.in_channels, space=2)
        if first and time > 1:
            frames = torch.cat([frames[:, :1], frames[:, time:]], dim=1)
        return conv(frames.permute(0, 4, 1, 2, 3), self)

    def apply(self, function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
        """`function` of frames [B, C, T, H, W]."""
        return function(x, *others)

    def output(self, x: Tensor, out: str = "float") -> Tensor:
        """The frames [B, C, T, H, W]; `out` "uint8": as colours."""
        return x if out == "float" else to_uint8(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)

    def halve(self, x: Tensor, resample: nn.Module) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T, H / 2, W / 2] by `resample`."""
        return resample(x)

    def halve_time(self, x: Tensor, time_conv: Any) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T / 2, H, W]; the first frame of a stream stays as it is."""
        if self.get(time_conv.cache_key) is None:
            self.append(time_conv.cache_key, x, time_conv.past)
            return x
        # A convolution with stride two over [the last frame, chunk] is every second output of one with stride one.
        return time_conv(x, self)[:, :, 1::2]

    def halve_all(self, x: Tensor, conv: nn.Module) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T or T / 2, H / 2, W / 2]; of the first frame of a stream one is left."""
        return conv(x, self)

    def _norm_conv_in_one_tensor(self, x: Tensor, norm: Any, conv: Any) -> Tensor:
        """`norm_conv` of x [B, C, T, H, W]: the norm is written behind the past, where the convolution reads both."""
        batch, channels, length, height, width = x.shape
        frames = x.new_empty(batch, conv.past + length, height, width, channels).permute(0, 4, 1, 2, 3)
        past, present = frames.split([conv.past, length], dim=2)
        norm.silu_into(x, present)
        history = self.get(conv.cache_key)
        if history is not None:
            past.copy_(history)
        elif conv.repeats_first:
            past.copy_(present[:, :, :1])
        else:
            past.zero_()
        y = causal_conv3d(present, conv.weight, conv.bias, past)
        self.append(conv.cache_key, frames, conv.past)
        return y

    # ---- copies ----

    def clone(self) -> FeatureCache:
        """An independent copy, for the fork of a session."""
        return FeatureCache(self._frames)

    def fixed(self) -> FixedFeatureCache:
        """An independent copy that stays in the same tensors, for steps that are recorded."""
        return FixedFeatureCache({key: frames.clone() for key, frames in self._frames.items()})

    def to_restore(self) -> list[Tensor]:
        """The tensors [...] that a step which shall not count has to find as they were."""
        return list(self._frames.values())

    def bytes(self) -> int:
        """Bytes of the remembered frames."""
        return sum(frames.nbytes for frames in self._frames.values())

    def tensors(self) -> dict[str, Tensor]:
        """The remembered frames by layer, for saving a session; `FeatureCache(tensors)` is the way back."""
        return dict(self._frames)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors()` [B, C, n, H, W] was, of this memory or of another one of the same decoder."""
        self._frames = dict(tensors)


def in_one_tensor(x: Tensor) -> bool:
    """True where a norm of x [...] pays that is written behind the past: on GPUs, which wait for memory."""
    return x.is_cuda


def _plus(y: Tensor, residual: Tensor | None) -> Tensor:
    """y + residual, [B, C, T, H, W]; without gradients the sum takes the place of y."""
    if residual is None:
        return y
    return y + residual if records_gradients(y, residual) else y.add_(residual)


class FixedFeatureCache(FeatureCache):
    """The memory of a stream from its second chunk on, in tensors that are written to and never replaced."""

    def append(self, key: str, frames: Tensor, keep: int) -> None:
        """Add `frames` [B, C, T, H, W] in place. Raises KeyError for a layer that has seen no frame before."""
        self._frames[key].copy_(self._recent(key, frames, keep))

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors()` [B, C, n, H, W] was, in place."""
        for key, frames in self._frames.items():
            frames.copy_(tensors[key])

    def clone(self) -> FeatureCache:
        """An independent copy, which need not stay in the same tensors."""
        return FeatureCache({key: frames.clone() for key, frames in self._frames.items()})
