# SPDX-License-Identifier: Apache-2.0
"""Names of the Wan VAE's parameters in diffusers' `AutoencoderKLWan` and in the original checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from aapt_fast.errors import CheckpointError

# Where a layer stands, diffusers -> original. {up} is the running number of a layer among the decoder's upsamples.
_PLACES = (
    (r"quant_conv", "conv1"),
    (r"post_quant_conv", "conv2"),
    (r"(encoder|decoder)\.conv_in", r"\1.conv1"),
    (r"(encoder|decoder)\.norm_out", r"\1.head.0"),
    (r"(encoder|decoder)\.conv_out", r"\1.head.2"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0", r"\1.middle.0"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0", r"\1.middle.1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1", r"\1.middle.2"),
    (r"encoder\.down_blocks\.(\d+)", r"encoder.downsamples.\1"),
    (r"decoder\.up_blocks\.(?P<level>\d+)\.resnets\.(?P<block>\d+)", "decoder.upsamples.{up}"),
    (r"decoder\.up_blocks\.(?P<level>\d+)\.upsamplers\.0", "decoder.upsamples.{up}"),
)
# What it is within a block, diffusers -> original.
_PARTS = {
    "": "",
    "norm1.": "residual.0.",
    "conv1.": "residual.2.",
    "norm2.": "residual.3.",
    "conv2.": "residual.6.",
    "conv_shortcut.": "shortcut.",
    "resample.1.": "resample.1.",
    "time_conv.": "time_conv.",
    "norm.": "norm.",
    "to_qkv.": "to_qkv.",
    "proj.": "proj.",
}
_PARAMETER = r"(?P<part>(?:[a-z0-9_]+\.)*)(?P<parameter>weight|bias|gamma)"


def diffusers_to_wan_key(key: str, num_res_blocks: int = 2) -> str:
    """The original name of the parameter that diffusers calls `key`.

    `num_res_blocks` is that of the model's configuration. Raises CheckpointError, with the key, for an unknown name.
    """
    for place, original in _PLACES:
        match = re.fullmatch(rf"{place}\.{_PARAMETER}", key)
        if match and match["part"] in _PARTS:
            found = match.groupdict()
            block = int(found.get("block") or num_res_blocks + 1)  # an upsampler comes after its level's blocks
            up = int(found.get("level") or 0) * (num_res_blocks + 2) + block
            return f"{match.expand(original).format(up=up)}.{_PARTS[match['part']]}{match['parameter']}"
    raise CheckpointError(f"{key}: expected a parameter name of diffusers' AutoencoderKLWan")


def from_diffusers_state_dict(state: Mapping[str, Tensor], num_res_blocks: int = 2) -> dict[str, Tensor]:
    """The same tensors (any shapes, e.g. [O, C, 3, 3, 3]) under the names that `WanVAE` and the original code use.

    Raises CheckpointError for a name that is not one of diffusers' `AutoencoderKLWan`.
    """
    return {diffusers_to_wan_key(key, num_res_blocks): tensor for key, tensor in state.items()}
