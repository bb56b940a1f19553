# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, against a server that draws its pictures: what a user does, what the server is told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import bench_page
from tests.serve import fake_server
from tests.serve.fake_server import FakeServer

from aapt_fast.testing.browser import Page

DRAWN = "aapt.stage.active.player.counts.drawn"
PLAYS = "globalThis.aapt?.stage?.active?.player.counts.drawn > 8"
CONTROLS = {"button", "checkbox", "combobox", "radio", "slider", "spinbutton", "switch", "textbox", "link"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeServer, str]]:
    with fake_server.running(fake_server.POSE_CONTROL) as running:
        yield running


@pytest.fixture
def fake(served: tuple[FakeServer, str], page: Page) -> FakeServer:
    """The server, with the page open and playing."""
    server, url = served
    server.messages.clear()
    page.open(url)
    page.wait_for(PLAYS)
    return server


@contextlib.contextmanager
def served_to(page: Page, control: dict[str, Any], token: str | None = None) -> Iterator[tuple[FakeServer, str]]:
    """A server for one test; the page leaves it before it ends."""
    with fake_server.running(control, token) as running:
        yield running
        page.open("about:blank")


NOTE_FRAMES = """(player => {
    globalThis.frames = [];
    const { onDrawn } = player;
    player.onDrawn = (queued, now) => { frames.push(queued.picture.frame); onDrawn(queued, now); };
})(aapt.stage.active.player)"""
"""From here on the numbers of the frames that are drawn are in `frames`."""


def wait_told(fake: FakeServer, kind: str, **fields: Any) -> dict[str, Any]:
    """The newest message of this type, once the server has one."""
    end = time.monotonic() + 20
    while not fake.told(kind, **fields):
        assert time.monotonic() < end, fake.messages
        time.sleep(0.02)
    return fake.told(kind, **fields)[-1]


def wait_file(folder: Path, pattern: str) -> Path:
    """A download, once it is complete."""
    end = time.monotonic() + 20
    while not (found := [path for path in folder.glob(pattern) if path.stat().st_size]):
        assert time.monotonic() < end, list(folder.iterdir())
        time.sleep(0.05)
    return found[0]


def test_it_plays_and_shows_its_numbers(fake: FakeServer, page: Page) -> None:
    before = page.evaluate(DRAWN)
    page.wait_for(f"{DRAWN} > {before} + 8")
    assert page.evaluate("document.querySelector('#link').textContent") == "Connected"
    page.wait_for("document.querySelector('#rate').textContent.includes('pictures per second')")
    page.wait_for(
        "[...document.querySelectorAll('.graph .value')].filter(each => each.textContent.endsWith('ms')).length === 4"
    )  # no control yet
    assert wait_told(fake, "received_until")["frame"] >= 0


def test_a_motion_is_chosen_and_its_time_to_light_measured(fake: FakeServer, page: Page) -> None:
    page.press("2")
    control = wait_told(fake, "control", track="action")
    assert control["value"] == "walk"
    page.wait_for(f"aapt.stage.active.applied?.id === {control['id']}")
    page.wait_for("aapt.live.controlToPhoton.values.length > 0")
    page.click("#actions button:nth-child(7)")
    assert wait_told(fake, "control", track="action", value="dance")["id"] > control["id"]
    pressed = "document.querySelector('#actions [aria-pressed=true]')?.firstChild.textContent"
    assert page.evaluate(pressed) == "dance"
    page.evaluate("location.reload()")
    page.wait_for(f"{PLAYS} && {pressed} === 'dance'")


def test_a_joint_is_dragged_by_mouse_and_let_go(fake: FakeServer, page: Page) -> None:
    page.wait_for("!document.querySelector('[data-joint=left_hand]').hidden")
    x, y = page.centre("[data-joint=left_hand]")
    page.mouse("mousePressed", x, y)
    page.mouse("mouseMoved", x - 80, y - 150)
    pose = wait_told(fake, "control", track="pose")["value"]
    page.mouse("mouseReleased", x - 80, y - 150)
    hand = fake_server.POSE_CONTROL["names"].index("left_hand")
    assert pose[hand][0] < fake_server.POSE[hand][0] and pose[hand][1] < fake_server.POSE[hand][1]
    assert wait_told(fake, "control", track="pose", value=None)["id"] > 1


