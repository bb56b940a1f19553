# SPDX-License-Identifier: Apache-2.0
"""Two servers with one shelf: a stream of the one that ends goes on in the other."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from tests.cli.models import write_nano_model
from tests.serve.test_host import Server

from aapt_fast.serve.run import serving
from aapt_fast.serve.settings import Settings
from aapt_fast.serve.shelf import Elsewhere, Shelf
from aapt_fast.serve.sync_client import connect

PATIENCE = 60.0


def facts_of(shelf: Path) -> dict:
    """The facts of the only stream on a shelf, once they are there."""
    deadline = time.monotonic() + PATIENCE
    while not list(shelf.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    [path] = shelf.glob("*.json")
    return json.loads(path.read_text())


def test_a_stream_goes_on_in_the_next_server(tmp_path):
    shelf = tmp_path / "shelf"
    settings = Settings(
        str(write_nano_model(tmp_path / "model")),
        dtype="float32",
        streams=2,
        shelf=str(shelf),
        keep_seconds=0.2,
    )
    with serving(settings) as second_address, connect(second_address) as second:
        with serving(settings) as address, connect(address) as client:
            stream = client.open(action="wave", seed=5)
            for frame in stream.frames():
                if frame.number >= 15:
                    break
            facts = facts_of(shelf)
            assert (facts["kind"], facts["seed"], facts["action"]) == ("state", 5, "wave")
            with pytest.raises(
                ValueError, match=r"^key: expected that of a stream of this server, got one that another"
            ):
                second.watch(stream.key)
            stream.pause()
            step = stream.state["step"]
            key = stream.key
        # The first server has ended, and has copied the stream before that.
        again = second.watch(key)
        assert again.state["step"] == step >= 4
        again.resume()
        assert next(again.frames()).number == 4 * step
        again.close()
        with pytest.raises(ValueError, match="key: expected that of an open stream"):
            second.watch(key)
    assert [path.name for path in shelf.iterdir()] == []


@pytest.mark.parametrize("kind", ["state", "replay"])
def test_a_copy_goes_on_with_the_same_pictures(kind, tmp_path):
    """In another host, which fades its player in from the newest pose; under a pose that is held both show the same."""
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    one, other = (Server(str(folder)) for folder in folders)
    try:
        one.open()
        one.take(steps=3)
        copy = {"path": str(tmp_path / "x.safetensors"), "kind": kind}
        kept = one.call("keep", **copy)[0]
        assert (kept["step"], kept["action"]) == (3, "walk") and len(kept["entry"]) == 19
        facts = {"action": "walk", "entry": kept["entry"], "seed": 3, "paused": True, "codecs": ["jpeg"]}
        assert other.call("take over", **copy, **facts)[0]["step"] == 3
        pose = [[0.5, 0.5, 0.0]] * 19
        shown = []
        for server in (one, other):
            server.host.handle({"do": "control", "key": "a", "track": "pose", "value": pose, "number": 1}, b"")
            assert "error" not in server.call("step")[0]
            shown.append(server.steps("a").get(timeout=PATIENCE))
        assert shown[0][0]["step"] == shown[1][0]["step"] == 4 and shown[0][1] == shown[1][1]
    finally:
        one.host.close()
        other.host.close()


def test_a_stream_of_a_server_that_lives_is_left_to_it(tmp_path):
    one, other, third = (Shelf(tmp_path) for _ in range(3))
    assert one.take("key") is None
    one.place("key", 3).write_text("three")
    one.put("key", 3, {"seed": 1})
    one.place("key", 4).write_text("four")
    one.sign()
    one.put("key", 4, {"seed": 1})
    with pytest.raises(Elsewhere):
        other.take("key")
    sign = tmp_path / f"{one.server}.alive"
    os.utime(sign, (time.time() - 60,) * 2)  # it has been killed
    facts, copy = other.take("key")
    assert facts["seed"] == 1 and copy.read_text() == "four" and not one.place("key", 3).exists()
    other.sign()
    for late in (one, third):
        with pytest.raises(Elsewhere):
            late.take("key")
    other.forget("key")
    assert third.take("key") is None and third.take("../" * 9) is None
