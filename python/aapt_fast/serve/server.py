# SPDX-License-Identifier: Apache-2.0
"""The state of one model's server: its streams, uploads and connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from fastapi import Request, WebSocket

from aapt_fast.serve import protocol
from aapt_fast.serve.connection import Connection
from aapt_fast.serve.link import StartProcess
from aapt_fast.serve.metrics import Metrics
from aapt_fast.serve.protocol import refusal
from aapt_fast.serve.settings import MIB, Settings
from aapt_fast.serve.streams import Streams
from aapt_fast.serve.uploads import Uploads


class Refused(Exception):
    """An HTTP request that is answered with a status and an error."""

    def __init__(self, status: int, error: dict[str, object]) -> None:
        super().__init__(error["message"])
        self.status, self.error = status, error


class Server:
    """Serves one model.

    Args:
        settings: of the server.
        start: makes the worker process.
    """

    def __init__(self, settings: Settings, start: StartProcess) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.streams = Streams(settings, self.metrics, start)
        limits = settings.limits
        self.uploads = Uploads(limits.uploads, limits.uploads * limits.upload_bytes // 4)
        self.connections: set[Connection] = set()
        self.is_draining = False
        self.metrics.watch("connections", "Open WebSockets", lambda: len(self.connections))
        self.metrics.watch("queued_steps", "Steps that wait for the network", self._queued)

    @property
    def name(self) -> str:
        """The name of the model; before it is loaded, that of its file."""
        model = self.streams.link.model
        return str(model["name"]) if model is not None else Path(self.settings.model).stem

    @property
    def is_ready(self) -> bool:
        """True while streams can be opened."""
        link = self.streams.link
        return link.ready.is_set() and link.model is not None and not self.is_draining

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the worker; at the end of the block close everything."""
        self.streams.link.start()
        tidying = asyncio.create_task(self.streams.tidy())
        try:
            yield
        finally:
            tidying.cancel()
            await self.streams.retire()
            await self.streams.link.close()

    async def connect(self, socket: WebSocket) -> None:
        """Serve one WebSocket until it ends."""
        full = len(self.connections) >= self.settings.limits.connections
        if full or self.is_draining:
            await socket.accept()
            code, reason = (protocol.FULL, "all connections are taken") if full else (protocol.DRAIN, "it stops")
            await socket.close(code, f"the server refuses: {reason}")
            return
        connection = Connection(socket, self.settings, self.streams, self.uploads)
        self.connections.add(connection)
        try:
            await connection.serve()
        finally:
            self.connections.discard(connection)

    async def drain(self) -> None:
        """Take no more streams, tell all clients, and return when they are gone or the time for that is over."""
        self.is_draining = True
        seconds = self.settings.drain_seconds
        for connection in self.connections:
            connection.drain(seconds)
        with anyio.move_on_after(seconds):
            while self.connections:
                await asyncio.sleep(0.05)
        for connection in self.connections:
            connection.end()
        with anyio.move_on_after(2):
            while self.connections:
                await asyncio.sleep(0.05)

    async def upload(self, request: Request) -> bytes:
        """The body of a request. Raises Refused for one that is too large, or takes too long."""
        limits = self.settings.limits
        parts, size = [], 0
        try:
            with anyio.fail_after(limits.upload_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > limits.upload_bytes:
                        raise Refused(413, refusal("body", f"at most {limits.upload_bytes / MIB:.3g} MiB", "more"))
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, refusal("body", f"within {limits.upload_seconds:g} s", "more time")) from None
        if size == 0:
            raise Refused(400, refusal("body", "a file", "nothing"))
        return b"".join(parts)

    def _queued(self) -> int:
        return sum(connection.queued for connection in self.connections)
