# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast serve`: a page to play a model in, and a server for programs."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket

from aapt_fast.cli.serve_settings import ANY_ADDRESS, models_of, own_address, settings_of
from aapt_fast.progress import say
from aapt_fast.serve.run import DrainingServer, address, make_server
from aapt_fast.serve.security import is_local
from aapt_fast.serve.settings import Settings

WAITING_CONNECTIONS = 128  # that the system keeps until the server takes them


def run(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    certificate, key = (None if path is None else str(path) for path in (arguments.tls_cert, arguments.tls_key))
    with _listen(arguments.host, arguments.port) as listening:
        more = models_of(arguments)[1:]
        server = make_server(settings, sockets=[listening], certificate=certificate, key=key, more_models=more)
        port = listening.getsockname()[1]
        count = range(1, len(server.served) + 1)
        places = [address(settings, arguments.host, port, certificate is not None, number) for number in count]
        asyncio.run(_serve(server, places, _notes(arguments, settings, port)))
    if server.failure is not None:
        raise ValueError(server.failure)


def _notes(arguments: argparse.Namespace, settings: Settings, port: int) -> list[str]:
    """Lines about a server that other machines can reach: its address there, and what they can read."""
    notes, secure = [], arguments.tls_cert is not None
    if arguments.host in ANY_ADDRESS and (own := own_address()) is not None:
        notes.append(f"from other machines: {address(settings, own, port, secure)} (--allow-host adds more names)")
    if not is_local(arguments.host) and not secure:
        notes.append("without --tls-cert, everybody on the way can read the token and the pictures")
    return notes


async def _serve(server: DrainingServer, places: list[str], notes: list[str]) -> None:
    """Serve until a signal, or until a model cannot be loaded; prints the addresses `places` once they are there."""

    async def announce() -> None:
        for each, place in zip(server.served, places, strict=True):
            await each.streams.link.ready.wait()
            if server.failure is not None:
                server.stop()
                return
            print(f"{each.settings.model} is ready: {place}", flush=True)
        for line in notes:
            say(line)
        say("Ctrl-C ends it")

    say(f"loading {', '.join(each.settings.model for each in server.served)} ...")
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
        expected = "a free port of this machine (0 takes any)"
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(f"--port: expected {expected}, got {port} at {host}: {reason}") from error
