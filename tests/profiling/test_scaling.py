# SPDX-License-Identifier: Apache-2.0
"""The table of `aapt-fast bench scaling`: what it says, and that its parts agree with each other."""

import json

import pytest

from aapt_fast.cli import main
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.profiling.scaling import scaling_table


@pytest.fixture(scope="module")
def rows():
    return scaling_table(generator_preset("aapt-8b"), prompt=128)


def find(rows, resolution, gpus, scheme="sp"):
    [row] = [each for each in rows if (each.resolution, each.gpus, each.scheme) == (resolution, gpus, scheme)][:1]
    return row


def test_goals_at_1280x720(rows):
    assert find(rows, "1280x720", 8).target_ms <= 45 and find(rows, "1280x720", 4).target_ms <= 80
    assert find(rows, "1280x720", 8).paper_ms == 170 and find(rows, "736x416", 1, "").paper_ms == 160


def test_more_gpus_are_faster_and_never_by_more_than_their_number(rows):
    for resolution in ("736x416", "1280x720"):
        alone = find(rows, resolution, 1, "").target_ms
        for scheme in ("sp", "tp"):
            times = [alone, *(find(rows, resolution, gpus, scheme).target_ms for gpus in (2, 4, 8))]
            assert times == sorted(times, reverse=True)
            assert all(gpus * time >= 0.99 * alone for gpus, time in zip((1, 2, 4, 8), times, strict=True))


def test_weights_are_exchanged_as_often_as_there_are_ranks(rows):
    for gpus in (2, 4, 8):
        by_tokens, by_weights = (find(rows, "1280x720", gpus, scheme) for scheme in ("sp", "tp"))
        assert by_weights.sent_mib == pytest.approx(gpus * by_tokens.sent_mib)


def test_the_command_prints_and_writes_all_rows(rows, tmp_path, capsys):
    file = tmp_path / "scaling.json"
    assert main(["bench", "scaling", "--json", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows) and "prediction" in printed[0]
    written = json.loads(file.read_text())
    assert len(written["rows"]) == len(rows) and "not a measurement" in written["label"]


def test_a_frame_on_eight_gpus_is_predicted(capsys):
    options = ["--resolution", "1280x720", "--window", "15", "--target", "0.17"]
    assert main(["bench", "frame", "--gpus", "8", *options]) == 2
    printed = capsys.readouterr().out
    assert "a step on several GPUs is predicted, not measured" in printed
    assert "8 H100 SXM: at least 23.4 ms, 32.3 ms" in printed and "would meet 170 ms" in printed
    assert main(["bench", "frame", "--gpus", "7"]) == 2
    assert "--gpus: expected a number that divides 24 heads of aapt-8b, got 7" in capsys.readouterr().err
