# SPDX-License-Identifier: Apache-2.0
"""Weights in float8 with scales beside them, as ComfyUI and others write them.

    weight = float8 weight * scale        scale: one number, or one per row

The scale of `x.weight` is called `x.scale_weight` or `x.weight_scale`. Such files also hold a mark `scaled_fp8`, scales
of the inputs and notes for kernels that compute in float8; these are not used here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.read import Change

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE = re.compile(r"(.+\.)(scale_weight|weight_scale)")
_UNUSED = re.compile(r"(.+\.)?(scaled_fp8|scale_input|input_scale|comfy_quant)")


def split_scales(tensors: Mapping[str, Tensor], source: object) -> tuple[dict[str, Tensor], dict[str, list[Change]]]:
    """Weights [...] of a file without their scales, and the change to float32 of each weight that has one.

    Both are by names in the file. Other files come back as they are. Raises CheckpointError (file, key, expected, got)
    for a scale without a float8 weight, and for one of another shape than [], [1], [rows] or [rows, 1].
    """
    scales = {f"{match[1]}weight": key for key in tensors if (match := _SCALE.fullmatch(key))}
    if not scales:
        return dict(tensors), {}
    weights = {key: tensor for key, tensor in tensors.items() if not (_SCALE.fullmatch(key) or _UNUSED.fullmatch(key))}
    changes: dict[str, list[Change]] = {}
    for name, key in scales.items():
        weight = weights.get(name)
        if weight is None or weight.dtype not in FLOAT8:
            got = "none" if weight is None else f"one in {weight.dtype}"
            raise CheckpointError(f"{source}: {key}: expected a weight {name} in float8, got {got}")
        shape = list(tensors[key].shape)
        if shape not in ([], [1], [1, 1], list(weight.shape[:1]), [*weight.shape[:1], 1]):
            expected = f"one number, or {list(weight.shape[:1])} with one per row"
            raise CheckpointError(f"{source}: {key}: expected {expected}, got shape {shape}")
        changes[name] = [_Scaled(tensors[key])]
    return weights, changes


class _Scaled:
    """The change of a weight by its scale [], [1], [rows] or [rows, 1]."""

    def __init__(self, scale: Tensor) -> None:
        self._scale = scale

    def __call__(self, weight: Tensor) -> Tensor:
        """Weight [rows, ...] in float8 -> float32."""
        return weight.float() * self._scale.float().reshape(-1, *[1] * (weight.dim() - 1))
