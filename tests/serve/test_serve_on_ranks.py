# SPDX-License-Identifier: Apache-2.0
"""A server whose worker is two processes that share each frame: the pictures of one, and the death of a rank."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from aapt_fast.serve.client import Client, Stream, connect
from aapt_fast.serve.run import serving
from aapt_fast.serve.settings import Settings

PATIENCE = 60.0
SETTINGS = Settings(device="cpu", dtype="float32", streams=2, history=4)


def children_of(process: int) -> list[int]:
    """Processes that any thread of a process has started."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(each) for path in lists for each in path.read_text().split()]


def served(settings: Settings, use: Callable[[Client], Awaitable[object]]) -> object:
    """The result of a client's `use` of a server."""

    async def inside(address: str) -> object:
        async with connect(address) as client:
            return await asyncio.wait_for(use(client), PATIENCE)

    with serving(settings) as address:
        return asyncio.run(inside(address))


async def shown(stream: Stream, count: int) -> list[np.ndarray]:
    """The next pictures."""
    pictures: list[np.ndarray] = []
    async for frame in stream.frames():
        pictures.append(np.asarray(frame.picture(), dtype=np.int16))
        if len(pictures) == count:
            break
    return pictures


async def play(client: Client) -> list[np.ndarray]:
    """Pictures of a stream and of its fork, taken step by step, so that they do not depend on the time."""
    stream = await client.open(action="walk", seed=7, paused=True)

    async def steps(of: Stream, count: int) -> list[np.ndarray]:
        found = []
        for _ in range(count):
            await of.step()
            found += await shown(of, 4)
        return found

    pictures = await steps(stream, 3)
    await stream.rewind(1)
    pictures += await steps(stream, 1)
    twin = await stream.fork()
    pictures += await steps(twin, 1)
    await twin.close()
    replay = await client.upload_replay(await stream.replay())
    again = await client.open(replay=replay, paused=True)
    pictures += await steps(again, 1)
    await stream.reset(seed=8)
    return pictures + await steps(stream, 1)


def test_two_ranks_show_the_pictures_of_one():
    alone, together = (served(settings, play) for settings in (SETTINGS, dataclasses.replace(SETTINGS, gpus=2)))
    assert len(alone) == len(together) == 28
    assert all(np.abs(one - other).max() <= 8 for one, other in zip(alone, together, strict=True))  # JPEGs


def test_a_rank_that_dies_ends_the_worker(caplog):
    before = set(children_of(os.getpid()))  # of other tests, such as a resource tracker of multiprocessing

    async def use(client: Client) -> None:
        stream = await client.open(action="walk")
        await shown(stream, 4)
        [worker] = set(children_of(os.getpid())) - before
        [follower] = children_of(worker)
        os.kill(follower, signal.SIGKILL)
        await shown(stream, 1000)
        assert stream.ended is not None
        while True:  # until the next worker is there
            with contextlib.suppress(ValueError):
                await shown(await client.open(action="walk"), 4)
                break
            await asyncio.sleep(0.2)
        assert not Path(f"/proc/{worker}").exists()

    served(dataclasses.replace(SETTINGS, gpus=2), use)
    assert "the worker ends: rank 1 ended with signal 9" in caplog.text
    assert "the worker has ended; another one starts in 0.5 s" in caplog.text
    assert not set(children_of(os.getpid())) - before
