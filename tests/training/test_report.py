# SPDX-License-Identifier: Apache-2.0
"""The tables, from made-up measurements whose answers are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from aapt_fast.training import report as module
from aapt_fast.training.long_drift import long_drift_table
from aapt_fast.training.plots import UNITS, can_plot, save_plots
from aapt_fast.training.report import Measurements, dynamic_degree, make_report, mirrored, write_report

FRAMES = 300
NOTES = {"control": "The network errs.", "frechet": "It has 3 features."}


def made_up(*names: str) -> Measurements:
    """Two clips of 300 video frames; the value of every curve is the number of the video frame, plus 1 in clip 1."""
    measured = Measurements(nfe={name: 1 + number for number, name in enumerate(names)})
    curve = torch.arange(FRAMES) + torch.tensor([[0.0], [1.0]])
    features = torch.randn(2, FRAMES, 3)
    for name in (*names, module.CODEC, module.STILL):
        for metric in ("psnr", "ssim", "sharpness", "control"):
            measured.add_curve(name, metric, curve)
        measured.add_curve(name, "change", 0.5 * curve)
        measured.add_features(name, features + 2.0)
    for name in names:
        measured.add_curve(mirrored(name), "control", curve)
        measured.add_followed(name, torch.tensor([True, False]))
        measured.latency[name] = {part: {"p50": 7.25, "p95": 9.0, "p99": 11.0} for part in ("generator", "step")}
    measured.add_curve(module.TRUTH, "control", curve)
    measured.add_curve(module.TRUTH, "change", curve)
    measured.add_features(module.TRUTH, features)
    measured.add_features(mirrored(module.TRUTH), features)
    return measured


def test_measurements_of_groups_are_joined() -> None:
    measured = Measurements()
    for clips in (2, 3):
        measured.add_curve("a", "psnr", torch.full((clips, 4), float(clips)))
        measured.add_features("a", torch.zeros(clips, 4, 2))
        measured.add_followed("a", torch.ones(clips))
    assert measured.curves["a", "psnr"][:, 0].tolist() == [2, 2, 3, 3, 3]
    assert measured.features["a"].shape == (5, 4, 2) and measured.followed["a"].shape == (5,)


def test_the_tables_say_what_was_measured() -> None:
    report = make_report(made_up("one", "two"), NOTES)
    tables = report.tables
    assert list(tables) == ["summary", "drift", "control", "frechet", "dynamic degree", "mirror", "latency"]
    marks = {"frame 4": 4.5, "frame 12": 12.5, "frame 40": 40.5, "frame 120": 120.5, "frame 240": 240.5}
    assert tables["drift"][0] == {"what": "one psnr", **marks, "mean": 150.5}
    assert [row["what"] for row in tables["drift"]][2:4] == ["one sharpness", "two psnr"]
    names = ["one", "two", "codec", "still", "one mirrored", "two mirrored", "true frames"]
    assert [row["what"] for row in tables["control"]] == names
    distances = {row["what"]: row["distance"] for row in tables["frechet"]}
    assert distances["one"] == pytest.approx(3 * 2.0**2, abs=1e-3) and distances["true frames mirrored"] == 0
    assert {row["video frames"] for row in tables["frechet"]} == {2 * (FRAMES - 1)}
    assert tables["dynamic degree"][0] == {
        "what": "one", "frames 1-12": 0.5, "frames 13-60": 0.5, "frames 61-120": 0.5, "frames 121-240": 0.5,
        "frames 241-299": 0.5, "all": 0.5,
    }  # fmt: skip
    assert tables["mirror"][1] == {"what": "two: mirrored control followed", "clips": 2, "share": 0.5}
    assert tables["latency"][0]["generator p50 ms"] == 7.2 and tables["latency"][0]["step p95 ms"] == 9.0
    summary = {row["what"]: row for row in tables["summary"]}
    assert list(summary) == ["one", "two", "codec", "still"]
    assert summary["two"]["nfe"] == 2 and summary["two"]["control error"] == 150.5
    assert summary["two"]["mirrored followed"] == 0.5 and summary["codec"]["step p50 ms"] == "-"


def test_the_dynamic_degree_is_a_ratio_of_sums_per_span() -> None:
    truth = torch.tensor([0.0, *[1.0] * 11, 0.0, 2.0, 4.0])
    change = torch.tensor([9.0, *[2.0] * 11, 11.0, 3.0, 0.0])
    expected = {"frames 1-12": 3.0, "frames 13-14": 0.5, "all": pytest.approx(36 / 17)}
    assert dynamic_degree(change, truth) == expected
    assert list(dynamic_degree(change[:5], truth[:5])) == ["frames 1-4", "all"]


def test_a_long_video_is_compared_with_itself_window_by_window() -> None:
    torch.manual_seed(0)
    frames, features = 1001, torch.randn(4, 1001, 2)
    fading = torch.linspace(1, 0.5, frames)
    curves = {("one", "change"): fading, ("one", "sharpness"): fading, ("truth", "change"): torch.ones(frames)}
    shifted = features + torch.linspace(0.5, 2, frames).view(1, -1, 1)
    table = long_drift_table(["one"], "truth", curves, {"one": shifted, "truth": features})
    assert [row["what"] for row in table] == ["one dynamic degree", "one sharpness", "one frechet"]
    assert list(table[0]) == ["what", "frame 240", "frame 480", "frame 720", "frame 960", "worst"]
    middles = [fading[end - 119 : end + 1].mean() for end in (240, 960)]
    assert table[0]["frame 960"] == pytest.approx(float(middles[1]), abs=5e-4)
    assert table[0]["worst"] == pytest.approx(float(middles[0] / middles[1]), abs=0.006)
    assert table[2]["worst"] > 4 and table[2]["frame 240"] == pytest.approx(2 * 0.77**2, rel=0.1)
    assert not long_drift_table(["one"], "truth", {key: curve[:400] for key, curve in curves.items()}, {})


def test_the_markdown_has_every_table_and_remark() -> None:
    report = make_report(made_up("one"), NOTES)
    text = report.to_markdown()
    for title, table in report.tables.items():
        assert f"### {title}\n\n| " + " | ".join(table[0]) + " |" in text
    for note in report.notes.values():
        assert note in text
    assert "The network errs." in text and "It has 3 features." in text and "598 video frames of 2 clips" in text
    assert json.loads(json.dumps(report.as_dict()))["notes"] == report.notes


def test_the_files_hold_the_tables_and_the_curves(tmp_path: Path) -> None:
    measured = made_up("one")
    report = make_report(measured, {})
    write_report(tmp_path / "out", report, measured)
    assert (tmp_path / "out" / "report.md").read_text() == report.to_markdown()
    with (tmp_path / "out" / "drift.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == FRAMES and rows[7]["video frame"] == "7" and float(rows[7]["one control"]) == 7.5
    for title in ("summary", "control", "frechet", "dynamic_degree", "mirror", "latency"):
        with (tmp_path / "out" / f"{title}.csv").open() as file:
            rows = list(csv.DictReader(file))
        table = report.tables[title.replace("_", " ")]
        assert rows == [{name: str(value) for name, value in row.items()} for row in table]


def test_without_matplotlib_the_report_says_that_there_are_no_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "can_plot", lambda: False)
    measured = made_up("one")
    write_report(tmp_path, make_report(measured, {}), measured)
    assert "There are no plots: matplotlib is not installed" in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_plots_have_a_line_per_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert can_plot()
    measured = made_up("one", "two")
    report = make_report(measured, {})
    write_report(tmp_path, report, measured)
    assert "no plots" not in report.to_markdown()
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{metric}.png" for metric in UNITS}
    curves = {key: values.mean(0) for key, values in measured.curves.items()}
    fewer = save_plots(tmp_path, {key: c for key, c in curves.items() if key[0] != "two"}, ["one"])
    with Image.open(fewer[0]) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (31, 119, 180) in colours and (255, 127, 14) not in colours  # line 1, and no line 2
    save_plots(tmp_path, curves, ["one", "two"])
    with Image.open(fewer[0]) as picture:
        assert (255, 127, 14) in {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
