# SPDX-License-Identifier: Apache-2.0
"""Goals of the bench of the page. tests/serve/test_page.py plays with a browser."""

from __future__ import annotations

from bench.bench_page import judge


def test_goals_are_met_or_missed() -> None:
    numbers = dict.fromkeys(("stepP50", "stepP95", "decodeP50", "networkP50"), 40.0)
    counted = {"fps": 24.0, "late": 3, "worstInARow": 2, "encodeP50": 0.4, **numbers}
    entries = judge({**counted, "controlToPhotonP50": 200.0, "controlToPhotonP95": 320.0})
    verdicts = {entry["name"]: entry["verdict"] for entry in entries}
    assert verdicts["page/pictures drawn per second"] == "met"
    assert verdicts["page/late pictures in a row, most"] == "missed"
    assert verdicts["page/control to photon, p50"] == "met"  # 4 of 24 pictures and a step: 207 ms
    assert verdicts["page/control to photon, p95"] == "missed"
    assert verdicts["page/step, p50"] == ""
