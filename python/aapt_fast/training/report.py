# SPDX-License-Identifier: Apache-2.0
"""Report of an evaluation: tables as Markdown and CSV, and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from aapt_fast.training.files import write_csv, write_text
from aapt_fast.training.long_drift import WINDOW, long_drift_table
from aapt_fast.training.metrics import frechet_distance
from aapt_fast.training.own_folder import CURVES
from aapt_fast.training.plots import UNITS, can_plot, save_plots

MARKS = (4, 12, 40, 120, 240, 360, 720, 1440)  # video frames of the drift curve
SPAN_ENDS = (12, 60, 120, 240, 360, 720, 1440)
TRUTH, CODEC, STILL = "true frames", "codec", "still"  # `still` repeats the first video frame
BASELINES = (TRUTH, CODEC, STILL)

Table = list[dict[str, float | str]]
Key = TypeVar("Key")


@dataclass
class Measurements:
    """Measurements of every video, by name: a row of the evaluation, a baseline, or either of them mirrored.

    curves (name, metric) -> [clips, T], metrics psnr, ssim, sharpness, control (error), change;
    features name -> [clips, T, D]; followed name -> bool [clips], true where the mirrored control was followed;
    latency name -> the result of `step_latency`; nfe name -> evaluations per step; futures (name, metric) -> nearest,
    mean (dB) and sharpness [clips, T'], diversity [clips].
    """

    curves: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    followed: dict[str, Tensor] = field(default_factory=dict)
    latency: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    nfe: dict[str, int] = field(default_factory=dict)
    futures: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def add_curve(self, name: str, metric: str, values: Tensor) -> None:
        """Append the curves [clips, T] of more clips."""
        _append(self.curves, (name, metric), values)

    def add_features(self, name: str, values: Tensor) -> None:
        """Append the features [clips, T, D] of more clips."""
        _append(self.features, name, values)

    def add_followed(self, name: str, values: Tensor) -> None:
        """Append the answers [clips] of more clips."""
        _append(self.followed, name, values)

    def add_futures(self, name: str, metric: str, values: Tensor) -> None:
        """Append the values [clips, ...] of more clips beside their several futures."""
        _append(self.futures, (name, metric), values)

    def means(self) -> dict[tuple[str, str], Tensor]:
        """The curves [T], averaged over the clips."""
        return {key: values.mean(0) for key, values in self.curves.items()}


def _append(values: dict[Key, Tensor], key: Key, more: Tensor) -> None:
    values[key] = torch.cat([values[key], more]) if key in values else more


def mirrored(name: str) -> str:
    """The name of the video that `name` makes under mirrored controls."""
    return f"{name} mirrored"


@dataclass(frozen=True)
class Report:
    """Tables by title, and a remark for some of them."""

    tables: dict[str, Table]
    notes: dict[str, str]

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {**self.tables, "notes": self.notes}

    def to_markdown(self) -> str:
        """The tables, each with its remark."""
        lines = []
        for title, table in self.tables.items():
            columns = list(table[0])
            lines += [f"### {title}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
            lines += ["| " + " | ".join(str(row.get(column, "-")) for column in columns) + " |" for row in table]
            lines += ["", self.notes[title], ""] if title in self.notes else [""]
        return "\n".join(lines)


def make_report(measured: Measurements, control_notes: Mapping[str, str]) -> Report:
    """All tables that something was measured for; `control_notes` are the remarks of the `ControlReader`."""
    curves = measured.means()
    frechet, dynamic = frechet_table(measured.features), dynamic_table(curves)
    tables = {
        "summary": summary_table(measured, curves, frechet, dynamic),
        "drift": drift_table(curves),
        "control": control_table(curves),
        "frechet": frechet,
        "dynamic degree": dynamic,
        "long drift": long_drift_table([*measured.nfe, CODEC], TRUTH, curves, measured.features),
        "mirror": mirror_table(measured.followed),
        "latency": latency_table(measured.latency),
        "futures": futures_table(measured.futures),
    }
    clips, frames = next(iter(measured.curves.values())).shape
    notes = {
        "summary": f"Means over {clips} clips of {frames - 1} video frames after the given first one. Dashes: no "
        "such number. " + ("" if can_plot() else "There are no plots: matplotlib is not installed (extra `plots`)."),
        "control": f"{control_notes.get('control', '')} The reader's own error on these clips is the row `{TRUTH}`.",
        "frechet": f"Squared Frechet distance to the true frames, {clips * (frames - 1)} video frames of {clips} clips "
        "per set (neighbours are alike, so the set is smaller than it looks). "
        f"{control_notes.get('frechet', '')} `{mirrored(TRUTH)}`: other true frames of the same scenes, for scale.",
        "dynamic degree": "Mean absolute change from one video frame to the next, divided by that of the truth. Less "
        "than 1 is a video that moves too little; flicker of what should stand still adds to it.",
        "long drift": f"Over the last {WINDOW} video frames up to the one above. Worst: how many times a later window "
        "is as large, or as small, as the first.",
        "futures": "The same first frame and controls, continued by chance in several ways and by each row with "
        "several seeds. Nearest: PSNR to the most similar true future; mean: to the average of the futures. The higher "
        "the second above the first, the more a video is an average. Diversity: variance between seeds over that "
        "between true futures. Sharpness as above, of these video frames.",
        "latency": f"Milliseconds per step of one warm stream on this machine, threads: {torch.get_num_threads()}; "
        "`step` includes the decoder.",
    }
    tables = {title: table for title, table in tables.items() if table}
    return Report(tables, {title: note.strip() for title, note in notes.items() if title in tables})


def drift_table(curves: Mapping[tuple[str, str], Tensor]) -> Table:
    """Curves (name, metric) -> [T] at the marks, and their means without the given first frame."""
    shown = ("psnr", "ssim", "sharpness")
    return [{"what": f"{name} {metric}", **_at_marks(c, 3)} for (name, metric), c in curves.items() if metric in shown]


def control_table(curves: Mapping[tuple[str, str], Tensor]) -> Table:
    """Error of the controls at the marks, per video."""
    return [{"what": name, **_at_marks(c, 2)} for (name, metric), c in curves.items() if metric == "control"]


def _at_marks(curve: Tensor, digits: int) -> dict[str, float | str]:
    row: dict[str, float | str] = {f"frame {m}": round(float(curve[m]), digits) for m in MARKS if m < len(curve)}
    return row | {"mean": round(float(curve[1:].mean()), digits)}


def frechet_table(features: Mapping[str, Tensor]) -> Table:
    """Frechet distance of every set of features [clips, T, D] to those of the truth, without the given first frame."""
    sets = {name: values[:, 1:].flatten(0, 1) for name, values in features.items()}
    return [
        {
            "what": name,
            "distance": float(f"{float(frechet_distance(values, sets[TRUTH])):.4g}"),
            "video frames": len(values),
        }
        for name, values in sets.items()
        if name != TRUTH
    ]


def dynamic_degree(change: Tensor, true_change: Tensor) -> dict[str, float]:
    """Change [T] over that of the truth [T], as ratio of sums, per span of video frames and over all of them."""
    last, start = len(change) - 1, 1
    spans = {}
    for end in SPAN_ENDS:
        if start <= last:
            spans[f"frames {start}-{min(end, last)}"] = slice(start, min(end, last) + 1)
        start = end + 1
    spans["all"] = slice(1, None)
    return {name: float(change[span].sum() / true_change[span].sum()) for name, span in spans.items()}


def dynamic_table(curves: Mapping[tuple[str, str], Tensor]) -> Table:
    """Dynamic degree per video and span."""
    truth = curves[TRUTH, "change"]
    return [
        {"what": name, **{span: round(value, 3) for span, value in dynamic_degree(curve, truth).items()}}
        for (name, metric), curve in curves.items()
        if metric == "change" and name != TRUTH
    ]


def mirror_table(followed: Mapping[str, Tensor]) -> Table:
    """Share of the clips in which the mirrored control was followed."""
    return [
        {
            "what": f"{name}: mirrored control followed",
            "clips": len(hits),
            "share": round(float(hits.double().mean()), 3),
        }
        for name, hits in followed.items()
    ]


def futures_table(futures: Mapping[tuple[str, str], Tensor]) -> Table:
    """Means over clips and video frames; the mean future itself has no PSNR to it."""
    table: Table = []
    for name in dict.fromkeys(name for name, _ in futures):
        nearest, mean, sharp, diverse = (
            float(futures[name, metric].mean()) for metric in ("nearest", "mean", "sharpness", "diversity")
        )
        itself = mean > 90
        table.append(
            {
                "what": name,
                "nearest future dB": round(nearest, 2),
                "mean future dB": _shown(None if itself else mean, 2),
                "mean above nearest dB": _shown(None if itself else mean - nearest, 2),
                "sharpness": round(sharp, 3),
                "diversity": round(diverse, 3),
            }
        )
    return table


def latency_table(latency: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Table:
    """p50 and p95 of the generator alone and of the whole step."""
    return [
        {"what": name, **{f"{part} {p} ms": _shown(times[part][p], 1) for part in times for p in ("p50", "p95")}}
        for name, times in latency.items()
    ]


def summary_table(
    measured: Measurements, curves: Mapping[tuple[str, str], Tensor], frechet: Table, dynamic: Table
) -> Table:
    """One line per row of the evaluation and per baseline."""
    distances = {row["what"]: row["distance"] for row in frechet}
    changes = {row["what"]: row["all"] for row in dynamic}
    table: Table = []
    for name in (name for name, metric in curves if metric == "psnr"):
        means = {metric: float(curves[name, metric][1:].mean()) for metric in UNITS if (name, metric) in curves}
        times = measured.latency.get(name, {}).get("step", {})
        hits = measured.followed.get(name)
        table.append(
            {
                "what": name,
                "nfe": measured.nfe.get(name, "-"),
                "psnr": round(means["psnr"], 2),
                "ssim": round(means["ssim"], 3),
                "sharpness": round(means["sharpness"], 3),
                "control error": _shown(means.get("control"), 2),
                "mirrored followed": _shown(None if hits is None else float(hits.double().mean()), 3),
                "frechet": distances.get(name, "-"),
                "dynamic degree": changes[name],
                "step p50 ms": _shown(times.get("p50"), 1),
                "step p95 ms": _shown(times.get("p95"), 1),
            }
        )
    return table


def _shown(value: float | None, digits: int) -> float | str:
    return "-" if value is None else round(value, digits)


def write_report(folder: Path, report: Report, measured: Measurements) -> None:
    """Write `report.md`, `drift.csv` with all curves, a CSV per table and, with matplotlib, a PNG per metric."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", report.to_markdown())
    curves = measured.means()
    lines = zip_longest(*(curve.tolist() for curve in curves.values()))
    names = [f"{name} {metric}" for name, metric in curves]
    shown = [["" if value is None else f"{value:.4f}" for value in line] for line in lines]
    write_csv(
        folder / CURVES,
        [{"video frame": frame, **dict(zip(names, line, strict=True))} for frame, line in enumerate(shown)],
    )
    for title, table in report.tables.items():
        if title != "drift":
            write_csv(folder / f"{title.replace(' ', '_')}.csv", table)
    if can_plot():
        hidden = {mirrored(name) for name in (*measured.nfe, TRUTH)}
        plain = {key: curve for key, curve in curves.items() if key[0] not in hidden}
        save_plots(folder, plain, list(measured.nfe))
