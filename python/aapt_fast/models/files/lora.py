# SPDX-License-Identifier: Apache-2.0
"""LoRA files, merged into the weights of a Wan transformer as these are read.

    weight + lora_scale * (alpha / rank) * B A        A: [rank, inputs], B: [outputs, rank]
    weight + lora_scale * diff

The pair is called lora_A and lora_B (peft, diffusers), or lora_down and lora_up with an `alpha` (kohya). Without an
alpha it equals the rank, unless peft's configuration, beside the file or in its metadata, says otherwise. Layers go by
their original or their diffusers names, with the prefixes of ComfyUI, diffusers, peft or kohya. Every tensor of the
file is used, or the file is refused by the tensor's name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from torch import Size, Tensor

from aapt_fast.errors import CheckpointError, require, require_type
from aapt_fast.models.files.find import weight_file
from aapt_fast.models.files.named_weights import NamedWeights
from aapt_fast.models.files.read import Change, read_json, read_metadata, read_tensors, require_finite
from aapt_fast.models.files.recognise import LORA, recognise_tensors
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.keys import wan_to_diffusers_key

LoraFiles: TypeAlias = str | PathLike[str] | Sequence[str | PathLike[str]]
"""One file or folder, or several."""
Parts: TypeAlias = dict[str, tuple[str, Tensor]]
"""The tensors of one layer: "A", "B", "alpha", "diff" or "bias" -> (key in the file, tensor [...])."""

PEFT_FILE, PEFT_METADATA = "adapter_config.json", "lora_adapter_metadata"
PREFIXES = re.compile(r"(base_model\.model\.|model\.|diffusion_model\.|transformer\.|lora_unet_)*")
PARTS = {
    "A": re.compile(r"(.+)\.(lora_A(\.\w+)?\.weight|lora_down\.weight|lora\.down\.weight)"),
    "B": re.compile(r"(.+)\.(lora_B(\.\w+)?\.weight|lora_up\.weight|lora\.up\.weight)"),
    "alpha": re.compile(r"(.+)\.alpha"),
    "diff": re.compile(r"(.+)\.diff"),
    "bias": re.compile(r"(.+)\.diff_b"),
}


def merged(
    weights: NamedWeights[WanConfig],
    parameters: Mapping[str, Tensor],
    files: LoraFiles,
    scales: float | Sequence[float] = 1.0,
) -> NamedWeights[WanConfig]:
    """The same weights, with LoRA files merged in float32 as they are read.

    Args:
        weights: of a Wan transformer.
        parameters: its tensors [...], of which the names and shapes are used.
        files: LoRA files, or folders with one.
        scales: one number for all files, or one for each.

    Raises CheckpointError (file, key, expected, got) for a file that is no LoRA or does not fit the model; TypeError
    and ValueError for bad arguments.
    """
    paths: list[Any] = list(files) if isinstance(files, list | tuple) else [files]
    numbers: list[Any] = list(scales) if isinstance(scales, list | tuple) else [scales] * len(paths)
    require(len(numbers) == len(paths), "lora_scale", f"a number, or one for each of {len(paths)} files", scales)
    changes = {key: list(made) for key, made in weights.changes.items()}
    for path, scale in zip(paths, numbers, strict=True):
        require_type("lora", path, str, PathLike)
        require_type("lora_scale", scale, int, float)
        require(math.isfinite(scale), "lora_scale", "a finite number", scale)
        for name, change in _changes(Path(path), parameters, float(scale)):
            changes.setdefault(weights.file_key(name), []).append(change)
    return replace(weights, changes=changes)


def _changes(path: Path, parameters: Mapping[str, Tensor], scale: float) -> list[tuple[str, Change]]:
    """The changes that a file makes, with the names of the parameters that they change."""
    file = weight_file(path, "a LoRA file")
    tensors = read_tensors(file)
    found = recognise_tensors(tensors)
    if found.kind != LORA:
        raise CheckpointError(f"{file}: expected a LoRA file, got {found}")
    for key, tensor in tensors.items():
        require_finite(tensor, key, file)
    peft, changes = _peft_configuration(file), []
    for layer, parts in _layers(tensors, parameters, file).items():
        if "diff" in parts:
            name = layer if layer in parameters else f"{layer}.weight"
            changes.append((name, _difference(parts["diff"], parameters[name].shape, scale, file)))
        if "bias" in parts:
            name = f"{layer}.bias"
            changes.append((name, _difference(parts["bias"], parameters[name].shape, scale, file)))
        if not parts.keys().isdisjoint(("A", "B", "alpha")):
            name = f"{layer}.weight"
            changes.append((name, _product(parts, parameters[name].shape, scale, peft, file)))
    return changes


def _layers(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], file: Path) -> dict[str, Parts]:
    """Our name of a layer -> its tensors. Raises CheckpointError for keys that belong to no layer of the model."""
    spellings = _spellings(parameters)
    layers: dict[str, Parts] = {}
    strangers = []
    for key, tensor in tensors.items():
        matches = ((part, pattern.fullmatch(key)) for part, pattern in PARTS.items())
        part, match = next(((part, match) for part, match in matches if match), ("", None))
        layer = spellings.get(PREFIXES.sub("", match[1], count=1)) if match else None
        wanted = {"bias": f"{layer}.bias", "diff": layer if layer in parameters else f"{layer}.weight"}
        if layer is None or wanted.get(part, f"{layer}.weight") not in parameters:
            strangers.append(key)
        elif part in layers.setdefault(layer, {}):
            raise CheckpointError(f"{file}: {layer}: expected one {part}, got {layers[layer][part][0]} and {key}")
        else:
            layers[layer][part] = key, tensor
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        expected = "lora_A, lora_B, lora_down, lora_up, alpha, diff and diff_b of layers of this model only"
        raise CheckpointError(f"{file}: expected {expected}, got {', '.join(strangers[:3])}{more}")
    return layers


def _spellings(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Every name of a layer in LoRA files -> our name: original and diffusers', with dots and (kohya) underscores."""
    found: dict[str, str] = {}
    for translate in (str, wan_to_diffusers_key):
        for name in parameters:
            ours, theirs = (re.sub(r"\.(weight|bias)$", "", key) for key in (name, translate(name)))
            found.setdefault(theirs, ours)
            found.setdefault(theirs.replace(".", "_"), ours)
    return found


