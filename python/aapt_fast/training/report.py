# SPDX-License-Identifier: Apache-2.0
"""What the evaluation found, as tables: Markdown, CSV, plots."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.training.metrics import frechet_distance
from aapt_fast.training.plots import UNITS, can_plot, save_plots

MARKS = (4, 12, 40, 120, 240, 360)  # video frames of the drift curve
SPAN_ENDS = (12, 60, 120, 240, 360)
TRUTH, CODEC, STILL = "true frames", "codec", "still"  # `still` repeats the first video frame
BASELINES = (TRUTH, CODEC, STILL)

Table = list[dict[str, float | str]]


@dataclass
class Measurements:
    """What was measured of every video, by name: a row of the evaluation, a baseline, or either of them mirrored.

    curves (name, metric) -> [clips, T], metrics psnr, ssim, sharpness, joints (pixels), change;
    features name -> [clips, T, D]; followed name -> [clips], whether the mirrored pose was followed;
    latency name -> what `step_latency` returns; nfe name -> evaluations per step; in company futures name -> nearest
    and mean (dB) and sharpness [clips, T'], diversity [clips].
    """

    curves: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    followed: dict[str, Tensor] = field(default_factory=dict)
    latency: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    nfe: dict[str, int] = field(default_factory=dict)
    futures: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add_curve(self, name: str, metric: str, values: Tensor) -> None:
        """Append the curves [clips, T] of more clips."""
        key = (name, metric)
        self.curves[key] = torch.cat([self.curves[key], values]) if key in self.curves else values

    def add_features(self, name: str, values: Tensor) -> None:
        """Append the features [clips, T, D] of more clips."""
        self.features[name] = torch.cat([self.features[name], values]) if name in self.features else values

    def add_followed(self, name: str, values: Tensor) -> None:
        """Append the answers [clips] of more clips."""
        self.followed[name] = torch.cat([self.followed[name], values]) if name in self.followed else values

    def add_futures(self, name: str, values: dict[str, Tensor]) -> None:
        """Append the values of more clips beside their several futures."""
        before = self.futures.get(name, {})
        self.futures[name] = {key: torch.cat([before[key], v]) if before else v for key, v in values.items()}


def mirrored(name: str) -> str:
    """The name of what `name` makes of mirrored poses."""
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


def make_report(measured: Measurements, pose_network: str) -> Report:
    """All tables; `pose_network` says how well the network reads joints."""
    curves = {key: values.mean(0) for key, values in measured.curves.items()}
    tables = {
        "drift": drift_table({key: c for key, c in curves.items() if key[1] in ("psnr", "ssim", "sharpness")}),
        "control": control_table(curves),
        "frechet": frechet_table(measured.features),
        "dynamic degree": dynamic_table(curves),
        "mirror": mirror_table(measured.followed),
        "latency": latency_table(measured.latency),
    }
    tables = {"summary": summary_table(measured, curves, tables), **tables}
    if measured.futures:
        tables["futures"] = futures_table(measured.futures)
    clips, frames = next(iter(measured.curves.values())).shape
    features = next(iter(measured.features.values())).shape[-1]
    notes = {
        "summary": f"Means over {clips} clips of {frames - 1} video frames after the given first one. Dashes: no "
        "such number. " + ("" if can_plot() else "There are no plots: matplotlib is not installed (extra `plots`)."),
        "control": "Mean distance in pixels between the joints that the pose network sees and those asked for. "
        f"{pose_network} Its own error on these clips is the row `{TRUTH}`.",
        "frechet": f"Squared Frechet distance to the true frames, {features} features of the pose network, "
        f"{clips * (frames - 1)} video frames of {clips} clips per set (neighbours are alike, so the set is smaller "
        f"than it looks). The network looks for the body more than for the room. `{mirrored(TRUTH)}`: other true "
        "frames of the same persons, for scale.",
        "dynamic degree": "Mean absolute change from one video frame to the next, divided by that of the truth. Less "
        "than 1 is a person that moves too little; flicker of what should stand still adds to it.",
        "futures": "The same first frame and poses, continued by chance in several ways and by each row with several "
        "seeds. Nearest: PSNR to the true future it is most like; mean: to the average of the futures. The higher the "
        "second above the first, the more a video is an average. Diversity: variance between seeds over that between "
        "true futures. Sharpness as above, of these video frames.",
        "latency": f"Milliseconds per step of one warm stream on this machine, threads: {torch.get_num_threads()}; "
        "`step` includes the decoder.",
    }
    return Report(tables, {title: note.strip() for title, note in notes.items() if title in tables})


def drift_table(curves: Mapping[tuple[str, str], Tensor]) -> Table:
    """Curves (name, metric) -> [T] at the marks, and their means without the given first frame."""
    return [{"what": f"{name} {metric}", **_at_marks(curve, 3)} for (name, metric), curve in curves.items()]


def control_table(curves: Mapping[tuple[str, str], Tensor]) -> Table:
    """Distance of the joints at the marks, per video."""
    return [{"what": name, **_at_marks(c, 2)} for (name, metric), c in curves.items() if metric == "joints"]


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
    """Share of the clips in which the mirrored pose was followed."""
    return [
        {
            "what": f"{name}: mirrored pose followed",
            "clips": len(hits),
            "share": round(float(hits.double().mean()), 3),
        }
        for name, hits in followed.items()
    ]


def futures_table(futures: Mapping[str, Mapping[str, Tensor]]) -> Table:
    """Means over clips and video frames; a mean future is no number of PSNR for what is that mean itself."""
    table: Table = []
    for name, curves in futures.items():
        nearest, mean = float(curves["nearest"].mean()), float(curves["mean"].mean())
        itself = mean > 90
        table.append(
            {
                "what": name,
                "nearest future dB": round(nearest, 2),
                "mean future dB": _shown(None if itself else mean, 2),
                "mean above nearest dB": _shown(None if itself else mean - nearest, 2),
                "sharpness": round(float(curves["sharpness"].mean()), 3),
                "diversity": round(float(curves["diversity"].mean()), 3),
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
    measured: Measurements, curves: Mapping[tuple[str, str], Tensor], tables: Mapping[str, Table]
) -> Table:
    """One line per row of the evaluation and per baseline."""
    distances = {row["what"]: row["distance"] for row in tables["frechet"]}
    changes = {row["what"]: row["all"] for row in tables["dynamic degree"]}
    table: Table = []
    for name in (name for name, metric in curves if metric == "psnr"):
        means = {metric: float(curves[name, metric][1:].mean()) for metric in UNITS}
        times = measured.latency.get(name, {}).get("step", {})
        hits = measured.followed.get(name)
        table.append(
            {
                "what": name,
                "nfe": measured.nfe.get(name, "-"),
                "psnr": round(means["psnr"], 2),
                "ssim": round(means["ssim"], 3),
                "sharpness": round(means["sharpness"], 3),
                "joints px": round(means["joints"], 2),
                "mirrored followed": _shown(None if hits is None else float(hits.double().mean()), 3),
                "frechet": distances[name],
                "dynamic degree": changes[name],
                "step p50 ms": _shown(times.get("p50"), 1),
                "step p95 ms": _shown(times.get("p95"), 1),
            }
        )
    return table


def _shown(value: float | None, digits: int) -> float | str:
    return "-" if value is None else round(value, digits)


def write_report(folder: Path, report: Report, measured: Measurements) -> None:
    """`report.md`, `drift.csv` with all curves, a CSV per table and, with matplotlib, a PNG per curve."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(report.to_markdown())
    curves = {key: values.mean(0) for key, values in measured.curves.items()}
    _write_csv(
        folder / "drift.csv",
        ["video frame", *(f"{name} {metric}" for name, metric in curves)],
        [
            [t, *("" if value is None else f"{float(value):.4f}" for value in values)]
            for t, values in enumerate(zip_longest(*(curve.tolist() for curve in curves.values())))
        ],
    )
    for title, table in report.tables.items():
        if title != "drift":
            _write_csv(
                folder / f"{title.replace(' ', '_')}.csv",
                list(table[0]),
                [[row.get(key, "") for key in table[0]] for row in table],
            )
    if can_plot():
        hidden = {mirrored(name) for name in (*measured.nfe, TRUTH)}
        shown = {key: curve for key, curve in curves.items() if key[0] not in hidden}
        save_plots(folder, shown, list(measured.nfe))


def _write_csv(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
