# SPDX-License-Identifier: Apache-2.0
"""Writing of tensors into safetensors files of a limited size, with an index if there are several, and the comparison
of the files with their source.

Tensors are read from their source when their shard is written, so memory holds one shard at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from aapt_fast.atomic import replacing
from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.read import Change, changed, read_tensors, require_finite

NAME = "model"


@dataclass(frozen=True)
class Entry:
    """One tensor on its way: its new name and dtype, and [...] where it comes from, under its key in `source`."""

    name: str
    dtype: torch.dtype
    tensor: Tensor
    key: str
    source: Path
    changes: Sequence[Change] = ()
    """Made to the tensor as it is read."""

    @property
    def nbytes(self) -> int:
        """Size in the file to be written."""
        return self.tensor.numel() * self.dtype.itemsize

    def original(self) -> Tensor:
        """The tensor [...] of the source, changed but not rounded."""
        return changed(self.tensor, self.changes)

    def value(self) -> Tensor:
        """A copy with its own memory, in the new dtype. Raises CheckpointError for values that are not finite in it."""
        value = torch.empty(self.tensor.shape, dtype=self.dtype).copy_(self.original())
        require_finite(value, self.key, self.source)
        return value


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors [...] by name to `path`. Raises OSError, naming the file, where it cannot be written."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{path}: expected to be written, got {error}") from error


def write_shards(
    folder: Path,
    entries: Sequence[Entry],
    *,
    shard_bytes: int,
    metadata: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Write `model.safetensors`, or its shards of at most `shard_bytes` and their index, into `folder`.

    A single tensor may be larger than `shard_bytes`. Raises CheckpointError for values that are not finite, and OSError
    where a file cannot be written.
    """
    shards = _cut(entries, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        path = folder / f"{NAME}{part}.safetensors"
        with replacing(path) as partial:
            write_safetensors(partial, {entry.name: entry.value() for entry in shard}, metadata)
        weight_map |= {entry.name: path.name for entry in shard}
        say(f"{number} of {len(shards)} files written: {path.name}")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(entry.nbytes for entry in entries)}, "weight_map": weight_map}
        (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def compare_tensors(folder: Path, entries: Iterable[Entry]) -> float:
    """Read the weights in `folder` again; the largest relative difference from where they came from, 0 if none.

    Raises CheckpointError (file, key, expected, got) unless every tensor is there, exact where the dtype holds
    all numbers of that of its source, within the rounding of its dtype elsewhere, and no other is.
    """
    written, largest = read_tensors(folder), 0.0
    for entry in entries:
        result = written.pop(entry.name, None)
        if result is None:
            raise CheckpointError(f"{folder}: expected key {entry.name}, got none")
        want = (entry.dtype, list(entry.tensor.shape))
        got = (result.dtype, list(result.shape))
        if got != want:
            raise CheckpointError(f"{folder}: {entry.name}: expected {want}, got {got}")
        largest = max(largest, _difference(folder, entry, result))
    if written:
        raise CheckpointError(f"{folder}: expected no key {next(iter(written))}, got one")
    return largest


def _difference(folder: Path, entry: Entry, result: Tensor) -> float:
    """The largest relative difference of a tensor, checked against the rounding of its dtype."""
    source = entry.original()
    if _holds(result.dtype, source.dtype):
        allowed, expected = 0.0, "the values of its source"
    else:
        allowed, expected = torch.finfo(result.dtype).eps / 2, f"its source rounded to {result.dtype}"
    slack = torch.finfo(result.dtype).smallest_normal * allowed  # below the normal numbers steps are all alike
    # the difference of a number and its rounded self is exact in the wider of the two dtypes
    wide = torch.float64 if torch.float64 in (result.dtype, source.dtype) else torch.float32
    largest = 0.0
    for have, want in zip(_pieces(result), _pieces(source), strict=True):
        have, want = have.to(wide), want.to(wide)
        if torch.equal(have, want):
            continue
        error, size = (have - want).abs(), want.abs()
        wrong = ~(error <= size * allowed + slack)
        if wrong.any():
            at = int(wrong.int().argmax())
            raise CheckpointError(
                f"{folder}: {entry.name}: expected {expected}, {entry.key} in {entry.source}, "
                f"got {float(have[at]):g} for {float(want[at]):g}"
            )
        largest = max(largest, float((error / size.clamp_min(1e-30)).max()))
    return largest


def _holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """True if every number of `other` is one of `dtype` too."""
    wide, narrow = torch.finfo(dtype), torch.finfo(other)
    least = wide.smallest_normal * wide.eps <= narrow.smallest_normal * narrow.eps
    return wide.eps <= narrow.eps and wide.max >= narrow.max and least


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor [...] in pieces that fit into a cache in float32."""
    return tensor.reshape(-1).split(1 << 18)


def _cut(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards
