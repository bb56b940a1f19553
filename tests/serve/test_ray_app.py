# SPDX-License-Identifier: Apache-2.0
"""Two replicas behind Ray's proxy, on this machine: viewers, a replica that is killed, and replicas that are drained.

Ray starts a cluster for it, so continuous integration runs it, by `make test-ray`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.models import write_nano_model

from aapt_fast.serve.settings import Settings
from aapt_fast.serve.sync_client import SyncStream, connect

os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # read by Ray's import; on a busy machine
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, as Ray spells it
ray = pytest.importorskip("ray", reason="pip install aapt_fast[ray]")
pytestmark = pytest.mark.timeout(600)
PATIENCE = 180.0


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = write_nano_model(tmp_path_factory.mktemp("model") / "model")
    shelf = str(tmp_path_factory.mktemp("shelf"))
    return Settings(str(model), dtype="float32", streams=4, drain_seconds=1.0, shelf=shelf, keep_seconds=0.5)


@pytest.fixture(scope="module")
def address(settings: Settings) -> Iterator[str]:
    """Address of two replicas of a nano model."""
    from ray import serve

    from aapt_fast.serve.ray_app import deployment

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(deployment(settings, 2, 2).bind())
        yield f"http://localhost:{port}/"
    finally:
        serve.shutdown()
        ray.shutdown()


def owner(settings: Settings) -> str:
    """The server of the only stream on the shelf, once there is a copy; its name begins with its process."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for path in Path(str(settings.shelf)).glob("*.json"):
            return json.loads(path.read_text())["server"]
        time.sleep(0.05)
    raise AssertionError("no copy came")


def play(stream: SyncStream, frames: int) -> int:
    """Watch so many video frames; returns the number of the last one."""
    for frame in stream.frames():
        frames -= 1
        if frames == 0:
            return frame.number
    raise AssertionError(stream.ended)


@contextlib.contextmanager
def watching(address: str, key: str) -> Iterator[tuple[SyncStream, list[str]]]:
    """Connect until a replica shows the stream; gives it, and the refusals of the others.

    The newest refused connection stays open meanwhile: Ray gives the next one to a replica that has fewer.
    """
    refusals: list[str] = []
    deadline = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as refused:
        while time.monotonic() < deadline:
            stack = contextlib.ExitStack()
            try:
                client = stack.enter_context(connect(address))
                stream = client.watch(key)
            except (ValueError, OSError, RuntimeError) as error:
                refusals.append(str(error))
                refused.close()
                refused.push(stack)
                time.sleep(0.1)
            else:
                with stack:
                    yield stream, refusals
                return
    raise AssertionError(refusals[-3:])


def test_arguments_of_serve_run():
    from aapt_fast.serve.ray_app import application

    application({"hosts": "a.example,b.example", "token": "t" * 16, "sessions": "2", "max_replicas": "3"})
    for arguments, message in (
        ({"mdoel": "x"}, "arguments: expected some of model, .*, gpus, got mdoel"),
        ({"sessions": "few"}, "sessions: expected a whole number, got few"),
        ({"hosts": "localhost,a.example"}, "--token: expected a token, as others can reach a.example, got none"),
        ({"kept_as": "video"}, "kept_as: expected state or replay, got video"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            application(arguments)


def test_viewers_share_a_stream_which_survives_its_replica(address, settings):
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(address))
        stream = client.open(action="walk", seed=3)
        last = play(stream, 12)
        first = owner(settings)
        with watching(address, stream.key) as (seen, refusals):
            assert play(seen, 4) > last
            elsewhere = "key: expected that of a stream of this server, got one that another server shows"
            assert all(each.startswith(elsewhere) for each in refusals), refusals
        last = play(stream, 8)
        begun = time.monotonic()
        os.kill(int(first.partition("-")[0]), signal.SIGKILL)
        with watching(address, stream.key) as (again, _):
            number = play(again, 1)
            print(f"killed: picture {number} after {time.monotonic() - begun:.1f} s; {last} was seen before")
            assert last - 24 * (settings.keep_seconds + 2) < number and owner(settings) != first
            play(again, 8)
            again.close()


def test_a_stream_survives_that_its_replicas_are_drained(address, settings):
    """By a new version of the application."""
    from ray import serve

    from aapt_fast.serve.ray_app import deployment

    with connect(address) as client:
        stream = client.open(action="wave", seed=4)
        play(stream, 12)
        before = owner(settings)
        begun = time.monotonic()
        serve.run(deployment(dataclasses.replace(settings, history=settings.history + 1), 2, 2).bind())
        with watching(address, stream.key) as (again, _):
            number = play(again, 1)
            print(f"drained: picture {number} after {time.monotonic() - begun:.1f} s")
            assert owner(settings) != before and number > 12
            again.close()
