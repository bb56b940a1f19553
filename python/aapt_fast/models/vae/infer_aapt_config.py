# SPDX-License-Identifier: Apache-2.0
"""The configuration of a VAE of AAPT's family, from the names and shapes in its file and from a configuration.

Names and shapes show everything but the number of groups of the norms and the scale of latents. Those come from a
configuration, or are the published ones. A configuration that contradicts the tensors is refused, not corrected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from aapt_fast.errors import CheckpointError
from aapt_fast.models.statements import agreed
from aapt_fast.models.vae.aapt import AAPTVAEConfig

ENTRIES = frozenset(AAPTVAEConfig.__dataclass_fields__)
"""Entries of a configuration that the tensors or the published values could contradict."""
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of the layers of attention -> those of older checkpoints."""


def is_aapt_layout(names: Iterable[str]) -> bool:
    """True for the names of SeedVR's `ema_vae.pth`: no other VAE enlarges by such a convolution."""
    return any(re.match(r"decoder\.up_blocks\.\d+\.upsamplers\.0\.upscale_conv\.", name) for name in names)


def file_name(name: str, names: Iterable[str]) -> str:
    """The name in a file with these `names` of the tensor that the module calls `name`."""
    if name in names:
        return name
    for new, old in OLD_NAMES.items():
        older = re.sub(rf"(\.attentions\.\d+\.){re.escape(new)}\.", rf"\g<1>{old}.", name)
        if older != name and older in names:
            return older
    return name


def aapt_configuration(
    tensors: Mapping[str, Tensor], given: Mapping[str, Mapping[str, Any]], source: object
) -> AAPTVAEConfig:
    """A configuration from tensors [...] by their names, and the entries `given` at each place ("config.json").

    Raises CheckpointError for a contradiction, and for tensors that are not those of such a VAE.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    encoder, decoder = _widths(shapes, "encoder.down_blocks"), _widths(shapes, "decoder.up_blocks")[::-1]
    counts = {len(level) for level in encoder}, {len(level) for level in decoder}
    latents = shapes.get("decoder.conv_in.weight", ())
    if not encoder or not decoder or len(latents) != 5 or [len(found) for found in counts] != [1, 1]:
        blocks = [[len(level) for level in side] for side in (encoder, decoder)]
        expected = "expected the tensors of a VAE of AAPT or SeedVR, with as many blocks at every level"
        raise CheckpointError(f"{source}: {expected}, got {len(shapes)} with blocks {blocks}")
    facts = {
        "encoder_widths": tuple(level[0] for level in encoder),
        "encoder_blocks": len(encoder[0]),
        "decoder_widths": tuple(level[0] for level in decoder),
        "decoder_blocks": len(decoder[0]),
        "latent_channels": latents[1],
        "temporal_downsample": _doubled(shapes)[::-1],
    }
    statements = [
        (name, name, tuple(value) if isinstance(value, list) else value, place)
        for place, said in given.items()
        for name, value in said.items()
        if name in ENTRIES
    ]
    try:
        return AAPTVAEConfig(**agreed(facts, statements, source))
    except (TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{source}: expected a configuration that fits together, got {error}") from error


def _widths(shapes: Mapping[str, tuple[int, ...]], blocks: str) -> list[list[int]]:
    """Outputs of the residual blocks of each level, in the order of the names."""
    found: dict[int, dict[int, int]] = {}
    for name, shape in shapes.items():
        match = re.fullmatch(rf"{re.escape(blocks)}\.(\d+)\.resnets\.(\d+)\.conv2\.bias", name)
        if match and len(shape) == 1:
            found.setdefault(int(match[1]), {})[int(match[2])] = shape[0]
    return [[found[level][block] for block in sorted(found[level])] for level in sorted(found)]


def _doubled(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bool, ...]:
    """True for each upsampling, in the order of the names, that makes two frames of one."""
    found = {}
    for name, shape in shapes.items():
        match = re.fullmatch(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.upscale_conv\.weight", name)
        if match and len(shape) > 1:
            found[int(match[1])] = shape[0] == 8 * shape[1]
    return tuple(found[level] for level in sorted(found))
