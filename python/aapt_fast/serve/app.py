# SPDX-License-Identifier: Apache-2.0
"""The server as an ASGI application: the page, the WebSocket, uploads, health and metrics.

    uvicorn.run(create_app(Settings(model="mini-person")))

With several models each has a `Server` and a worker process of its own. The first is at `/`, the others at `/models/2/`
and so on, with the same page and the same addresses below. `aapt_fast.serve.run` adds what an application cannot do by
itself: to drain at the signal to stop.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from aapt_fast.serve.link import CallFailed, StartProcess, WorkerGone, WorkerProcess
from aapt_fast.serve.protocol import refusal, refusal_of
from aapt_fast.serve.security import Guard
from aapt_fast.serve.server import Refused, Server
from aapt_fast.serve.settings import Settings

STATIC = Path(__file__).parent / "static"
REPLAY_TYPE = "application/octet-stream"


def place_of(number: int) -> str:
    """The path of model number 1, 2, ... below that of the server, with a slash at its end unless it is the first."""
    return "" if number == 1 else f"models/{number}/"


def create_app(settings: Settings, start: StartProcess = WorkerProcess, *, more_models: Sequence[str] = ()) -> FastAPI:
    """The application of one model or more; `app.state.servers` has their `Server`s, `app.state.server` the first.

    Args:
        settings: model, limits and token.
        start: makes a worker process, called when the application starts and whenever a worker has died.
        more_models: as `Settings.model`, for as many servers with the same settings otherwise.
    """
    models = (settings.model, *more_models)
    servers = [Server(dataclasses.replace(settings, model=model), start) for model in models]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server.running())
            yield

    app = FastAPI(title="aapt_fast", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server, app.state.servers = servers[0], servers
    app.add_middleware(Guard, settings=settings)
    for number, server in enumerate(servers[1:], 2):
        below = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        _add_all(below, server, [server], servers)
        app.mount(f"/{place_of(number)}".rstrip("/"), below)
    _add_all(app, servers[0], servers, servers)
    return app


def _add_all(app: FastAPI, server: Server, checked: Sequence[Server], servers: Sequence[Server]) -> None:
    """Add what is at the addresses of one `server`. `checked` are those that `/ready` speaks for."""
    _add_errors(app)
    _add_health(app, server, checked)
    _add_model(app, server, servers)
    _add_uploads(app, server)

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await server.connect(socket)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/", StaticFiles(directory=STATIC))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> Response:
        return JSONResponse(refused.error, refused.status)

    @app.exception_handler(CallFailed)
    async def fail(_: Request, failed: CallFailed) -> Response:
        return JSONResponse(failed.error, 400)

    @app.exception_handler(WorkerGone)
    async def gone(_: Request, error: WorkerGone) -> Response:
        return JSONResponse(refusal_of(error), 503)


def _add_health(app: FastAPI, server: Server, checked: Sequence[Server]) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "alive", "worker_starts": server.streams.link.starts}

    @app.get("/ready")
    async def ready() -> Response:
        if server.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        if not all(each.is_ready for each in checked):
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_model(app: FastAPI, server: Server, servers: Sequence[Server]) -> None:
    link = server.streams.link

    @app.get("/v1/models")
    async def models() -> list[dict[str, str]]:
        return [{"name": each.name, "path": place_of(number)} for number, each in enumerate(servers, 1)]

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
