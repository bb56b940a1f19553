# SPDX-License-Identifier: Apache-2.0
"""Smoothness and latency of the page: `aapt-fast serve` with the bundled model and a browser, on one machine.

After ten seconds, a motion is chosen about once a second for a minute, at random moments of a step. The page's own
numbers are collected: pictures drawn, how many came late (the one before stayed 1.5 periods) and how many in a row, and
the time from sending a control until a picture that obeys it is drawn.

    python -m bench.bench_page [--seconds N] [--codec jpeg|h264] [--dtype float32|bfloat16] [--screenshot F]
                                                         a table with the goals, then the document

The browser has no window and no GPU: it draws on the cores of the model.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from aapt_fast.testing.browser import Page, browser, find_browser
from bench.harness.program import finish, open_document, parser

WARM_UP_S = 10.0
FPS, FRAMES_PER_STEP = 24, 4
PLAYS = "globalThis.aapt?.stage?.active?.player.counts.drawn > 24"
BEGIN = """
    aapt.stage.active.player.counts = { drawn: 0, late: 0, lateInARow: 0, worstInARow: 0 };
    for (const name of ["controlToPhoton", "step", "encode", "decode", "network"]) aapt.live[name].samples = [];
"""
COLLECT = """({
    ...aapt.stage.active.player.counts,
    ...Object.fromEntries(["controlToPhoton", "step", "encode", "decode", "network"].flatMap(name =>
        [50, 95].map(percent => [`${name}P${percent}`, aapt.live[name].percentile(percent / 100)]))),
})"""


@contextlib.contextmanager
def server(dtype: str | None) -> Iterator[str]:
    """Run `aapt-fast serve` until the block ends; yields its address."""
    command = [sys.executable, "-m", "aapt_fast", "serve", "--port", "0", *(["--dtype", dtype] if dtype else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if ": http" not in said:
            raise RuntimeError(f"the server did not start: {said}")
        yield said.rpartition(" ")[2].strip()
    finally:
        process.terminate()
        process.wait()


def play(page: Page, address: str, seconds: float, codec: str, warm_up_s: float = WARM_UP_S) -> dict[str, float]:
    """Play and steer for so many seconds; returns what the page counted."""
    page.resize(1280, 800)
    page.open(f"{address}#codec={codec}")
    page.wait_for(PLAYS, timeout_s=120)
    time.sleep(warm_up_s)
    page.evaluate(BEGIN)
    dice, begun = random.Random(0), time.perf_counter()
    while (left := begun + seconds - time.perf_counter()) > 0:
        page.press(str(dice.randint(1, 8)))
        time.sleep(min(left, dice.uniform(0.7, 1.3)))
    counted = page.evaluate(COLLECT)
    return {**counted, "fps": counted["drawn"] / (time.perf_counter() - begun)}


def take_picture(page: Page, path: Path) -> None:
    """Write a PNG, of 6 bits per colour, of the page in dark with two branches side by side: for the documentation."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.press("7")
    time.sleep(2.0)
    for _ in range(8):
        page.press("[")
    page.press("t")
    page.wait_for("aapt.stage.lanes.length === 2 && aapt.stage.lanes.every(lane => !lane.paused)")
    page.press("3")
    time.sleep(6.0)  # until its message is gone
    page.mouse("mouseMoved", *page.centre(".lane:last-child .picture"))
    time.sleep(0.5)
    page.screenshot(path)
    with Image.open(path) as picture:
        smaller = picture.convert("RGB").point(lambda value: min(255, (value + 2) // 4 * 4))
    smaller.save(path, optimize=True)


def judge(counted: dict[str, float]) -> list[dict[str, Any]]:
    """One entry of `measurements` per number; its goal, where it has one, stands for the prediction."""
    latency_goal = 1e3 * FRAMES_PER_STEP / FPS + counted["stepP50"]
    numbers = [
        ("pictures drawn per second", counted["fps"], "1/s", 0.99 * FPS, True),
        ("late pictures", counted["late"], "", None, False),
        ("late pictures in a row, most", counted["worstInARow"], "", 1, False),
        ("control to photon, p50", counted["controlToPhotonP50"], "ms", latency_goal, False),
        ("control to photon, p95", counted["controlToPhotonP95"], "ms", 1.5 * latency_goal, False),
        ("encode, p50", counted["encodeP50"], "ms", 1.0, False),
        ("step, p50", counted["stepP50"], "ms", None, False),
        ("step, p95", counted["stepP95"], "ms", None, False),
        ("decode, p50", counted["decodeP50"], "ms", None, False),
        ("network and back, p50", counted["networkP50"], "ms", None, False),
    ]
    entries = []
    for name, value, unit, goal, more_is_better in numbers:
        goals, verdict = [], ""
        if goal is not None:
            goals, verdict = [goal], "met" if (value >= goal if more_is_better else value <= goal) else "missed"
        entries.append({"name": f"page/{name}", "value": value, "unit": unit, "predicted": goals, "verdict": verdict})
    return entries


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--codec", choices=["jpeg", "h264"], default="jpeg")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], help="as `aapt-fast serve` chooses it")
    options.add_argument("--screenshot", type=Path, help="PNG of the page with two branches, taken afterwards")
    arguments = options.parse_args()
    executable = find_browser()
    if executable is None:
        sys.exit("no browser: this needs Chromium or Chrome")
    document = open_document(arguments.out)
    with server(arguments.dtype) as address, browser(executable) as page:
        counted = play(page, address, arguments.seconds, arguments.codec)
        if arguments.screenshot is not None:
            take_picture(page, arguments.screenshot)
    dtype = arguments.dtype or "the server's dtype"
    what_ran = f"mini-person, {dtype}, {arguments.codec}, {arguments.seconds:g} s, headless Chromium"
    print(f"{'number':40} {'value':>9} {'goal':>9}")
    for entry in judge(counted):
        document.add("measurements", {**entry, "what_ran": what_ran})
        goal = "".join(f"{goal:9.2f}" for goal in entry["predicted"])
        print(f"{entry['name']:40} {entry['value']:9.2f} {goal} {entry['verdict']}", flush=True)
    finish(document)


if __name__ == "__main__":
    main()
