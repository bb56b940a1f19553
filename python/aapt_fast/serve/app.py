# SPDX-License-Identifier: Apache-2.0
"""The server as an ASGI application: the page, the WebSocket, uploads, health and metrics.

    uvicorn.run(create_app(Settings(model="mini-person")))

`aapt_fast.serve.run` adds what an application cannot do by itself: to drain at the signal to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from aapt_fast.serve import protocol
from aapt_fast.serve.connection import Connection
from aapt_fast.serve.link import CallFailed, StartProcess, WorkerGone, WorkerProcess
from aapt_fast.serve.metrics import Metrics
from aapt_fast.serve.protocol import refusal, refusal_of
from aapt_fast.serve.security import Guard
from aapt_fast.serve.settings import MIB, Settings
from aapt_fast.serve.streams import Streams
from aapt_fast.serve.uploads import Uploads

STATIC = Path(__file__).parent / "static"
REPLAY_TYPE = "application/octet-stream"


class Refused(Exception):
    """An HTTP request that is answered with a status and an error."""

    def __init__(self, status: int, error: dict[str, object]) -> None:
        super().__init__(error["message"])
        self.status, self.error = status, error


class Server:
    """The state of one application: its streams, uploads and connections.

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


def create_app(settings: Settings, start: StartProcess = WorkerProcess) -> FastAPI:
    """The application of one server; `app.state.server` is its `Server`.

    Args:
        settings: model, limits and token.
        start: makes the worker process, called when the application starts and whenever a worker has died.
    """
    server = Server(settings, start)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with server.running():
            yield

    app = FastAPI(title="aapt_fast", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server = server
    app.add_middleware(Guard, settings=settings)
    _add_health(app, server)
    _add_model(app, server)
    _add_uploads(app, server)

    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> Response:
        return JSONResponse(refused.error, refused.status)

    @app.exception_handler(CallFailed)
    async def fail(_: Request, failed: CallFailed) -> Response:
        return JSONResponse(failed.error, 400)

    @app.exception_handler(WorkerGone)
    async def gone(_: Request, error: WorkerGone) -> Response:
        return JSONResponse(refusal_of(error), 503)

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await server.connect(socket)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/", StaticFiles(directory=STATIC))
    return app


def _add_health(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "alive", "worker_starts": server.streams.link.starts}

    @app.get("/ready")
    async def ready() -> Response:
        if server.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        if not server.streams.link.ready.is_set() or server.streams.link.model is None:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_model(app: FastAPI, server: Server) -> None:
    link = server.streams.link

    @app.get("/v1/model")
    async def model() -> Response:
        if link.model is None:
            raise WorkerGone("server: the model is being loaded; try again in a moment")
        return JSONResponse(link.model)

    @app.get("/v1/gallery/{number}.png")
    async def gallery(number: int) -> Response:
        if link.model is None:
            raise WorkerGone("server: the model is being loaded; try again in a moment")
        if not 0 <= number < len(link.gallery):
            raise Refused(404, refusal("number", f"0..{len(link.gallery) - 1}", number))
        return Response(link.gallery[number], media_type="image/png", headers={"Cache-Control": "max-age=3600"})


def _add_uploads(app: FastAPI, server: Server) -> None:
    @app.post("/v1/images")
    async def add_image(request: Request) -> dict[str, str | None]:
        found, fitted = await server.streams.link.call("fit", await server.upload(request))
        return {"image": server.uploads.add("image", fitted), "note": found.get("note")}

    @app.post("/v1/replays")
    async def add_replay(request: Request) -> dict[str, str]:
        return {"replay": server.uploads.add("replay", await server.upload(request))}

    @app.get("/v1/streams/{key}/replay")
    async def replay(key: str) -> Response:
        if server.streams.find(key) is None:
            raise Refused(404, refusal("key", "that of an open stream", "another one"))
        _, data = await server.streams.link.call("replay", key=key)
        headers = {"Content-Disposition": 'attachment; filename="replay.safetensors"'}
        return Response(data, media_type=REPLAY_TYPE, headers=headers)
