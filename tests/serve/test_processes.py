# SPDX-License-Identifier: Apache-2.0
"""Whole servers with torch: the command, and several players of the bundled model."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.cli.models import write_nano_model

from aapt_fast.serve.client import Stream, connect
from aapt_fast.serve.run import serving
from aapt_fast.serve.settings import Settings
from aapt_fast.serve.sync_client import connect as connect_sync

PATIENCE = 60.0
TOKEN = "sixteen-letters-or-more"


def children_of(process: int) -> list[int]:
    """The worker of a server."""
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


async def pictures(stream: Stream, count: int) -> list[int]:
    """Numbers of the next video frames."""
    numbers: list[int] = []
    async for frame in stream.frames():
        numbers.append(frame.number)
        if len(numbers) == count:
            break
    return numbers


def test_the_command_serves_and_drains(tmp_path):
    model, token = write_nano_model(tmp_path / "model"), tmp_path / "token"
    token.write_text(TOKEN + "\n")
    options = [
        "--model",
        str(model),
        "--model",
        "mini-anyone",
        "--port",
        "0",
        "--token-file",
        str(token),
        "--drain",
        "2",
        "--dtype",
        "float32",
    ]
    command = [sys.executable, "-m", "aapt_fast", "serve", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(4 * PATIENCE, server.kill)
    watchdog.start()
    try:
        line = server.stdout.readline()
        assert " is ready: http://localhost:" in line and line.endswith(f"/#token={TOKEN}\n")
        other = server.stdout.readline()
        assert other.startswith("mini-anyone is ready: ") and other.endswith(f"/models/2/#token={TOKEN}\n")
        with connect_sync(other.split()[-1]) as client:
            assert client.model["name"] == "mini-anyone" and next(client.open().frames()).number == 0
        asyncio.run(asyncio.wait_for(_use_and_stop(server, line.split()[-1]), 3 * PATIENCE))
        assert server.wait(PATIENCE) == 0 and server.stdout.read() == ""
    finally:
        watchdog.cancel()
        server.kill()


async def _use_and_stop(server: subprocess.Popen, address: str) -> None:
    with pytest.raises(ValueError, match=r"^token: expected"):
        async with connect(address.partition("#")[0]):
            pass
    async with connect(address, codecs=["jpeg", "h264"]) as client:
        stream = await client.open(action="walk")
        number = await stream.control(action="wave")
        assert await pictures(stream, 8) == list(range(8)) and number in stream.applied
        server.send_signal(signal.SIGTERM)
        while client.drain_seconds is None:
            await asyncio.sleep(0.02)
        with pytest.raises(ValueError, match=r"^server: expected one that goes on"):
            await client.open()
        assert len(await pictures(stream, 4)) == 4  # streams go on meanwhile
        workers = children_of(server.pid)
        assert len(workers) == 2
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        await asyncio.sleep(0.02)


def test_three_players_of_the_bundled_model():
    """A load that two cores bear: everybody gets all video frames in order, under their own control."""

    async def player(address: str, number: int) -> list[int]:
        async with connect(address) as client:
            stream = await client.open(gallery=number, seed=number, action="walk")
            seen, obeyed = [], 0
            async for frame in stream.frames():
                seen.append(frame.number)
                obeyed = obeyed or (frame.control and frame.number)
                if frame.number == 3:
                    control = await stream.control(action="wave")
                if frame.number == 11:
                    twin = await client.watch(stream.key)
                    await stream.control(action="kick")
                if frame.number >= 27:
                    break
            assert frame.picture().size == (96, 96) and stream.applied[control] == obeyed
            assert len(await pictures(twin, 4)) == 4 and twin.ended is None
            return seen

    async def play(address: str) -> None:
        seen = await asyncio.wait_for(asyncio.gather(*(player(address, number) for number in range(3))), PATIENCE)
        for numbers in seen:
            assert numbers == sorted(numbers) and len(numbers) >= 24 and numbers[:12] == list(range(12))
        async with connect(address) as client:
            metrics = (await client._http("/metrics")).decode()
        steps = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("aapt_fast_steps_total")]
        assert steps[0] >= 21 and "aapt_fast_first_frame_seconds_count 3.0" in metrics

    with serving(Settings(streams=3, history=4)) as address:
        asyncio.run(play(address))


def test_importing_the_server_does_not_import_torch():
    code = "import sys, aapt_fast.serve.run, aapt_fast.serve.sync_client; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
