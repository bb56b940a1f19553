# SPDX-License-Identifier: Apache-2.0
"""The comparison of settings on the coin world, on trainings of a few steps."""

import dataclasses
from pathlib import Path

import pytest

from aapt_fast.training import ablate
from aapt_fast.training.ablate import CONSISTENCY, DIFFUSION, ROWS, STUDENT_FORCED, Row, run_row, table
from aapt_fast.training.coin import CoinScore, coin_model

TINY = coin_model(width=16, heads=1, layers=1)
FIRST = dataclasses.replace(DIFFUSION, model=TINY, steps=2, batch=2)
SECOND = dataclasses.replace(CONSISTENCY, model=TINY, steps=1, batch=2)
THIRD = dataclasses.replace(STUDENT_FORCED, model=TINY, steps=1, batch=2, adversarial=1.0, discriminator_alone=0)


@pytest.fixture(autouse=True)
def short_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "STEPS", (1, 2, 3, 4))


def test_rows_share_the_runs_of_equal_stages_and_train_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = run_row(Row(FIRST, SECOND, THIRD), 0, tmp_path, streams=4)
    assert list(scores) == [
        "diffusion, 1 evaluation",
        "diffusion, 4 evaluations",
        "diffusion, 8 evaluations",
        "consistency, 1 evaluation",
        "adversarial, 1 evaluation",
    ]
    assert 4 in scores["adversarial, 1 evaluation"].off_blob
    folders = {path.name for path in tmp_path.iterdir()}
    assert len(folders) == 3
    for stage in ("diffusion", "consistency", "adversarial"):
        monkeypatch.delattr(ablate, f"train_{stage}")  # nothing is trained again
    assert run_row(Row(FIRST, SECOND, THIRD), 0, tmp_path, streams=4) == scores
    assert run_row(Row(FIRST, SECOND), 0, tmp_path, streams=4) == dict(list(scores.items())[:-1])


@pytest.mark.parametrize("changed", [{"levels": 4}])
def test_other_settings_are_another_run(tmp_path: Path, changed: dict) -> None:
    run_row(Row(FIRST, SECOND), 0, tmp_path, streams=4)
    run_row(Row(FIRST, dataclasses.replace(SECOND, **changed)), 0, tmp_path, streams=4)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["consistency"] * 2 + ["diffusion"]


def test_the_table_gives_the_spread_over_seeds() -> None:
    def of(hit: float) -> CoinScore:
        return CoinScore(hit, 0.2, (0.25, 0.25, 0.2, 0.3), {1: 0.1, 2: 0.2}, {1: 1.0, 2: 0.5})

    text = table({"recipe": [{"consistency": of(0.71)}, {"consistency": of(0.69)}]})
    assert "| recipe | consistency | 2 | 0.69 to 0.71 | 0.20 | 0.10 | 0.20 |  |  |" in text


def test_a_score_survives_its_file() -> None:
    score = CoinScore(0.5, 0.2, (0.25, 0.25, 0.2, 0.3), {1: 0.1, 240: 0.2}, {1: 1.0, 240: 0.5})
    assert CoinScore.from_json(dataclasses.asdict(score)) == score


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nonsense"], "got nonsense"), (["recipe", "--seeds", "0"], "--seeds: expected at least 1, got 0")],
)
def test_an_unknown_row_and_no_seed_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ablate.main([*arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_differ() -> None:
    assert len(set(ROWS.values())) == len(ROWS)
