# SPDX-License-Identifier: Apache-2.0
"""The file that a name or a path of a model means. No torch, so that the command line finds mistakes at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from aapt_fast.errors import require, require_type
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.models.files.recognise import OWN, WEIGHT_SUFFIXES, is_shard, recognise, refusal

INDEX_SUFFIX = ".index.json"
STANDARD_NAMES = tuple(
    f"{stem}.{kind}"
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
    for kind in ("safetensors.index.json", "bin.index.json", "safetensors", "bin")
)


def require_path(argument: str, path: object) -> None:
    """Raise TypeError unless `path` is a str or a path, ValueError if it is empty."""
    require_type(argument, path, str, os.PathLike)
    require(path != "", argument, "a name, a file or a folder", "an empty text")


def model_path(path: str | Path, argument: str = "path", others: Sequence[str] = ()) -> Path:
    """The weight file of a bundled model's name, of a file or of a folder.

    Raises ValueError, naming `argument`, if there is none of them, TypeError for an argument of another type. `others`
    are names that the caller takes as well, for the message.
    """
    require_path(argument, path)
    bundled = bundled_models()
    file = bundled.get(str(path), Path(path))
    expected = f"a bundled model ({', '.join(bundled) or 'none'}), a file or a folder"
    if others:
        expected = f"a preset ({', '.join(others)}), {expected}"
    if not os.path.exists(file):  # unlike Path.exists, False for a path that cannot be
        raise ValueError(f"{argument}: expected {expected}, got {path}: {recognise(path)}")
    return weight_file(file, expected)


def own_model_path(path: str | Path, argument: str = "path", others: Sequence[str] = ()) -> Path:
    """The file of a model of this package. Raises CheckpointError for another kind, else as `model_path`."""
    file = model_path(path, argument, others)
    if recognise(file).kind != OWN:
        raise refusal(file, "a model of this package, as train's stage export writes it")
    return file


def weight_file(path: str | Path, expected: str = "a file or folder of weights") -> Path:
    """The file of weights that `path` means: itself, or the one in a folder. An index stands for its shards.

    Among several in a folder the one without a variant in its name is meant (`diffusion_pytorch_model.safetensors`
    beside `diffusion_pytorch_model.fp16.safetensors`). Raises CheckpointError, with the word `expected` for what is
    missed, if there is none or no one in particular.
    """
    folder = Path(path)
    if os.path.isfile(folder):  # unlike Path.is_file, False for a path that cannot be
        return folder
    files = [entry for entry in sorted(folder.iterdir()) if entry.is_file()] if _can_be_listed(folder) else []
    for suffix in (INDEX_SUFFIX, *WEIGHT_SUFFIXES):
        found = [file for file in files if file.name.endswith(suffix)]
        found = [file for file in found if file.name in STANDARD_NAMES] or found
        if len(found) == 1 and not is_shard(found[0].name):
            return found[0]
        if found:
            break
    raise refusal(path, expected)


def _can_be_listed(folder: Path) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)