def test_a_pose_is_held_until_a_motion_is_chosen(fake: FakeServer, page: Page) -> None:
    page.click("#hold-pose")
    page.resize(390, 844, touch=True)
    x, y = page.centre("[data-joint=left_elbow]")
    page.touch("touchStart", (x, y))
    page.touch("touchMove", (x - 60, y - 20))
    wait_told(fake, "control", track="pose")
    page.touch("touchEnd")
    page.wait_for("!document.querySelector('[data-held]')")
    assert page.evaluate("aapt.stage.active.skeleton.held !== null")
    assert not fake.told("control", track="pose", value=None)
    page.click("#actions button:nth-child(1)")
    wait_told(fake, "control", track="pose", value=None)
    wait_told(fake, "control", track="action", value="idle")


def test_pause_single_step_resume_and_reset(fake: FakeServer, page: Page) -> None:
    page.click("#pause")
    page.wait_for("aapt.stage.active.paused && aapt.stage.active.player.queue.length === 0")
    drawn = page.evaluate(DRAWN)
    page.click("#step")
    page.wait_for(f"{DRAWN} === {drawn + 4}")
    page.click("#pause")
    page.wait_for(f"{DRAWN} > {drawn + 8}")
    page.evaluate(NOTE_FRAMES)
    page.click("#reset")
    wait_told(fake, "reset")
    page.wait_for("frames.includes(0)")


def test_the_past_is_looked_at_and_gone_back_to(fake: FakeServer, page: Page) -> None:
    page.wait_for("aapt.stage.active.step > 4")
    page.evaluate(
        "(() => { const s = document.querySelector('#scrubber'); s.value = 2; s.dispatchEvent(new Event('input')); })()"
    )
    wait_told(fake, "pause")
    assert page.evaluate("document.querySelector('.caption').textContent").startswith("Step 2,")
    page.press("Escape")
    wait_told(fake, "resume")
    page.press("[")
    page.press("[")
    page.wait_for("!document.querySelector('#rewind').hidden")
    step = page.evaluate("Number(document.querySelector('#scrubber').value)")
    page.evaluate(NOTE_FRAMES)
    page.click("#rewind")
    assert wait_told(fake, "rewind")["step"] == step
    page.wait_for("!aapt.stage.active.paused && aapt.stage.active.caption.hidden")
    assert page.wait_for("frames.length > 4 && frames")[0] == 4 * step


def test_the_past_is_left_when_the_other_branch_is_steered(fake: FakeServer, page: Page) -> None:
    page.press("t")
    page.wait_for("aapt.stage.lanes.length === 2 && aapt.stage.lanes.every(lane => lane.step > 2)")
    page.press("[")
    page.wait_for("aapt.stage.lanes[1].paused")
    page.press("x")
    page.wait_for("!aapt.stage.lanes[1].paused && !aapt.stage.lanes[1].player.frozen")
    assert page.evaluate("document.querySelector('#rewind').hidden")


def test_two_branches_are_steered_and_one_is_kept(fake: FakeServer, page: Page) -> None:
    page.wait_for("aapt.stage.active.step > 4")
    page.press("[")
    page.press("t")
    page.wait_for("aapt.stage.lanes.length === 2 && aapt.stage.lanes.every(lane => lane.player.counts.drawn > 8)")
    first, second = page.evaluate("aapt.stage.lanes.map(lane => lane.stream)")
    assert wait_told(fake, "rewind")["stream"] == second
    page.press("5")
    wait_told(fake, "control", stream=second, value="squat")
    page.press("x")
    page.press("6")
    wait_told(fake, "control", stream=first, value="kick")
    page.click(".lane:last-child .keep")
    assert wait_told(fake, "close")["stream"] == first
    assert page.evaluate("aapt.stage.lanes.map(lane => lane.stream)") == [second]


