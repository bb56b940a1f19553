# SPDX-License-Identifier: Apache-2.0
"""Conversion of weight files to safetensors under the names of this package, with a `config.json`.

All files that `load_generator` and `load_vae` read can be converted. They read the result as well, faster and without
a translation of names. A part of a pipeline goes into a folder of its name. A file of `save_pretrained`
stays one file that holds its configuration itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aapt_fast.atomic import naming
from aapt_fast.errors import CheckpointError, require
from aapt_fast.limits import in_units, require_empty_folder
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.models.files.compare import SMALL, require_equal_models
from aapt_fast.models.files.find import require_path, weight_file
from aapt_fast.models.files.load_generator import GROUPS, meta_wan_transformer, open_wan_transformer
from aapt_fast.models.files.load_vae import meta_vae, open_vae, vae_file
from aapt_fast.models.files.model_file import is_own_file, read_model
from aapt_fast.models.files.named_weights import NamedWeights
from aapt_fast.models.files.placement import WAN_DTYPES, require_usable_dtype
from aapt_fast.models.files.read import (
    CONFIG_NAME,
    check_tensors,
    read_metadata,
    read_tensors,
)
from aapt_fast.models.files.recognise import ALL_IN_ONE, TRANSFORMER, part_names, recognise_tensors
from aapt_fast.models.files.recognise import VAE as VIDEO_VAE
from aapt_fast.models.files.write import Entry, compare_tensors, write_shards

GENERATOR, VAE, OWN = "generator", "vae", "model of this package"
PIPELINE_PARTS = {"transformer": GENERATOR, "transformer_2": GENERATOR, "vae": VAE}
SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class Part:
    """A model to convert: its kind, and its weights in the source."""

    kind: str
    file: Path


@dataclass(frozen=True)
class Plan:
    """The weights, configuration and metadata to write for a part."""

    entries: list[Entry]
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Size of the weights in the files to be written."""
        return sum(entry.nbytes for entry in self.entries)


