# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast serve`: a page to play a model in, and a server for programs."""

from __future__ import annotations

import argparse
import asyncio
import socket

from aapt_fast.cli.serve_settings import settings_of
from aapt_fast.progress import say
from aapt_fast.serve.run import DrainingServer, address, make_server
from aapt_fast.serve.settings import Settings

WAITING_CONNECTIONS = 128  # that the system keeps until the server takes them


def run(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    certificate, key = (None if path is None else str(path) for path in (arguments.tls_cert, arguments.tls_key))
    with _listen(arguments.host, arguments.port) as listening:
        server = make_server(settings, sockets=[listening], certificate=certificate, key=key)
        port = listening.getsockname()[1]
        asyncio.run(_serve(server, settings, address(settings, arguments.host, port, certificate is not None)))
    failure = server.served.streams.link.failure
    if failure is not None:
        raise ValueError(failure)


async def _serve(server: DrainingServer, settings: Settings, where: str) -> None:
    """Serve until a signal, or until the model cannot be loaded; prints the address once it is there."""

    async def announce() -> None:
        link = server.served.streams.link
        await link.ready.wait()
        if link.failure is not None:
            server.stop()
        else:
            print(f"{settings.model} is ready: {where}", flush=True)
            say("Ctrl-C ends it")

    say(f"loading {settings.model} ...")
    announcing = asyncio.create_task(announce())
    try:
        await server.serve()
    finally:
        announcing.cancel()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError for an address that is not free or not of this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ValueError(f"--host: expected a name or address of this machine, got {host}: {error.strerror}") from error
    try:
        return socket.create_server((host, port), family=family, backlog=WAITING_CONNECTIONS)
    except OSError as error:
        expected = "a free port of this machine"
        raise ValueError(f"--port: expected {expected}, got {port} at {host}: {error.strerror}") from error