def test_a_video_is_recorded(fake: FakeServer, page: Page, downloads: Path) -> None:
    page.click("#record")
    page.wait_for("document.querySelector('#record').getAttribute('aria-pressed') === 'true'")
    drawn = page.evaluate(DRAWN)
    page.wait_for(f"{DRAWN} > {drawn} + 24")
    page.click("#record")
    video = wait_file(downloads, "aapt-fast-2*.[mw][pe][4b]*").read_bytes()
    assert video[4:8] == b"ftyp" or video.startswith(b"\x1aE\xdf\xa3")


def test_it_is_shared_by_link_and_by_replay(fake: FakeServer, page: Page, downloads: Path) -> None:
    page.click("#open-share")
    link = page.evaluate("document.querySelector('#watch-link').value")
    key = page.evaluate("aapt.stage.active.key")
    assert link.endswith(f"#watch={key}")
    page.click("#download-replay")
    assert wait_file(downloads, "aapt-fast-replay*").read_text() == f"replay of {key}"
    page.open(link)
    page.wait_for(PLAYS)
    assert wait_told(fake, "watch")["key"] == key
    number = len(fake.uploads) + 1
    choose_file(page, "#open-replay", wait_file(downloads, "aapt-fast-replay*"))
    wait_told(fake, "open", first={"replay": f"replays-{number}"})
    assert fake.uploads[-1] == ("replays", f"replay of {key}".encode())


def choose_file(page: Page, selector: str, path: Path) -> None:
    """Give a file to an input of files, as its dialog would."""
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def test_a_stream_starts_from_what_is_chosen(fake: FakeServer, page: Page, tmp_path: Path) -> None:
    page.wait_for("[...document.querySelectorAll('#gallery img')].every(image => image.naturalWidth === 96)")
    page.click("#gallery label:nth-child(3) input")
    page.evaluate("document.querySelector('#seed').value = 7")
    page.evaluate("document.querySelector('#prompt').value = 'a red ball'")
    page.click("#start")
    opened = wait_told(fake, "reset", seed=7)
    assert (opened["first"], opened["prompt"]) == ({"gallery": 2}, "a red ball")
    page.click("#set-prompt")
    wait_told(fake, "prompt", prompt="a red ball")
    own = tmp_path / "own.png"
    own.write_bytes(fake_server.picture(3, "PNG"))
    choose_file(page, "#upload", own)
    page.wait_for("document.querySelectorAll('#gallery input').length === 4")
    page.click("#start")
    wait_told(fake, "reset", first={"image": f"images-{len(fake.uploads)}"})


def test_a_model_without_pictures_asks_for_one(page: Page, tmp_path: Path) -> None:
    with served_to(page, fake_server.POSE_CONTROL) as (fake, url):
        fake.gallery = 0
        page.open(url)
        page.wait_for("document.querySelector('#notice').textContent.includes('upload a first picture')")
        own = tmp_path / "own.png"
        own.write_bytes(fake_server.picture(3, "PNG"))
        choose_file(page, "#upload", own)
        page.wait_for("document.querySelector('#gallery input:checked') !== null")
        page.click("#start")
        page.wait_for(PLAYS)
        assert fake.told("open")[-1]["first"] == {"image": "images-1"}


def test_a_lost_connection_is_said_and_found_again(fake: FakeServer, page: Page) -> None:
    page.evaluate(
        "globalThis.said = []; new MutationObserver(() => said.push(document.querySelector('#link').textContent))"
        ".observe(document.querySelector('#link'), {childList: true}), 0"
    )
    fake.drop()
    page.wait_for("said.some(text => text.startsWith('Connection lost')) && said.at(-1) === 'Connected'")
    key = wait_told(fake, "watch")["key"]
    drawn = page.evaluate(DRAWN)
    page.wait_for(f"{DRAWN} > {drawn} + 4")
    page.evaluate("location.reload()")
    page.wait_for(f"{PLAYS} && aapt.stage.active.key === '{key}'")


def test_a_stream_that_has_ended_says_so_and_another_one_starts(fake: FakeServer, page: Page) -> None:
    number = page.evaluate("aapt.stage.active.stream")
    fake.end(number)
    page.wait_for("document.querySelector('.badge.live').textContent === 'Ended: a test wants it'")
    assert page.evaluate("document.querySelector('#pause').disabled")
    page.click("#start")
    page.wait_for(f"aapt.stage.active.stream > {number} && {PLAYS}")
    assert page.evaluate("document.querySelectorAll('.lane').length") == 1