def convert_files(
    source: str | Path,
    out: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    verify: bool = True,
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Convert the models in `source` to the folder `out`, which appears when all of it is written and verified.

    Args:
        source: a path that `load_generator` or `load_vae` takes; a pipeline's folder, or an original one with both.
        out: a folder that does not exist or is empty.
        config: as for `load_generator` and `load_vae`; of several parts by their names (`transformer`, `vae`).
        dtype: of the weights, or its name; a Wan transformer keeps sensitive parts in float32. None keeps every
            tensor's own, and those that are not read as they are, as scaled float8, get the dtype of the others.
        verify: read the result again and compare every tensor with the source; load both and compare their output,
            bit for bit, if the model is small.
        shard_bytes: files become no larger, unless a single tensor is. A model of this package stays one file.
        say: called with a line about each file written.

    Returns:
        A report, ready for JSON: parts with their tensors, dtypes, files, and results of the verification.

    Raises:
        CheckpointError: file, key, expected and got: as the loaders do; values that overflow in `dtype`.
        ValueError, TypeError: a bad argument, `out` among them. OSError: no room, or no right to write.
    """
    require_path("source", source)
    require_path("out", out)
    if dtype is not None:
        dtype = require_usable_dtype(dtype, WAN_DTYPES)
    source, out = Path(source), Path(out).resolve()
    require(shard_bytes > 0, "shard_bytes", "a positive number", shard_bytes)
    require_empty_folder("out", out)
    parts, left_behind = find_parts(source)
    configs = _configs(config, list(parts))
    plans = {name: _plan(part, configs[name], dtype) for name, part in parts.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    _require_room(out.parent, sum(plan.nbytes for plan in plans.values()))
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    report = {}
    partial.mkdir()
    try:
        with naming(out):
            for name, part in parts.items():
                folder, plan = partial / name, plans[name]
                folder.mkdir(exist_ok=True)
                size = shard_bytes if part.kind != OWN else max(1, plan.nbytes)
                write_shards(folder, plan.entries, shard_bytes=size, metadata=plan.metadata, say=say)
                if plan.config is not None:
                    (folder / CONFIG_NAME).write_text(json.dumps(plan.config, indent=1), encoding="utf-8")
                report[name or part.kind] = {
                    **_described(part, plan, folder),
                    "verified": _verify(part, plan, folder, configs[name], dtype) if verify else None,
                }
        _publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"source": str(source), "out": str(out), "parts": report, "left_behind": left_behind}


def find_parts(source: Path) -> tuple[dict[str, Part], list[str]]:
    """The models in a source, by the folder they go to, and what is not copied: other folders of a pipeline, a gallery.

    A model that stands alone goes to the folder "". Raises CheckpointError if there is none.
    """
    if not os.path.exists(source):
        source = bundled_models().get(str(source), source)
    found = {name: kind for name, kind in PIPELINE_PARTS.items() if os.path.isdir(source / name)}
    if found:
        others = sorted(entry.name for entry in source.iterdir() if entry.is_dir() and entry.name not in found)
        return {name: Part(kind, weight_file(source / name)) for name, kind in found.items()}, others
    main, vae = weight_file(source), vae_file(source)
    if main != vae:
        return {"transformer": Part(GENERATOR, main), "vae": Part(VAE, vae)}, []
    if is_own_file(main):
        return {"": Part(OWN, main)}, ["gallery"] if main.with_name("gallery.json").is_file() else []
    names = list(read_tensors(main, GROUPS))
    kind = recognise_tensors(names).kind
    if kind == ALL_IN_ONE:
        rest = set(names).difference(part_names(names, TRANSFORMER), part_names(names, VIDEO_VAE))
        return {"transformer": Part(GENERATOR, main), "vae": Part(VAE, main)}, ["text encoder"] if rest else []
    return {"": Part(VAE if kind == VIDEO_VAE else GENERATOR, main)}, []


def _configs(config: Mapping[str, Any] | None, parts: list[str]) -> dict[str, Mapping[str, Any] | None]:
    """The configuration of every part."""
    if len(parts) == 1:
        return {parts[0]: config}
    for name, entries in (config or {}).items():
        require(name in parts, "config", f"one configuration each for {' or '.join(parts)}", name)
        require(isinstance(entries, Mapping), f"config: {name}", "an object", type(entries).__name__)
    return {name: (config or {}).get(name) for name in parts}


def _plan(part: Part, config: Mapping[str, Any] | None, dtype: torch.dtype | None) -> Plan:
    """Plan a part. The source's names, shapes and configuration are checked, its values not yet read."""
    if part.kind == OWN:
        require(not config, "config", "none: files of this package say everything", config)
        read_model(part.file, device="cpu", dtype=torch.float32)
        tensors = read_tensors(part.file)
        entries = [Entry(name, dtype or tensor.dtype, tensor, name, part.file) for name, tensor in tensors.items()]
        return Plan(entries, None, read_metadata(part.file))
    if part.kind == VAE:
        weights: NamedWeights[Any] = open_vae(part.file, config)
        expected = meta_vae(weights.config).to(dtype or torch.float32).state_dict()
        said = {}  # a VAE's config.json with another class is passed over
    else:
        weights = open_wan_transformer(part.file, config)
        expected = meta_wan_transformer(weights, dtype).state_dict()
        said = {"_class_name": "WanTransformer"}
    keys = {ours: weights.file_key(ours) for ours in expected}
    check_tensors(expected, keys, weights.tensors, part.file)
    entries = []
    for ours, target in expected.items():
        key = keys[ours]
        tensor, changes = weights.tensors[key], weights.changes.get(key, ())
        kept = target.dtype if dtype or changes else tensor.dtype
        entries.append(Entry(ours, kept, tensor, key, part.file, changes))
    return Plan(entries, said | dataclasses.asdict(weights.config), {"format": "pt"})


def _described(part: Part, plan: Plan, folder: Path) -> dict[str, Any]:
    """A part of the report."""
    dtypes: dict[str, int] = {}
    for entry in plan.entries:
        word = str(entry.dtype).removeprefix("torch.")
        dtypes[word] = dtypes.get(word, 0) + 1
    return {
        "kind": part.kind,
        "source": str(part.file),
        "tensors": len(plan.entries),
        "parameters": sum(entry.tensor.numel() for entry in plan.entries),
        "bytes": plan.nbytes,
        "dtypes": dtypes,
        "files": sorted(file.name for file in folder.iterdir() if file.is_file()),
    }


def _verify(
    part: Part, plan: Plan, folder: Path, config: Mapping[str, Any] | None, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Compare the result with the source; raises CheckpointError where they differ."""
    largest = compare_tensors(folder, plan.entries)
    small = sum(entry.tensor.numel() for entry in plan.entries) <= SMALL
    if small:
        require_equal_models(part.kind, part.file, folder, config, dtype)
    forward = "equal" if small else f"not compared: more than {SMALL} parameters"
    return {"tensors": "equal" if largest == 0 else "rounded", "largest_relative_difference": largest,
            "forward": forward}  # fmt: skip


def _require_room(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise CheckpointError(f"{folder}: expected {in_units(nbytes)} of free space, got {in_units(free)}")


def _publish(partial: Path, out: Path) -> None:
    """Rename `partial` to `out` in one step, which fails if another process has put something there."""
    if out.exists():
        out.rmdir()
    partial.rename(out)
