# SPDX-License-Identifier: Apache-2.0
"""The memory of causal layers between the chunks of a stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class FeatureCache:
    """The memory of a stream between chunks: per layer, the last frames it has seen.

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

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors()` [B, C, n, H, W] was, of this memory or of another one of the same decoder."""
        self._frames = dict(tensors)


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
