# SPDX-License-Identifier: Apache-2.0
"""Files of a run. All of them appear whole or not at all, and tensors are written and read only if they are finite."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.atomic import replacing
from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.read import fill


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` under all their names, in the order in which these first occur; a missing value is left empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def save_finite(path: Path, content: Mapping[str, Any]) -> None:
    """Write nested mappings and sequences of numbers and tensors [...] to `path`, as torch.save does.

    Raises FloatingPointError naming the first value that is not finite; the old file stays then.
    """
    name = first_not_finite(content)
    if name:
        raise FloatingPointError(f"{name} is not finite, so it was not saved in {path}")
    save_whole(path, content)


def save_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, as torch.save does. Raises OSError on a full disk, of which torch makes another."""
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_finite(path: Path, then: str = "the stage begins again") -> Any:
    """The content of a file of `save_finite`. Raises CheckpointError for a damaged file and values not finite.

    `then` is what happens once the file has been removed, for the message.
    """
    content = load_whole(path, then)
    name = first_not_finite(content)
    if name:
        raise CheckpointError(f"{path}: {name}: expected finite values, got nan or inf; remove it, and {then}")
    return content


def load_whole(path: Path, then: str = "the stage begins again") -> Any:
    """The content of a file of torch.save. Raises CheckpointError for a damaged file, OSError for one out of reach."""
    try:
        return torch.load(path, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds, whose texts are long
        got = f"a damaged one ({type(error).__name__})"
        raise CheckpointError(
            f"{path}: expected a whole file of this training, got {got}; remove it, and {then}"
        ) from error


def load_module(module: nn.Module, state: Any, path: Path, then: str = "the stage begins again") -> None:
    """Give a module the tensors [...] in `state`, which `load_finite` has read from `path`.

    Raises CheckpointError naming the first tensor that is missing, misshapen or too many; `then` is as for
    `load_finite`.
    """
    try:
        tensors = isinstance(state, Mapping) and all(isinstance(each, Tensor) for each in state.values())
        if not tensors:
            raise CheckpointError(f"{path}: expected tensors by name, got {type(state).__name__}")
        fill(module, state, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove it, and {then}") from error


def fingerprint(card: object, *modules: nn.Module) -> str:
    """Hash of JSON values and of the weights of modules, bit by bit: what was made from others is made anew."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for module in modules:
        for weight in module.state_dict().values():
            digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def first_not_finite(content: object, name: str = "") -> str | None:
    """The name of the first value in nested content that is not finite, or None."""
    if isinstance(content, Tensor):
        return None if bool(content.isfinite().all()) else name
    if isinstance(content, float):
        return None if math.isfinite(content) else name
    if isinstance(content, Mapping):
        parts = [*content.items()]
    else:
        parts = [*enumerate(content)] if isinstance(content, list | tuple) else []
    return next((found for key, part in parts if (found := first_not_finite(part, f"{name}.{key}".lstrip(".")))), None)