def _difference(part: tuple[str, Tensor], shape: Size, scale: float, file: Path) -> Change:
    key, tensor = part
    if tensor.shape != shape:
        raise CheckpointError(f"{file}: {key}: expected shape {list(shape)}, got {list(tensor.shape)}")
    return partial(_plus, difference=tensor, scale=scale)


def _product(parts: Parts, shape: Size, scale: float, peft: Mapping[str, Any], file: Path) -> Change:
    """The change of a weight of this shape by a pair of matrices."""
    for part, other in (("A", "B"), ("B", "A")):
        if part not in parts:
            key = parts[other if other in parts else "alpha"][0]
            raise CheckpointError(f"{file}: expected matrix {part} (lora_A, lora_B) beside {key}, got none")
    (key_a, a), (key_b, b) = parts["A"], parts["B"]
    rank, inputs = max(1, *a.shape[:1]), math.prod(shape[1:])
    for key, matrix, expected in ((key_a, a, [rank, inputs]), (key_b, b, [shape[0], rank])):
        if [*matrix.shape[:1], math.prod(matrix.shape[1:])] != expected:
            raise CheckpointError(f"{file}: {key}: expected shape {expected}, got {list(matrix.shape)}")
    if "alpha" in parts:
        key, alpha = parts["alpha"]
        if alpha.numel() != 1:
            raise CheckpointError(f"{file}: {key}: expected one number, got shape {list(alpha.shape)}")
        scale *= float(alpha) / rank
    elif peft:
        scale *= float(peft["lora_alpha"]) / (math.sqrt(rank) if peft.get("use_rslora") else rank)
    return partial(_plus_product, a=a.flatten(1), b=b.flatten(1), scale=scale)


def _plus(weight: Tensor, *, difference: Tensor, scale: float) -> Tensor:
    return weight.float() + scale * difference.float()


def _plus_product(weight: Tensor, *, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return weight.float() + (scale * (b.float() @ a.float())).view(weight.shape)


def _peft_configuration(file: Path) -> Mapping[str, Any]:
    """peft's configuration of a file, from its metadata or beside it; empty if there is none.

    Raises CheckpointError for settings that merge in another way.
    """
    beside = file.with_name(PEFT_FILE)
    if text := read_metadata(file).get(PEFT_METADATA):
        try:
            said = {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{file}: {PEFT_METADATA}: expected a JSON object, got {text[:40]!r}") from error
    else:
        said = read_json(beside) if beside.is_file() else {}
    for name in ("alpha_pattern", "use_dora"):
        if said.get(name):
            raise CheckpointError(f"{file}: {name} in peft's configuration: expected none, got {said[name]}")
    alpha = said.get("lora_alpha", "none")
    if said and not isinstance(alpha, int | float):
        raise CheckpointError(f"{file}: lora_alpha in peft's configuration: expected a number, got {alpha}")
    return said
