# SPDX-License-Identifier: Apache-2.0
"""The configuration of a Wan VAE, from the names and shapes in its file and from a configuration.

Names and shapes show everything but the statistics of the latents. Those come from a configuration, or are the
published ones. A configuration that contradicts the tensors is refused, not corrected.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from aapt_fast.errors import CheckpointError
from aapt_fast.models.statements import agreed
from aapt_fast.models.vae.wan import RGB, WanVAEConfig
from aapt_fast.models.vae.wan_keys import WanVAEKeys, diffusers_levels
from aapt_fast.models.vae.wan_statistics import PUBLISHED

Facts = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

DIFFUSERS_NAMES = {"temperal_downsample": "temporal_downsample"}
"""diffusers' name of a field -> its name in `WanVAEConfig`, where the two differ."""
STATISTICS = ("latents_mean", "latents_std")
UNUSED = ("dropout", "clip_output", "scale_factor_temporal", "scale_factor_spatial")
"""Keys of diffusers' configuration that change nothing here. The scale factors follow from the rest, and tiny models
carry the defaults of the big ones."""
RELEVANT = frozenset(WanVAEConfig.__dataclass_fields__) | {"in_channels", "out_channels", "attn_scales"}
"""Entries of a configuration that the tensors or the published statistics could contradict."""


def is_diffusers_layout(names: Iterable[str]) -> bool:
    """True for the names of diffusers' `AutoencoderKLWan`."""
    return any(
        re.match(r"(encoder|decoder)\.(conv_in|conv_out|mid_block|down_blocks|up_blocks)\.", name) for name in names
    )


def keys_of(config: WanVAEConfig) -> WanVAEKeys:
    """The translation of names for a model of `config`."""
    return WanVAEKeys(len(config.dim_mult), config.num_res_blocks, config.is_residual)


