# SPDX-License-Identifier: Apache-2.0
"""Run a server until a signal: at the first one it drains, at the second it stops at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from aapt_fast.serve.app import create_app, place_of
from aapt_fast.serve.link import StartProcess, WorkerProcess
from aapt_fast.serve.server import Server
from aapt_fast.serve.settings import Settings

SEND_BUFFER = 64 * 1024  # bytes of the system's, for a client: more would be seconds of old pictures
PING_SECONDS = 20.0


class AbortableWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose application can end the connection of a client that takes nothing: `aapt_fast.abort`."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        transport.set_write_buffer_limits(high=SEND_BUFFER)

    async def run_asgi(self) -> None:
        self.scope["extensions"]["aapt_fast.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains before it stops. `served` are those of its models."""

    def __init__(self, config: uvicorn.Config, servers: Sequence[Server], sockets: Sequence[socket.socket]) -> None:
        super().__init__(config)
        self.served, self._sockets = list(servers), list(sockets)
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets or self._sockets or None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second. It is not raised again: this is an ordinary end."""
        self.stop()

    def stop(self) -> None:
        """Begin to drain, from any thread; a second call stops at once."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain_and_stop())
        else:
            self.should_exit = self.force_exit = True

    @property
    def failure(self) -> str | None:
        """The reason why a model could not be loaded; None if there is none so far."""
        return next((why for each in self.served if (why := each.streams.link.failure) is not None), None)

    async def _drain_and_stop(self) -> None:
        await asyncio.gather(*(each.drain() for each in self.served))
        self.should_exit = True


def make_server(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    sockets: Sequence[socket.socket] = (),
    certificate: str | None = None,
    key: str | None = None,
    start: StartProcess = WorkerProcess,
    more_models: Sequence[str] = (),
) -> DrainingServer:
    """Make a server: `run()` or `await serve()` serves until a signal, or until `stop()`, and drains.

    Args:
        settings: of the server.
        host, port: to listen at, unless there are `sockets`, which listen already.
        certificate, key: files in PEM, for https.
        start: makes a worker process.
        more_models: see `create_app`.
    """
    app = create_app(settings, start, more_models=more_models)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ws=AbortableWebSocket,
        ws_max_size=settings.limits.message_bytes,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        ws_per_message_deflate=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
        limit_concurrency=4 * settings.limits.connections * len(app.state.servers) + 64,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_no_clients_mistake)
    return DrainingServer(config, app.state.servers, sockets)


def _is_no_clients_mistake(record: logging.LogRecord) -> bool:
    """Keep out of the log what a client can repeat at will: a text that is not UTF-8 closes its connection, no more."""
    return not str(record.msg).startswith("Invalid UTF-8")


@contextlib.contextmanager
def serving(
    settings: Settings, start: StartProcess = WorkerProcess, *, more_models: Sequence[str] = ()
) -> Iterator[str]:
    """Serve this machine from a thread for the time of a `with` block; gives the address once the models are there.

    `start` and `more_models` are those of `create_app`. Raises ValueError for a model that cannot be loaded.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = make_server(settings, sockets=[listening], start=start, more_models=more_models)
        thread = threading.Thread(target=server.run, name="aapt_fast-server", daemon=True)
        thread.start()
        try:
            _wait_until_ready(server, thread)
            yield address(settings, "127.0.0.1", listening.getsockname()[1], False)
        finally:
            server.stop()
            thread.join()


def _wait_until_ready(server: DrainingServer, thread: threading.Thread) -> None:
    """Wait until the models are there. Raises ValueError if one cannot be loaded."""
    while not all(each.streams.link.ready.is_set() for each in server.served):
        if not thread.is_alive():
            raise RuntimeError("server: it has ended before it was ready")
        time.sleep(0.02)
    if server.failure is not None:
        raise ValueError(server.failure)


def address(settings: Settings, host: str, port: int, secure: bool, number: int = 1) -> str:
    """The address that a user opens in a browser to play model number 1, 2, ..."""
    name = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1", "::1", "localhost") else host
    name = f"[{name}]" if ":" in name else name
    token = f"#token={settings.token}" if settings.token is not None else ""
    return f"{'https' if secure else 'http'}://{name}:{port}/{place_of(number)}{token}"
