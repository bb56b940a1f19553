# SPDX-License-Identifier: Apache-2.0
"""Names of the Wan VAE's parameters in diffusers' `AutoencoderKLWan` and in the original checkpoints.

A name is the place of a layer in the model, the part of that layer, and the parameter. In the original Wan 2.1 layers
are numbered through; Wan 2.2 (`is_residual`) and diffusers number levels, and layers within a level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from aapt_fast.errors import CheckpointError

# Places that every model has, original -> diffusers; {side} is encoder or decoder.
_FIXED_PLACES = {
    "{side}.conv1": "{side}.conv_in",
    "{side}.head.0": "{side}.norm_out",
    "{side}.head.2": "{side}.conv_out",
    "{side}.middle.0": "{side}.mid_block.resnets.0",
    "{side}.middle.1": "{side}.mid_block.attentions.0",
    "{side}.middle.2": "{side}.mid_block.resnets.1",
}
# Parts of a layer, original -> diffusers; "" is a layer that has parameters itself.
_PARTS = {
    "": "",
    ".residual.0": ".norm1",
    ".residual.2": ".conv1",
    ".residual.3": ".norm2",
    ".residual.6": ".conv2",
    ".shortcut": ".conv_shortcut",
    ".resample.1": ".resample.1",
    ".time_conv": ".time_conv",
    ".norm": ".norm",
    ".to_qkv": ".to_qkv",
    ".proj": ".proj",
}
_PARAMETERS = ("weight", "bias", "gamma")


class WanVAEKeys:
    """Translates names between the two layouts, for a model of `levels` resolutions."""

    def __init__(self, levels: int = 4, num_res_blocks: int = 2, is_residual: bool = False) -> None:
        places = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
        for original, diffusers in _FIXED_PLACES.items():
            places |= {original.format(side=side): diffusers.format(side=side) for side in ("encoder", "decoder")}
        for level in range(levels):
            places |= _level_places(level, level == levels - 1, num_res_blocks, is_residual)
        self._to_diffusers = places
        self._to_original = {diffusers: original for original, diffusers in places.items()}
        self._parts_to_original = {diffusers: original for original, diffusers in _PARTS.items()}

    def to_diffusers(self, key: str) -> str:
        """The name in diffusers of the original `key`. Raises CheckpointError, with the key, if unknown."""
        return _translate(key, self._to_diffusers, _PARTS, "the original Wan VAE")

    def to_original(self, key: str) -> str:
        """The original name of diffusers' `key`. Raises CheckpointError, with the key, if unknown."""
        return _translate(key, self._to_original, self._parts_to_original, "diffusers' AutoencoderKLWan")


def diffusers_levels(state: Mapping[str, Tensor]) -> int:
    """The number of resolutions of a model with diffusers' names; tensors of any shape [...]."""
    found = (re.match(r"decoder\.up_blocks\.(\d+)\.", key) for key in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _level_places(level: int, last: bool, num_res_blocks: int, is_residual: bool) -> dict[str, str]:
    """Original -> diffusers for the layers of one level; encoder and decoder count levels along their own way."""
    down = [f"resnets.{block}" for block in range(num_res_blocks)] + ([] if last else ["downsampler"])
    up = [f"resnets.{block}" for block in range(num_res_blocks + 1)] + ([] if last else ["upsampler"])
    if is_residual:
        places = {f"encoder.downsamples.{level}.downsamples.{i}": f"encoder.down_blocks.{level}.{name}"
                  for i, name in enumerate(down)}  # fmt: skip
        return places | {f"decoder.upsamples.{level}.upsamples.{i}": f"decoder.up_blocks.{level}.{name}"
                         for i, name in enumerate(up)}  # fmt: skip
    first_down, first_up = level * (num_res_blocks + 1), level * (num_res_blocks + 2)
    places = {f"encoder.downsamples.{first_down + i}": f"encoder.down_blocks.{first_down + i}"
              for i in range(len(down))}  # fmt: skip
    return places | {
        f"decoder.upsamples.{first_up + i}": f"decoder.up_blocks.{level}.{name.replace('upsampler', 'upsamplers.0')}"
        for i, name in enumerate(up)
    }


def _translate(key: str, places: Mapping[str, str], parts: Mapping[str, str], layout: str) -> str:
    layer, _, parameter = key.rpartition(".")
    if parameter in _PARAMETERS:
        for part, translated in parts.items():
            place = places.get(layer.removesuffix(part)) if layer.endswith(part) else None
            if place is not None:
                return f"{place}{translated}.{parameter}"
    raise CheckpointError(f"{key}: expected a parameter name of {layout}")
