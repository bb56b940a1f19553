# SPDX-License-Identifier: Apache-2.0
"""The server's end of its worker process: starts it, calls it, notices its death and starts another one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from aapt_fast.serve.pipe import Header, pack, unpack
from aapt_fast.serve.settings import Settings

log = logging.getLogger("aapt_fast.serve")

OnMessage = Callable[[Header, bytes], None]
OnEnd = Callable[[], None]
WAITING_MESSAGES = 10_000  # for a worker that reads none; it is stopped then
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before another start
END_SECONDS = 5.0  # that a worker gets to end by itself


class Process(Protocol):
    """A worker: messages go to it by `send`, and come by the functions that its start was given."""

    def send(self, header: Header, body: bytes = b"") -> None:
        """Queue a message; returns at once, also when the worker is dead."""

    def stop(self) -> None:
        """End it; waits until it is gone."""


StartProcess = Callable[[Settings, OnMessage, OnEnd], Process]


class WorkerProcess:
    """A process of its own. `on_message` and `on_end` are called in another thread.

    `program` are the arguments of Python that start another one than the worker.
    """

    def __init__(
        self, settings: Settings, on_message: OnMessage, on_end: OnEnd, program: Sequence[str] | None = None
    ) -> None:
        self._on_message, self._on_end = on_message, on_end
        self._has_spoken = False
        self._connection, theirs = multiprocessing.Pipe()
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}  # idle threads leave their core to the browser
        command = [sys.executable, *(program or _worker_program()), str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
        theirs.close()
        self._folder = tempfile.TemporaryDirectory(
            prefix="aapt_fast-", ignore_cleanup_errors=True
        )  # outlives a worker that dies
        self._waiting: queue.Queue[bytes | None] = queue.Queue(WAITING_MESSAGES)
        self._connection.send_bytes(pack({"settings": settings.to_json(), "folder": self._folder.name}))
        for work in (self._read, self._write):
            threading.Thread(target=work, name="aapt_fast-worker", daemon=True).start()

    def send(self, header: Header, body: bytes = b"") -> None:
        try:
            self._waiting.put_nowait(pack(header, body))
        except queue.Full:
            log.error("the worker reads no messages, and is stopped")
            self.process.kill()

    def stop(self) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        try:
            self.process.wait(END_SECONDS if self._has_spoken else 0)  # one that loads its model does not listen
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv_bytes()
                self._has_spoken = True
                self._on_message(*unpack(message))
        except (EOFError, OSError):
            self.process.wait()
            self._folder.cleanup()
            self._on_end()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._waiting.get()) is not None:
                self._connection.send_bytes(message)
        _shut(self._connection)


def _worker_program() -> list[str]:
    """Arguments of Python that start the worker, with the packages of this process: `-m` would put its folder first."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from aapt_fast.serve.worker import main; main(int(sys.argv[1]))"
    return ["-c", code]


def _shut(connection: Connection) -> None:
    """Tell the other side that no more comes, while its last messages are still read."""
    import socket

    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_WR)


class WorkerGone(RuntimeError):
    """The worker has ended before it answered, or is not ready yet."""


class CallFailed(ValueError):
    """The worker's refusal of a call; `error` has the fields of an `error` message."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error

    @property
    def is_full(self) -> bool:
        """True if no place was free."""
        return bool(self.error.get("full"))


class Link:
    """Calls of a worker that is started again whenever it ends. Everything here happens in the event loop.

    Args:
        settings: of the server.
        start: makes a worker.
        on_message: takes messages that are no answers: pictures, ends of streams, refused controls.
        on_loss: called when a worker has ended by itself.
    """

    def __init__(self, settings: Settings, start: StartProcess, on_message: OnMessage, on_loss: OnEnd) -> None:
        self._settings, self._start_process = settings, start
        self._on_message, self._on_loss = on_message, on_loss
        self._calls: dict[int, asyncio.Future[tuple[Header, bytes]]] = {}
        self._numbers = itertools.count(1)
        self._process: Process | None = None
        self._closing = False
        self._pause = FIRST_PAUSE
        self.ready = asyncio.Event()
        self.failure: str | None = None
        """The reason why the first worker could not load the model; there is no other then."""
        self.model: dict[str, Any] | None = None
        self.gallery: list[bytes] = []
        self.starts = 0

    def start(self) -> None:
        """Start a worker; `ready` is set once it has the model."""
        loop, number = asyncio.get_running_loop(), self.starts + 1

        def soon(call: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(call, number, *arguments)

        self.starts = number
        self._process = self._start_process(
            self._settings, lambda header, body: soon(self._receive, header, body), lambda: soon(self._lose)
        )

    async def close(self) -> None:
        """End the worker."""
        self._closing = True
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)
        self._drop_calls()

    def send(self, header: Header, body: bytes = b"") -> None:
        """Send a message without an answer; without a worker it is dropped."""
        if self._process is not None:
            self._process.send(header, body)

    async def call(self, do: str, body: bytes = b"", **header: Any) -> tuple[Header, bytes]:
        """Send a command, and wait for its answer. Raises CallFailed, and WorkerGone if there is no worker."""
        if not self.ready.is_set() or self._process is None:
            raise WorkerGone("server: the model is being loaded; try again in a moment")
        number = next(self._numbers)
        answer: asyncio.Future[tuple[Header, bytes]] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self._process.send({"do": do, "call": number, **header}, body)
        try:
            found, data = await answer
        finally:
            self._calls.pop(number, None)
        if "error" in found:
            raise CallFailed(found["error"])
        return found, data

    def _receive(self, number: int, header: Header, body: bytes) -> None:
        if number != self.starts:
            return
        if "answer" in header:
            answer = self._calls.get(header["answer"])
            if answer is not None and not answer.done():
                answer.set_result((header, body))
        elif "ready" in header:
            self.model, self.gallery = header["ready"], []
            for size in header["sizes"]:
                self.gallery.append(body[:size])
                body = body[size:]
            self._pause = FIRST_PAUSE
            self.ready.set()
        elif "failed" in header:
            if self.model is None:
                self.failure = header["failed"]["message"]
            else:
                log.error("the model could not be loaded again: %s", header["failed"]["message"])
        elif "ending" in header:
            log.error("the worker ends: %s", header["ending"])
        else:
            self._on_message(header, body)

    def _lose(self, number: int) -> None:
        if self._closing or number != self.starts:
            return
        self.ready.clear()
        self._process = None
        self._drop_calls()
        self._on_loss()
        if self.failure is not None:
            self.ready.set()  # whoever waits looks at `failure`
            return
        log.error("the worker has ended; another one starts in %.1f s", self._pause)
        asyncio.get_running_loop().call_later(self._pause, self._start_again)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _start_again(self) -> None:
        if not self._closing:
            self.start()

    def _drop_calls(self) -> None:
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(WorkerGone("server: the worker has ended"))
        self._calls.clear()