def test_after_a_restart_of_the_server_the_stream_starts_anew(fake: FakeServer, page: Page) -> None:
    key = page.evaluate("aapt.stage.active.key")
    fake.streams.clear()
    fake.messages.clear()
    fake.drop()
    assert wait_told(fake, "open")["first"] == {"gallery": 0}
    page.wait_for(f"{PLAYS} && aapt.stage.active.key !== '{key}'")


def test_a_token_comes_from_the_fragment_only(page: Page) -> None:
    with served_to(page, fake_server.POSE_CONTROL, token="secret") as (_, url):
        page.open(f"{url}#token=secret")
        page.wait_for(PLAYS)
        page.wait_for("[...document.querySelectorAll('#gallery img')].every(image => image.naturalWidth === 96)")
        addresses = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
        assert addresses and not any("secret" in each for each in addresses)
        page.open(f"{url}#token=wrong")
        page.wait_for("document.querySelector('#notice').textContent.includes('token')")


def test_a_keyboard_alone_is_enough(fake: FakeServer, page: Page) -> None:
    reached = []
    for _ in range(60):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 4)"))
    wanted = [
        "scrubber",
        "pause",
        "step",
        "reset",
        "fork",
        "record",
        "idle",
        "show-skeleton",
        "joint",
        "start",
        "open-share",
    ]
    assert [each for each in wanted if each not in reached] == []
    page.evaluate("document.querySelector('[data-nudge=\"0,-1\"]').focus()")
    page.press("Enter")
    wait_told(fake, "control", track="pose")
    page.press("Escape")
    wait_told(fake, "control", track="pose", value=None)
    page.press("?")
    page.wait_for("document.querySelector('#help').open")
    page.press("Escape")
    page.wait_for("!document.querySelector('#help').open")


def test_the_bench_counts_what_the_page_draws(fake: FakeServer, page: Page, served: tuple[FakeServer, str]) -> None:
    counted = bench_page.play(page, served[1], seconds=1.5, codec="jpeg", warm_up_s=0.5)
    assert counted["drawn"] > 4 and counted["fps"] > 0
    assert counted["controlToPhotonP50"] > 0 and counted["decodeP95"] > 0


def test_every_control_has_a_name(fake: FakeServer, page: Page) -> None:
    controls = [each for each in page.accessible() if each["role"] in CONTROLS]
    assert len(controls) > 25
    assert [each for each in controls if not each["name"].strip()] == []


@pytest.mark.parametrize("width", [360, 390, 768])
def test_nothing_is_wider_than_a_phone(fake: FakeServer, page: Page, width: int) -> None:
    page.resize(width, 800, touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.press("t")
    page.wait_for("aapt.stage.lanes.length === 2")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ends = "[...document.querySelectorAll('button, input, select')].map(each => each.getBoundingClientRect().right)"
    assert max(page.evaluate(ends)) <= width


def test_a_camera_is_flown_by_keys_mouse_and_touch(page: Page) -> None:
    with served_to(page, fake_server.CAMERA_CONTROL) as (fake, url):
        page.open(url)
        page.wait_for(PLAYS)
        page.press("w", hold=True)
        assert wait_told(fake, "control", track="camera")["value"] == [0, 0, 1, 0, 0, 0]
        page.release("w")
        wait_told(fake, "control", track="camera", value=[0] * 6)
        x, y = page.centre(".screen")
        page.mouse("mousePressed", x, y)
        page.mouse("mouseMoved", x + 60, y)
        assert wait_told(fake, "control", track="camera", value=[0, 0, 0, 0, 0.5, 0])
        page.mouse("mouseReleased", x + 60, y)
        page.resize(390, 844, touch=True)
        x, y = page.centre(".screen")
        page.touch("touchStart", (x, y), (x + 40, y))
        page.touch("touchMove", (x, y - 60), (x + 40, y - 60))
        assert wait_told(fake, "control", track="camera", value=[0, 0, 1, 0, 0, 0])
        page.touch("touchEnd")
        page.wait_for("aapt.stage.active.controls > 0 && !document.querySelector('[data-looking]')")
