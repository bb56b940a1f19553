# SPDX-License-Identifier: Apache-2.0
"""What a client sees, against a worker that answers at once; and what clients with bad manners get."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import threading

import pytest
from tests.serve.conftest import Player
from websockets.exceptions import ConnectionClosed

from aapt_fast.serve import protocol
from aapt_fast.serve.connection import Connection
from aapt_fast.serve.protocol import Header
from aapt_fast.serve.settings import Limits


def code_of(player: Player) -> tuple[int, dict]:
    """The code with which the server closes the connection, and the last error before."""
    last: dict = {}
    try:
        while True:
            last = player.receive("error")
    except ConnectionClosed as end:
        return end.rcvd.code, last


def test_a_stream_is_opened_shown_and_closed(running, player):
    opened = player.open(action="walk", seed=3)
    assert opened["type"] == "opened" and (opened["stream"], opened["seed"]) == (0, 3)
    assert player.receive("state") | {"viewers": 1, "paused": False} == player_state(opened)
    command = next(each for each in running.worker.commands if each.get("key") == opened["key"])
    assert (command["do"], command["action"], command["gallery"]) == ("open", "walk", 0)
    running.worker.take_step(opened["key"])
    pictures = [player.picture() for _ in range(4)]
    headers = [Header.unpack(each) for each in pictures]
    assert [each.frame for each in headers] == [0, 1, 2, 3] and [each.flags for each in headers] == [1, 0, 0, 0]
    assert {each[protocol.HEADER_BYTES :] for each in pictures} == {b"picture"} and headers[0].time == 1000
    assert player.ask("close", stream=0)["type"] == "done"
    assert opened["key"] not in running.keys
    error = player.ask("pause", stream=0)
    assert (error["type"], error["argument"], error["stream"]) == ("error", "stream", 0)


def player_state(opened: dict) -> dict:
    state = {"step": 0, "oldest_step": 0, "paused": False, "parked": False, "action": "walk", "viewers": 1}
    return {"type": "state", "stream": opened["stream"], **state}


def test_a_stream_that_stops_by_itself_says_so(running, player):
    opened = player.open()
    assert not player.receive("state")["paused"]
    running.worker.take_step(opened["key"])
    running.worker.streams[opened["key"]]["paused"] = True  # as at the end of a replay
    running.worker.take_step(opened["key"])
    state = player.receive("state")
    assert (state["paused"], state["step"]) == (True, 2)


def test_controls_have_two_receipts_and_old_ones_are_ignored(running, player):
    opened = player.open()
    for number, value in ((5, "walk"), (5, "idle"), (3, "idle"), (9, "idle")):
        player.send(type="control", stream=0, id=number, track="action", value=value)
    assert [player.receive("received")["id"] for _ in range(2)] == [5, 9]
    running.worker.take_step(opened["key"])
    applied = [player.receive("applied") for _ in range(2)]
    assert [(each["id"], each["step"], each["frame"]) for each in applied] == [(5, 1, 0), (9, 1, 0)]
    assert Header.unpack(player.picture()).control == 9
    sent = [each["value"] for each in running.worker.commands if each.get("key") == opened["key"] and "value" in each]
    assert sent == ["walk", "idle"]  # of the four, two were new
    player.send(type="control", stream=0, id=10, track="action", value="impossible")
    error = player.receive("error")
    assert (error["id"], error["stream"], error["argument"]) == (10, 0, "action")
    player.send(type="control", stream=7, id=1, track="action", value="walk")
    assert player.receive("error")["argument"] == "stream"


def test_every_viewer_has_the_ids_of_its_own_controls(running, player, play):
    opened = player.open()
    other = play(running)
    watched = other.ask("watch", key=opened["key"])
    assert (watched["type"], watched["key"], watched["stream"]) == ("opened", opened["key"], 0)
    while player.receive("state")["viewers"] != 2:
        pass
    other.send(type="control", stream=0, id=70, track="action", value="walk")
    assert other.receive("received")["id"] == 70
    player.send(type="control", stream=0, id=2, track="action", value="idle")
    assert player.receive("received")["id"] == 2
    running.worker.take_step(opened["key"])
    assert (player.receive("applied")["id"], other.receive("applied")["id"]) == (2, 70)
    assert (Header.unpack(player.picture()).control, Header.unpack(other.picture()).control) == (2, 70)
    assert other.ask("watch", key="x")["argument"] == "key"
    assert other.ask("close", stream=0)["type"] == "done" and opened["key"] in running.keys  # others still watch


def test_pause_rewind_reset_and_fork(running, player):
    opened = player.open()
    for _ in range(3):
        running.worker.take_step(opened["key"])
    assert player.ask("pause", stream=0)["type"] == "done"
    assert player.ask("rewind", stream=0, step=1)["type"] == "done"
    running.worker.take_step(opened["key"])
    while Header.unpack(picture := player.picture()).flags != 3:
        pass
    assert Header.unpack(picture).frame == 4  # step 2 again
    fork = player.ask("fork", stream=0)
    assert fork["stream"] == 1 and fork["key"] != opened["key"]
    assert player.ask("reset", stream=0, seed=8)["type"] == "done"
    commands = [each["do"] for each in running.worker.commands if each.get("key") == opened["key"]]
    assert [each for each in commands if each != "codecs"] == ["open", "pause", "rewind", "reset"]


def test_a_prompt_says_what_becomes_of_the_past(running, player):
    opened = player.open()
    for fields, policy in (({}, "keep"), ({"policy": "recompute"}, "recompute")):
        assert player.ask("prompt", stream=opened["stream"], prompt="rain", **fields)["type"] == "done"
        sent = [each for each in running.worker.commands if each.get("key") == opened["key"] and each["do"] == "prompt"]
        assert (sent[-1]["prompt"], sent[-1]["policy"]) == ("rain", policy)
    refused = player.ask("prompt", stream=opened["stream"], prompt="rain", policy="forget")
    assert (refused["type"], refused["argument"]) == ("error", "policy")


def test_who_comes_to_a_paused_stream_sees_its_newest_step(running, player, play):
    opened = player.open()
    running.worker.take_step(opened["key"])
    assert player.picture() and player.ask("pause", stream=0)["type"] == "done"
    other = play(running)
    other.ask("watch", key=opened["key"])
    header = Header.unpack(other.picture())
    assert (header.frame, header.flags) == (0, 3)
    fork = player.ask("fork", stream=0)
    while Header.unpack(picture := player.picture()).stream != fork["stream"]:
        pass
    assert Header.unpack(picture).frame == 0


def test_a_stream_that_nobody_watches_waits_for_somebody(running, play):
    player = play(running)
    key = player.open()["key"]
    player.connection.close()
    running.until(lambda: running.worker.streams[key]["paused"])
    running.until(lambda: running.call(lambda: running.served.streams.find(key).paused_by_server))
    again = play(running)
    assert again.ask("watch", key=key)["type"] == "opened"
    running.until(lambda: not running.worker.streams[key]["paused"])
    assert again.ask("close", stream=0)["type"] == "done"


def test_a_full_engine_closes_what_nobody_watches_and_then_refuses(make_running, play):
    running = make_running(streams=2)
    gone, stays = play(running), play(running)
    lost = gone.open()["key"]
    assert stays.open()["type"] == "opened"
    assert (answer := stays.open())["type"] == "error" and "full" not in answer
    gone.connection.close()
    running.until(lambda: running.worker.streams[lost]["paused"])
    assert stays.open()["type"] == "opened" and lost not in running.keys
    assert running.call(lambda: len(running.served.streams)) == 2


def test_ping_and_more_than_allowed(running, player):
    player.send(type="ping", time=1.5)
    pong = player.receive("pong")
    assert pong["time"] == 1.5 and pong["server_time"] > 0
    for _ in range(4):
        assert player.open()["type"] == "opened"
    assert player.open()["argument"] == "streams"


@pytest.mark.parametrize(
    ("hello", "code", "argument"),
    [
        ({"version": 2}, 4400, "version"),
        ({"codecs": ["vp9"]}, 4400, "codecs"),
        ({"codecs": "jpeg"}, 4400, "codecs"),
        ({"more": 1}, 4400, "more"),
    ],
)
def test_a_bad_hello(running, play, hello, code, argument):
    closed, error = code_of(play(running, hello))
    assert (closed, error["argument"]) == (code, argument)


@pytest.mark.parametrize(
    ("message", "argument"),
    [("xx", "message"), ("[" * 9000, "message"), ("{}", "type"), ('{"type": "step", "request": 1}', "stream")],
)
def test_a_bad_message_gets_an_error_and_the_twentieth_is_the_last(running, player, message, argument):
    player.connection.send(message)
    assert player.receive("error")["argument"] == argument
    assert player.open()["type"] == "opened"
    for _ in range(19):
        player.connection.send(message)
    assert code_of(player)[0] == protocol.BAD_MESSAGE


def test_garbage_is_closed_and_others_stay(running, player, play):
    for message, code in ((b"\x00\xff" * 50, 4400), ("x" * 70_000, 1009)):
        bad = play(running)
        assert bad.receive()["type"] == "welcome"
        bad.connection.send(message)
        assert code_of(bad)[0] == code
    early = play(running, {})
    early.connection.send(json.dumps({"type": "ping", "time": 1}))
    assert code_of(early)[0] == protocol.BAD_MESSAGE
    assert player.open()["type"] == "opened"


def test_invalid_utf_8_and_half_a_message_are_closed(make_running, play, capfd):
    running = make_running()
    player = play(running)
    for rest in (b"\x81\x82\x00\x00\x00\x00\xff\xfe", b"\x81\xfe"):  # a masked text; one that never ends
        with raw_socket(running) as raw:
            raw.sendall(rest)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                pass
    assert player.open()["type"] == "opened"
    running.until(lambda: running.call(lambda: len(running.served.connections)) == 1)
    assert "Traceback" not in capfd.readouterr().err  # a client could fill the log


def raw_socket(running) -> socket.socket:
    """A TCP connection after the handshake."""
    raw = socket.create_connection(("127.0.0.1", running.port))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    lines = (
        "GET /v1/stream HTTP/1.1",
        f"Host: 127.0.0.1:{running.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    )
    raw.sendall("\r\n".join([*lines, "", ""]).encode())
    assert raw.recv(4096).startswith(b"HTTP/1.1 101")
    return raw


def test_too_many_messages_are_refused(make_running, play):
    player = play(make_running(limits=Limits(messages_per_second=5)))
    with contextlib.suppress(ConnectionClosed):  # the server may close it before the last one
        for _ in range(30):
            player.send(type="ping", time=1)
    code, last = code_of(player)
    assert code == protocol.TOO_MANY and last["argument"] == "messages"


def test_connections_are_limited_and_have_to_greet(make_running, play):
    running = make_running(limits=Limits(connections=2, hello_seconds=0.2))
    first, silent = play(running), play(running, {})
    assert first.receive()["type"] == "welcome"
    assert code_of(play(running))[0] == protocol.FULL
    assert code_of(silent)[0] == protocol.BAD_MESSAGE
    running.until(lambda: running.call(lambda: len(running.served.connections)) == 1)
    assert play(running).receive()["type"] == "welcome"


def test_a_client_that_never_reads_is_closed_and_others_get_every_step(make_running, play):
    running = make_running(limits=Limits(slow_seconds=0.5))
    with raw_socket(running) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        send_text(raw, type="hello", version=1)
        player = play(running)
        key = player.open()["key"]
        send_text(raw, type="watch", request=1, key=key)
        running.until(lambda: viewers_of(running, key) == 2)
        got = 0
        while running.call(lambda: len(running.served.connections)) == 2:
            running.worker.take_step(key, size=200_000)
            for place in range(4):
                assert Header.unpack(player.picture()).frame == 4 * got + place
            got += 1
        assert got > 3
    text = running.http("/metrics")[1].decode()
    assert "aapt_fast_slow_viewers_total 1.0" in text


def test_a_client_that_leaves_in_the_middle_of_a_picture_harms_nobody(running, player):
    opened = player.open()
    with raw_socket(running) as raw:
        send_text(raw, type="hello", version=1)
        send_text(raw, type="watch", request=1, key=opened["key"])
        running.until(lambda: viewers_of(running, opened["key"]) == 2)
        running.worker.take_step(opened["key"], size=3_000_000)
        assert len(raw.recv(100_000)) > 0
    running.worker.take_step(opened["key"])
    assert [Header.unpack(player.picture()).frame for _ in range(8)] == list(range(8))
    running.until(lambda: viewers_of(running, opened["key"]) == 1)


def viewers_of(running, key: str) -> int:
    return len(running.call(lambda: running.served.streams.find(key).seats))


def send_text(raw: socket.socket, **message) -> None:
    """Send a short message in a frame of its own, with a mask of zeros."""
    text = json.dumps(message).encode()
    assert len(text) < 126
    raw.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)


def test_a_client_that_leaves_while_its_stream_opens_leaves_none_behind(running, play, monkeypatch):
    monkeypatch.setattr(running.worker, "_answer", lambda header, body: None)  # it is slow
    player, count = play(running), len(running.worker.commands)
    player.send(type="open", request=1, first={"gallery": 0})
    running.until(lambda: len(running.worker.commands) > count)
    player.connection.close()
    key = running.worker.commands[-1]["key"]
    running.until(lambda: {"do": "close", "call": 0, "key": key} in running.worker.commands)
    assert running.call(lambda: running.served.streams.find(key)) is None


def test_many_connections_come_and_go_and_nothing_stays(running):
    before, stayed = threading.active_count(), connections_in_memory()
    for count in range(1000):
        raw = socket.create_connection(("127.0.0.1", running.port)) if count % 2 else raw_socket(running)
        raw.close()
    running.until(lambda: running.call(lambda: len(running.served.connections)) == 0)
    running.until(lambda: len(running.server.server_state.connections) == 0)
    assert running.call(lambda: len(running.server.server_state.tasks)) == 0
    assert threading.active_count() <= before + 1
    running.until(lambda: connections_in_memory() <= stayed)


def connections_in_memory() -> int:
    gc.collect()
    return sum(type(each) is Connection for each in gc.get_objects())


def test_a_dead_worker_ends_its_streams_and_another_one_takes_over(make_running, play):
    running = make_running()
    player = play(running)
    opened = player.open()
    running.worker.die()
    assert "has ended" in player.receive("ended")["why"]
    assert player.open()["message"].startswith("server: the model is being loaded")
    assert running.http("/ready")[0] == 503
    running.until(lambda: len(running.workers) == 2)
    running.until(lambda: running.http("/ready")[0] == 200)
    again = player.open()
    assert again["type"] == "opened" and again["key"] != opened["key"]


def test_a_server_that_stops_says_so_and_takes_no_more_streams(make_running, play):
    running = make_running(drain_seconds=1.0)
    player = play(running)
    assert player.open()["type"] == "opened"
    running.server.stop()
    assert player.receive("drain")["seconds"] == 1.0
    assert player.open()["argument"] == "server"
    assert running.http("/ready")[0] == 503 and running.http("/health")[0] == 200
    assert code_of(play(running))[0] == protocol.DRAIN
    assert code_of(player)[0] == protocol.DRAIN
    running.wait()


def test_idle_streams_are_parked_and_then_closed(make_running, play):
    running = make_running(limits=Limits(park_seconds=0.1, close_seconds=2.5))
    player, leaver = play(running), play(running)
    kept, left = player.open()["key"], leaver.open()["key"]
    leaver.connection.close()
    assert player.ask("pause", stream=0)["type"] == "done"
    running.until(lambda: running.worker.streams[kept]["parked"])
    running.until(lambda: left not in running.keys)
    assert kept in running.keys
    assert player.ask("resume", stream=0)["type"] == "done"
    assert player.receive("stats")["stream"] == 0
