# SPDX-License-Identifier: Apache-2.0
"""The weights of a decoder's convolutions in the layout of `ops.ring_conv3d`, made once per model."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.ops.ring_conv3d import pack_weight


@dataclass(frozen=True)
class _Packed:
    source: weakref.ref[Tensor]
    version: int
    weight: Tensor

    def is_of(self, weight: Tensor) -> bool:
        """True if `weight` [...] is the one that was packed, and has not been written to or moved since."""
        same_place = self.weight.dtype == weight.dtype and self.weight.device == weight.device
        return self.source() is weight and self.version == _version(weight) and same_place


class PackedWeights:
    """Packed weights by layer, which every stream of a model shares.

    A layer is packed when a stream first asks for it, and again when its weight has been replaced or written to since;
    a stream keeps those that it has. A copy of a model, or one from a pickle, packs its own.
    """

    def __init__(self) -> None:
        self._made: weakref.WeakKeyDictionary[nn.Module, _Packed] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, ()

    def of(self, conv: Any, mode: str) -> Tensor:
        """The weight [P, taps, O, C] of a convolution; a layer is always used in the same `mode`."""
        packed = self._made.get(conv)
        if packed is None or not packed.is_of(conv.weight):
            with torch.inference_mode(False), torch.no_grad():
                packed = _Packed(
                    weakref.ref(conv.weight), _version(conv.weight), pack_weight(conv.weight.detach(), mode)
                )
            self._made[conv] = packed
        return packed.weight

    def bytes(self) -> int:
        """Bytes of the weights packed so far, without those of 1x1x1 kernels, which are in that layout already."""
        return sum(new_bytes(packed.weight, packed.source()) for packed in self._made.values())


def new_bytes(packed: Tensor, weight: Tensor | None) -> int:
    """Bytes of the `packed` form [P, taps, O, C] of a weight [...]; none where they share their memory."""
    if weight is not None and weight.untyped_storage()._cdata == packed.untyped_storage()._cdata:
        return 0
    return packed.nbytes


def _version(weight: Tensor) -> int:
    """A number that changes when `weight` [...] is written to; those of inference mode do not count."""
    return 0 if weight.is_inference() else weight._version
