# SPDX-License-Identifier: Apache-2.0
"""Any messages in any order: every one gets an answer, an error or the end of its connection, and the server lives."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.conftest import Player
from websockets.exceptions import ConnectionClosed

from aapt_fast.serve.protocol import BadMessage, read_message
from aapt_fast.serve.settings import Limits

small = st.integers(0, 3)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
values = st.sampled_from([None, "walk", "idle", "impossible", [[0.1, 0.2, 0], [0.3, 0.4, 1]], [1.0], [[1e300]]])
TYPES = ("open", "watch", "control", "pause", "resume", "step", "close", "fork", "reset", "prompt", "rewind", "ping")
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional={
        "request": small,
        "stream": small,
        "first": st.sampled_from([{"gallery": 0}, {"image": "x"}, {}]),
        "id": st.integers(0, 2**32),
        "track": st.sampled_from(["action", "pose", "camera", "x"]),
        "value": values | anything,
        "step": small,
        "key": st.text(max_size=3),
        "prompt": st.text(max_size=3),
        "policy": st.sampled_from(["keep", "recompute", "forget"]),
        "time": st.floats(),
        "extra": anything,
    },
)


def whole(message: dict[str, Any]) -> dict[str, Any]:
    """The message with all fields of its type, and no others, so that most are valid."""
    needed = {
        "open": ("request", "first"),
        "watch": ("request", "key"),
        "control": ("stream", "id", "track", "value"),
        "prompt": ("request", "stream", "prompt", "policy"),
        "rewind": ("request", "stream", "step"),
        "ping": ("time",),
    }.get(message["type"], ("request", "stream"))
    usual = {"request": 1, "stream": 0, "first": {"gallery": 0}, "id": 1, "track": "action", "value": None}
    usual |= {"step": 0, "key": "x", "prompt": "", "policy": "keep", "time": 1}
    return {"type": message["type"], **{name: message.get(name, usual[name]) for name in needed}}


frames = st.one_of(messages.map(whole).map(json.dumps), messages.map(json.dumps), st.text(max_size=20))


@given(st.one_of(frames, anything.map(json.dumps)))
@settings(max_examples=100, deadline=None)
def test_a_text_is_a_message_or_an_error_that_tells_why(text):
    try:
        assert read_message(text).type
    except BadMessage as error:
        assert error.error["message"] and "argument" in error.error


def test_any_messages_leave_a_server_that_works(make_running, play):
    running = make_running(limits=Limits(messages_per_second=10_000))

    @given(st.lists(frames, max_size=12), st.booleans())
    @settings(max_examples=25, deadline=None)
    def talk(texts: list[str], closes: bool) -> None:
        player = play(running)
        assert player.receive()["type"] == "welcome"
        try:
            for text in texts:
                player.connection.send(text)
            for key in running.keys[:2]:
                with contextlib.suppress(KeyError):  # a message has closed it meanwhile
                    running.worker.take_step(key)
            _drain(player)
        except ConnectionClosed as end:
            assert end.rcvd.code in (4400, 1007)
        if closes:
            player.connection.close()
        else:
            player.connection.socket.close()  # without a word
        running.until(lambda: running.call(lambda: len(running.served.connections)) == 0)
        assert len(running.workers) == 1 and running.http("/health")[0] == 200

    talk()
    player = play(running)
    assert player.open()["type"] == "opened"


def _drain(player: Player) -> None:
    """Read until a `pong` shows that all before it has been answered."""
    player.send(type="ping", time=-7.0)
    while player.receive("pong")["time"] != -7.0:
        pass
