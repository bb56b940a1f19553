# SPDX-License-Identifier: Apache-2.0
"""Draw the figures of docs/explanation/design.md from measured documents, as SVG.

    python docs/figures.py      write docs/figures/*.svg anew

A figure is a bar chart, and reads well on white and on black. Each names the file that its numbers come from. A test
draws them again and compares, so that no figure can differ from its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from aapt_fast.models.aapt.presets import AAPT_8B
from aapt_fast.profiling.scaling import scaling_table
from aapt_fast.profiling.systems import PROMPT_TOKENS

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "bench" / "results"
FOLDER = DOCS / "figures"

WIDTH, LABELS, MARGIN, LINE = 720, 330, 70, 24  # in pixels
GREY, OURS, OTHERS = "#808080", "#2f81f7", "#b0803a"  # each with a contrast of 3 and more on white and on black


@dataclass(frozen=True)
class Bar:
    """One bar; `ours` chooses its colour, and `words` follow its number."""

    label: str
    value: float
    ours: bool = True
    words: str = ""


def draw(title: str, unit: str, source: str, bars: Sequence[Bar], line: tuple[str, float] | None = None) -> str:
    """Draw horizontal bars, with a dashed line at a value that matters."""
    most = max([bar.value for bar in bars] + ([line[1]] if line else []))
    scale = (WIDTH - LABELS - MARGIN) / most
    top = 56 if line else 40
    height = top + LINE * len(bars) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" font-family="sans-serif" font-size="13" fill="{GREY}">',
        f"<title>{escape(title)}</title>",
        f'<text x="0" y="16" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    if line:
        x = LABELS + scale * line[1]
        parts.append(f'<text x="{x:.1f}" y="{top - 10}" text-anchor="middle">{escape(line[0])}</text>')
        parts.append(
            f'<path d="M{x:.1f} {top - 4}v{LINE * len(bars) + 4}" stroke="{GREY}" stroke-dasharray="4 3" fill="none"/>'
        )
    for number, bar in enumerate(bars):
        y = top + LINE * number
        colour, length = OURS if bar.ours else OTHERS, scale * bar.value
        shown = f"{bar.value:.2f}" if most < 2 else f"{bar.value:.{1 if bar.value < 1 else 0}f}"
        parts += [
            f'<text x="{LABELS - 10}" y="{y + 15}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{LABELS}" y="{y + 2}" width="{length:.1f}" height="{LINE - 6}" rx="2" fill="{colour}"/>',
            f'<text x="{LABELS + length + 6:.1f}" y="{y + 15}">{shown}{escape(bar.words)}</text>',
        ]
    parts.append(f'<text x="0" y="{height - 6}" font-size="11">{escape(f"{unit}. {source}")}</text>')
    return "\n".join([*parts, "</svg>", ""])


def document(name: str) -> dict[str, Any]:
    """Read a document of bench/results/."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def busy() -> str:
    """Draw how threads wait: video frames per second on a quiet machine and beside a busy process."""
    name = "cpu-2026-11-30-dd6908c-busy.json"
    said = {
        "spinning": "libgomp's default",
        "aapt-fast": "as aapt-fast sets it",
        "sleeping": "never spin",
        "one thread": "one thread per operator",
    }
    bars = []
    for entry in document(name)["results"]:
        _, _, where, how = entry["name"].split("/")
        bars.append(Bar(f"{where}: {said[how]}", entry["video_fps"], how == "aapt-fast"))
    return draw("Idle threads that spin", "Video frames per second, mini-person, two cores", name, bars)


def latency() -> str:
    """Draw what a key press waits for before its picture is drawn."""
    name = "cpu-2026-11-30-b3e0670-page.json"
    measured = {entry["name"].removeprefix("page/"): entry["value"] for entry in document(name)["measurements"]}
    bars = [
        Bar("key to picture, p50", measured["control to photon, p50"]),
        Bar("key to picture, p95", measured["control to photon, p95"]),
        Bar("of it: the step", measured["step, p50"]),
        Bar("of it: encode a picture", measured["encode, p50"]),
        Bar("of it: network and back", measured["network and back, p50"]),
        Bar("of it: decode in the browser", measured["decode, p50"]),
    ]
    period = ("a latent frame, 167 ms", 1e3 * 4 / 24)
    return draw("From a key to its picture", "Milliseconds, server and browser on two cores", name, bars, period)


def gpus() -> str:
    """Draw the predicted milliseconds of a latent frame of aapt-8b on 1 to 8 GPUs beside the paper's."""
    bars = []
    for row in scaling_table(AAPT_8B, PROMPT_TOKENS):
        if row.scheme == "tp" or "H100" not in row.gpu:
            continue
        size = f"{row.resolution}, {row.gpus} GPU{'s' if row.gpus > 1 else ''}"
        bars.append(Bar(f"{size}: predicted", row.target_ms))
        if row.paper_ms is not None:
            bars.append(Bar(f"{size}: paper", row.paper_ms, ours=False))
    return draw(
        "One latent frame of aapt-8b on H100",
        "Milliseconds",
        "Blue: predicted by a roofline, not measured. Brown: published",
        bars,
        ("real time, 167 ms", 1e3 * 4 / 24),
    )


FIGURES = {"busy": busy, "latency": latency, "gpus": gpus}


def main() -> None:
    """Write all figures."""
    FOLDER.mkdir(exist_ok=True)
    for name, figure in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(figure())


if __name__ == "__main__":
    main()