def facts_of_tensors(tensors: Mapping[str, Tensor], source: object) -> Facts:
    """The fields of `WanVAEConfig` that the names and shapes [...] of the tensors show, in either layout.

    Several shapes show the same number; the majority counts, so that a damaged tensor is found by `fill`. Raises
    CheckpointError if the tensors are not those of a Wan VAE.
    """
    if is_diffusers_layout(tensors):
        tensors = _original_names(tensors, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    residual = any(re.match(r"encoder\.downsamples\.\d+\.downsamples\.", name) for name in shapes)
    levels, temporal = _levels(_layers(shapes, "encoder.downsamples"))
    decoder_layers = [*_layers(shapes, "decoder.upsamples"), ""]
    first_block = next(iter(levels[0]), "")
    numbers = [
        _majority(shapes, ("conv2.weight", 0), ("conv2.bias", 0), ("decoder.conv1.weight", 1)),
        _majority(
            shapes, ("encoder.conv1.weight", 0), ("encoder.conv1.bias", 0), (f"{first_block}residual.0.gamma", 0)
        ),
        _majority(shapes, ("decoder.head.0.gamma", 0), ("decoder.head.2.weight", 1), *_outputs(decoder_layers[-2:-1])),
        _majority(shapes, ("encoder.conv1.weight", 1), ("decoder.head.2.weight", 0), ("decoder.head.2.bias", 0)),
        *(_majority(shapes, *_outputs(places)) for places in levels),
    ]
    if None in numbers:
        got = f"{len(shapes)}, first {next(iter(shapes), None)!r}"
        raise CheckpointError(f"{source}: expected the tensors of a Wan VAE, got {got}")
    z_dim, base_dim, decoder_width, colours, *widths = (int(number or 0) for number in numbers)
    patch = math.isqrt(colours // RGB)
    if colours != RGB * patch**2:
        raise CheckpointError(f"{source}: decoder.head.2.weight: expected 3 p^2 colours, got {colours}")
    if 0 in (base_dim, *widths) or any(width % base_dim for width in widths) or decoder_width * base_dim % widths[0]:
        expected = f"expected widths that are multiples of base_dim = {base_dim}"
        raise CheckpointError(f"{source}: {expected}, got {widths}, in the decoder {decoder_width}")
    return {
        "base_dim": base_dim,
        "decoder_base_dim": decoder_width * base_dim // widths[0],
        "z_dim": z_dim,
        "dim_mult": tuple(width // base_dim for width in widths),
        "num_res_blocks": Counter(map(len, levels)).most_common(1)[0][0],
        "temporal_downsample": tuple(temporal),
        "is_residual": residual,
        "patch_size": patch,
    }


def configuration(facts: Facts, given: Mapping[str, Mapping[str, Any]], source: object) -> WanVAEConfig:
    """A configuration from the `facts` of the tensors and the entries `given` at each place ("config.json", "config").

    Raises CheckpointError for a contradiction and for unknown statistics.
    """
    colours = RGB * facts["patch_size"] ** 2
    implied = {"in_channels": colours, "out_channels": colours, "attn_scales": ()}
    words = {ours: theirs for theirs, ours in DIFFUSERS_NAMES.items()}
    statements = [
        (name, words.get(name, name) if words.get(name) in said else name, value, place)
        for place, said in given.items()
        for name, value in _normalised(said, facts).items()
    ]
    known = agreed(facts | implied, statements, source)
    statistics = {key: known[key] for key in STATISTICS if key in known}
    if len(statistics) < len(STATISTICS):
        if facts["z_dim"] not in PUBLISHED:
            channels = f"{facts['z_dim']} latent channels: they are published for {' and '.join(map(str, PUBLISHED))}"
            raise CheckpointError(f"{source}: expected {' and '.join(STATISTICS)} in a config for {channels}, got none")
        statistics = dict(zip(STATISTICS, PUBLISHED[facts["z_dim"]], strict=True)) | statistics
    try:
        return WanVAEConfig(**facts, **statistics)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: expected a configuration that fits together, got {error}") from error


def _layers(shapes: Shapes, sequence: str) -> dict[str, list[str]]:
    """Place -> names within it, for the layers of a sequence in their order, nested by level or not."""
    found: dict[str, list[str]] = {}
    for name in shapes:
        match = re.match(rf"{re.escape(sequence)}\.\d+\.((up|down)samples\.\d+\.)?", name)
        if match:
            found.setdefault(match[0], []).append(name.removeprefix(match[0]))
    places = sorted(found, key=lambda place: [int(number) for number in re.findall(r"\d+", place)])
    return {place: found[place] for place in places}


def _levels(layers: Mapping[str, list[str]]) -> tuple[list[list[str]], list[bool]]:
    """The residual blocks of each level of an encoder, and whether time halves after each level but the last."""
    levels: list[list[str]] = [[]]
    temporal = []
    for place, names in layers.items():
        if any(name.startswith(("resample.", "time_conv.")) for name in names):
            temporal.append(any(name.startswith("time_conv.") for name in names))
            levels.append([])
        else:
            levels[-1].append(place)
    return levels, temporal


def _outputs(places: Iterable[str]) -> list[tuple[str, int]]:
    """The (name, dimension) pairs that show the output width of residual blocks."""
    names = ("residual.2.weight", "residual.2.bias", "residual.3.gamma", "residual.6.weight", "residual.6.bias")
    return [(place + name, 0) for place in places for name in names]


def _majority(shapes: Shapes, *where: tuple[str, int]) -> int | None:
    """The most frequent size at these (name, dimension) pairs; None if all are missing."""
    votes = Counter(shapes[name][dimension] for name, dimension in where if dimension < len(shapes.get(name, ())))
    return votes.most_common(1)[0][0] if votes else None


def _original_names(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    names = " ".join(tensors)
    blocks = [int(number) for number in re.findall(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", names)]
    residual = re.search(r"\.(up|down)sampler\.|down_blocks\.\d+\.resnets", names) is not None
    keys = WanVAEKeys(diffusers_levels(tensors), max(blocks, default=1), residual)
    try:
        return {keys.to_original(name): tensor for name, tensor in tensors.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _normalised(entries: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The relevant entries under the names of `WanVAEConfig`, lists as tuples, None as the default it stands for."""
    defaults = {"decoder_base_dim": entries.get("base_dim", facts["base_dim"]), "patch_size": 1}
    result = {}
    for key, value in entries.items():
        name = DIFFUSERS_NAMES.get(key, key)
        value = defaults.get(name) if value is None else value
        if name in RELEVANT and value is not None:
            result[name] = tuple(value) if isinstance(value, list) else value
    return result
