# SPDX-License-Identifier: Apache-2.0
"""Files of a training that are whole, but of another model, are refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aapt_fast.errors import CheckpointError
from aapt_fast.training.files import load_finite, load_module, save_finite

PATH = "generator.pt"


def test_a_module_gets_its_tensors(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_finite(tmp_path / PATH, source.state_dict())
    load_module(target, load_finite(tmp_path / PATH), tmp_path / PATH)
    assert torch.equal(target.weight, source.weight) and target.weight.requires_grad


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(3, 5).state_dict(), "weight: expected shape [2, 3], got [5, 3] (and 1 more with other shapes)"),
        (nn.Linear(4, 2).state_dict(), "weight: expected shape [2, 3], got [2, 4]"),
        (nn.Linear(3, 2, bias=False).state_dict(), "expected key bias, got none"),
        (nn.Linear(3, 2).state_dict() | {"scale": torch.ones(1)}, "expected no key scale, got one"),
        ([torch.ones(2)], "expected tensors by name, got list"),
        ({"weight": 1.0}, "expected tensors by name, got dict"),
    ],
)
def test_a_file_of_another_model_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path, target = tmp_path / PATH, nn.Linear(3, 2)
    before = target.weight.clone()
    save_finite(path, content)
    expected = rf"^{re.escape(str(path))}: {re.escape(message)}; remove it, and the stage begins again$"
    with pytest.raises(CheckpointError, match=expected):
        load_module(target, load_finite(path), path)
    assert torch.equal(target.weight, before)
