# SPDX-License-Identifier: Apache-2.0
"""Servers with a fake worker, on a real port of this machine; a browser for tests of the page, or they are skipped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.serve.fake_worker import FakeWorker
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_socket

from aapt_fast.serve.run import make_server
from aapt_fast.serve.settings import Settings
from aapt_fast.testing.browser import Page, browser, find_browser

PATIENCE = 30.0  # seconds until a test gives up


class Running:
    """A server in a thread, and what tests look at in it."""

    def __init__(self, settings: Settings, more_models: Sequence[str] = ()) -> None:
        self.workers: list[FakeWorker] = []

        def start(*arguments: Any) -> FakeWorker:
            self.workers.append(FakeWorker(*arguments))
            return self.workers[-1]

        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = make_server(settings, sockets=[self._listening], start=start, more_models=more_models)
        self.served = self.server.served[0]
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.until(lambda: self.workers and self.server.started)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve()

        asyncio.run(serve())

    @property
    def worker(self) -> FakeWorker:
        """The newest worker."""
        return self.workers[-1]

    @property
    def keys(self) -> list[str]:
        """Keys of the open streams, the oldest first."""
        return list(self.worker.streams)

    def call(self, function: Callable[[], Any]) -> Any:
        """The result of a function that runs in the server's event loop."""

        async def inside() -> Any:
            return function()

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(PATIENCE)

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it never became true"
            time.sleep(0.005)

    def stop(self) -> None:
        """Drain, and wait for the end."""
        self.server.stop()
        self.wait()

    def wait(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def http(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of a request."""
        request = urllib.request.Request(self.url + path, body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)


class Player:
    """A WebSocket of a test. Pictures and JSON messages are kept apart."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.pictures: list[bytes] = []

    def send(self, **message: Any) -> None:
        self.connection.send(json.dumps(message))

    def receive(self, *kinds: str) -> dict[str, Any]:
        """The next JSON message, of one of these kinds if some are given; others are skipped."""
        while True:
            message = self.connection.recv(PATIENCE)
            if isinstance(message, bytes):
                self.pictures.append(message)
            else:
                found = json.loads(message)
                if not kinds or found["type"] in kinds:
                    return found

    def ask(self, kind: str, request: int = 1, **fields: Any) -> dict[str, Any]:
        """The answer to a message."""
        self.send(type=kind, request=request, **fields)
        while True:
            answer = self.receive()
            if answer.get("request") == request:
                return answer

    def open(self, **fields: Any) -> dict[str, Any]:
        """Open a stream from the gallery."""
        return self.ask("open", first={"gallery": 0}, **fields)

    def picture(self) -> bytes:
        """The next picture."""
        while not self.pictures:
            message = self.connection.recv(PATIENCE)
            if isinstance(message, bytes):
                self.pictures.append(message)
        return self.pictures.pop(0)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server with 50 places that the tests of a file share."""
    found = Running(Settings(streams=50, drain_seconds=0.2))
    yield found
    found.stop()


@pytest.fixture
def make_running() -> Iterator[Callable[..., Running]]:
    """Makes servers with other settings; they stop after the test."""
    made: list[Running] = []

    def make(more_models: Sequence[str] = (), **settings: Any) -> Running:
        made.append(Running(Settings(**{"streams": 50, "drain_seconds": 0.2, **settings}), more_models))
        return made[-1]

    yield make
    for each in made:
        if each._thread.is_alive():
            each.stop()


@pytest.fixture
def play() -> Iterator[Callable[..., Player]]:
    """Connects to a server, and says hello unless the test does."""
    with contextlib.ExitStack() as open_ones:

        def connect(running: Running, hello: dict[str, Any] | None = None, place: str = "", **options: Any) -> Player:
            url = f"ws://127.0.0.1:{running.port}{place}/v1/stream"
            socket = open_ones.enter_context(
                connect_socket(url, subprotocols=["aapt-fast.1"], compression=None, max_size=None, **options)
            )
            player = Player(socket)
            if hello is None or hello:
                with contextlib.suppress(ConnectionClosed):  # a server that is full does not wait for it
                    player.send(**{"type": "hello", "version": 1, "codecs": ["jpeg"], **(hello or {})})
            return player

        yield connect


@pytest.fixture
def player(running: Running, play: Callable[..., Player]) -> Player:
    """A client that has said hello."""
    found = play(running)
    assert found.receive()["type"] == "welcome"
    return found


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the browser's downloads."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def open_browser(downloads: Path) -> Iterator[Page]:
    """A browser with one page for all tests."""
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium or Chrome is installed")
    with browser(executable, downloads) as page:
        yield page


@pytest.fixture
def page(open_browser: Page) -> Iterator[Page]:
    """The page as on a desk, left without an error."""
    open_browser.resize(1280, 800)
    open_browser.errors.clear()
    yield open_browser
    open_browser.open("about:blank")
    assert open_browser.errors == []
