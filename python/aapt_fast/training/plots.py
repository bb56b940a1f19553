# SPDX-License-Identifier: Apache-2.0
"""Curves over the video frames as PNG pictures, where matplotlib is installed (the extra `plots`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from aapt_fast.atomic import replacing

UNITS = {
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "sharpness": "sharpness, 1 = truth",
    "control": "error of the controls",
}


def can_plot() -> bool:
    """True where matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save_plots(folder: Path, curves: Mapping[tuple[str, str], Tensor], names: list[str]) -> list[Path]:
    """Draw one PNG per metric of `UNITS` that was measured, with a line per name: `curves` are (name, metric) -> [T].

    `names` get strong lines in this order, all other names thin grey ones. Raises ImportError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for metric, unit in UNITS.items():
        if not any(each == metric for _, each in curves):
            continue
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        others = [name for name, each in curves if each == metric and name not in names]
        for number, name in enumerate(names):
            _draw(axes, curves[name, metric], name, color=f"C{number}")
        for number, name in enumerate(others):
            style = ("--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))[number % 4]
            _draw(axes, curves[name, metric], name, color="grey", linewidth=1, linestyle=style)
        axes.set_xlabel("video frame")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.legend()
        paths.append(folder / f"{metric}.png")
        with replacing(paths[-1]) as partial:
            figure.savefig(partial)
    return paths


def _draw(axes: Any, curve: Tensor, name: str, **style: Any) -> None:
    """A line from video frame 1 on: frame 0 is given."""
    axes.plot(range(1, len(curve)), curve[1:].tolist(), label=name, **style)
