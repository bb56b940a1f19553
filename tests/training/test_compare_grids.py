# SPDX-License-Identifier: Apache-2.0
"""The comparison of learned and fixed grids, in short."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from aapt_fast.training import compare_grids
from aapt_fast.training.ablate import DIFFUSION
from aapt_fast.training.compare_grids import fixed_grids, main
from aapt_fast.training.discretize import GridConfig


def test_fixed_grids_are_what_their_names_say() -> None:
    grids = fixed_grids(4)
    assert grids["uniform"].solver == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert grids["quadratic"].solver == (1.0, 0.5625, 0.25, 0.0625, 0.0)
    assert grids["shift 3"].solver[1] == pytest.approx(0.9) and len(grids) == 6


def test_a_table_has_all_grids_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = dataclasses.replace(DIFFUSION, steps=2, batch=2, evaluate_every=2, compile=False)
    few = functools.partial(GridConfig, teacher_evaluations=5, batches=1, batch=2, clip_frames=3, steps=2)
    monkeypatch.setattr(compare_grids, "DIFFUSION", quick)
    monkeypatch.setattr(compare_grids, "GridConfig", few)
    monkeypatch.setattr(compare_grids, "EVALUATIONS", (2, 4))
    main(["--out", str(tmp_path), "--streams", "4", "--seeds", "1"])
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 2 * 7 and [line for line in table if "| 4 | learned 0 |" in line]
    monkeypatch.setattr(compare_grids, "learn_grid", lambda *_: pytest.fail("learned again"))
    monkeypatch.setattr(compare_grids, "score", lambda *_: pytest.fail("measured again"))
    main(["--out", str(tmp_path), "--streams", "4", "--seeds", "1"])
    assert (tmp_path / "table.md").read_text().splitlines() == table


@pytest.mark.parametrize("option", ["--seeds", "--streams"])
def test_nothing_to_compare_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, "0"])
    assert f"{option}: expected at least 1, got 0" in capsys.readouterr().err
