# SPDX-License-Identifier: Apache-2.0
"""The whole: `aapt-fast serve` with the bundled model and the page in a real browser, by H.264 where both can."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aapt_fast.testing.browser import Page

PATIENCE_S = 60.0
STEP = "aapt.stage.active.step"


@pytest.fixture
def address(open_browser: Page) -> Iterator[str]:
    """A server of its own process; without a browser none is started."""
    command = [sys.executable, "-m", "aapt_fast", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().rpartition(" ")[2].strip()
        process.terminate()


def test_play_steer_look_back_branch_and_record(address: str, page: Page, downloads: Path) -> None:
    page.open(f"{address}#codec=h264")
    page.wait_for(f"globalThis.aapt?.stage?.active && {STEP} > 3", PATIENCE_S)
    assert page.evaluate("aapt.connection.welcome.codec") in ("h264", "jpeg")

    page.press("2")
    applied = page.wait_for("aapt.stage.active.applied", PATIENCE_S)
    page.wait_for(
        f"aapt.stage.active.shown >= {applied['frame']} && aapt.live.controlToPhoton.values.length", PATIENCE_S
    )

    x, y = page.centre("[data-joint=right_hand]")
    page.mouse("mousePressed", x, y)
    page.mouse("mouseMoved", x + 60, y - 200)
    page.wait_for("aapt.stage.active.applied.id === aapt.stage.active.controls", PATIENCE_S)
    page.mouse("mouseReleased", x + 60, y - 200)

    page.click("#record")
    page.press("[")
    page.press("[")
    page.wait_for("aapt.stage.active.paused", PATIENCE_S)
    step = page.evaluate("Number(document.querySelector('#scrubber').value)")
    page.press("t")
    page.wait_for(f"aapt.stage.lanes.length === 2 && !aapt.stage.active.paused && {STEP} > {step}", PATIENCE_S)
    page.wait_for("aapt.stage.lanes.every(lane => !lane.paused && lane.player.counts.drawn > 4)", PATIENCE_S)
    page.press("k")
    page.wait_for("aapt.stage.lanes.length === 1")

    page.press("[")
    page.wait_for("aapt.stage.active.paused", PATIENCE_S)
    step = page.evaluate("Number(document.querySelector('#scrubber').value)")
    page.press("b")
    page.wait_for(f"!aapt.stage.active.paused && {STEP} > {step}", PATIENCE_S)
    page.click("#record")
    page.wait_for("document.querySelector('#announcer').textContent.includes('is saved')", PATIENCE_S)
    assert page.evaluate("document.querySelector('#notice').hidden")
