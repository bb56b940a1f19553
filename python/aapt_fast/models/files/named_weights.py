# SPDX-License-Identifier: Apache-2.0
"""The weights of a file under the names of this package's modules, before any of them is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from aapt_fast.models.files.read import Change

Config = TypeVar("Config")


@dataclass(frozen=True)
class NamedWeights(Generic[Config]):
    """The contents of a file: the configuration of a model, and its tensors, mapped from the file where possible."""

    config: Config
    tensors: Mapping[str, Tensor]
    """By their names in the file; without those that no model uses."""
    source: Path
    file_key: Callable[[str], str]
    """From a name in the module to the name in the file."""
    changes: Mapping[str, Sequence[Change]] = field(default_factory=dict)
    """Changes made to tensors as they are read, by their names in the file."""
