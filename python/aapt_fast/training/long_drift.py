# SPDX-License-Identifier: Apache-2.0
"""Drift over a minute: windows of a long video, each compared with the truth in the same window, and with the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from aapt_fast.training.metrics import frechet_distance

WINDOW = 120  # video frames: five seconds, and with eight clips enough of them for a Frechet distance
ENDS = (240, 480, 720, 960, 1200, 1440)  # last video frames of the windows


def long_drift_table(
    names: Iterable[str], truth: str, curves: Mapping[tuple[str, str], Tensor], features: Mapping[str, Tensor]
) -> list[dict[str, float | str]]:
    """Rows of Frechet distance, dynamic degree and sharpness of the videos `names` by window; none for short videos.

    curves (name, metric) -> [T], features name -> [clips, T, D], both also of the video `truth`. The column `worst`
    has the largest ratio of a window to the first one, or of the first one to a window if that is larger.
    """
    change = curves[truth, "change"]
    spans = [slice(end - WINDOW + 1, end + 1) for end in ENDS if end < len(change)]
    rows: list[dict[str, float | str]] = []
    for name in names if len(spans) > 1 else ():
        found = {
            "dynamic degree": [float(curves[name, "change"][span].sum() / change[span].sum()) for span in spans],
            "sharpness": [float(curves[name, "sharpness"][span].mean()) for span in spans],
        }
        if name in features:
            own, true = features[name], features[truth]
            found["frechet"] = [
                float(frechet_distance(own[:, span].flatten(0, 1), true[:, span].flatten(0, 1))) for span in spans
            ]
        for what, values in found.items():
            row: dict[str, float | str] = {"what": f"{name} {what}"}
            row |= {f"frame {end}": float(f"{value:.3g}") for end, value in zip(ENDS, values, strict=False)}
            ratios = [value / values[0] for value in values[1:]]
            rows.append(row | {"worst": round(max(max(ratios), 1 / min(ratios)), 2)})
    return rows
