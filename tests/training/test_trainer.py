# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from aapt_fast.training.run import UNWATCHED
from aapt_fast.training.trainer import Trainer


@dataclass(frozen=True)
class Config:
    steps: int = 1
    seed: int = 0
    evaluate_every: int = 1
    compile: bool = True


@pytest.mark.parametrize("compiled", [True, False])
def test_a_step_that_compiles_the_network_is_announced_before_it(
    compiled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for _ in range(2):  # the second run has no step left, and compiles nothing
        model = nn.Linear(2, 2)
        optimiser = torch.optim.SGD(model.parameters())
        trainer = Trainer(tmp_path, Config(compile=compiled), model, lambda: {}, UNWATCHED, optimiser)
        said += [capsys.readouterr().err for _ in trainer.steps()]
    assert len(said) == 1 and ("the first step compiles the network" in said[0]) == compiled
    assert "compiles" not in capsys.readouterr().err
