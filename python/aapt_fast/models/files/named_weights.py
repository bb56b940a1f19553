# SPDX-License-Identifier: Apache-2.0
"""The weights of a file under the names of this package's modules, before any of them is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from aapt_fast.models.files.read import Change, Cut, fill, read_tensors
from aapt_fast.models.files.recognise import part_names, require_kind
from aapt_fast.models.files.scaled_fp8 import split_scales

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

    def fill(self, module: nn.Module, device: torch.device | str, cut: Cut | None = None) -> None:
        """Give a module on the meta device these weights, as `read.fill` does."""
        fill(module, self.tensors, self.source, file_key=self.file_key, device=device, changes=self.changes, cut=cut)


def read_part(
    path: str | Path, kind: str, groups: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, list[Change]]]:
    """The tensors [...] of a model of this kind (`recognise.TRANSFORMER` or VAE), and the changes to make to them.

    Both are by their names in the file, which may be an all-in-one checkpoint. `groups` is that of `read_tensors`.
    Raises CheckpointError for a damaged file, for one of another kind, and for scales that do not fit.
    """
    found = read_tensors(path, groups)
    names = part_names(found, kind)
    require_kind(names, kind, path)
    return split_scales({name: found[name] for name in names}, path)
