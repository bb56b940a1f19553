# SPDX-License-Identifier: Apache-2.0
"""The server's end of a worker: calls, answers, deaths."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from pathlib import Path

import pytest
from tests.serve.fake_worker import FakeWorker

from aapt_fast.serve import link
from aapt_fast.serve.link import CallFailed, Link, WorkerGone, WorkerProcess
from aapt_fast.serve.pipe import pack, unpack
from aapt_fast.serve.run import serving
from aapt_fast.serve.settings import Limits, Settings

SMALL_WORKER = Path(__file__).with_name("small_worker.py")
OPEN = {"codecs": ["jpeg"], "key": "a", "paused": False}


class Unloadable(FakeWorker):
    """A worker whose model is broken."""

    def __init__(self, settings, on_message, on_end) -> None:
        error = {"argument": "", "expected": "", "got": "", "message": "x.safetensors: nan"}
        on_message({"failed": error}, b"")
        on_end()


def run(test) -> list[FakeWorker]:
    """Run a test with a link; returns the workers that it has started."""
    workers: list[FakeWorker] = []

    def start(*arguments) -> FakeWorker:
        workers.append(FakeWorker(*arguments))
        return workers[-1]

    async def inside() -> None:
        lost: list[bool] = []
        found = Link(Settings(), start, lambda header, body: None, lambda: lost.append(True))
        with pytest.raises(WorkerGone, match="is being loaded"):
            await found.call("open", **OPEN)
        found.start()
        await found.ready.wait()
        await test(found, workers, lost)
        await found.close()

    asyncio.run(inside())
    return workers


def test_messages_are_json_and_bytes():
    assert unpack(pack({"a": [1, "ü"]}, b"\x00\xff")) == ({"a": [1, "ü"]}, b"\x00\xff")
    settings = Settings(token="x", hosts=("a", "b"), limits=Limits(uploads=3))
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(ValueError, match=r"^uploads: expected more than 0, got 0"):
        Limits(uploads=0)


def test_calls_have_answers_or_errors():
    async def test(found, workers, lost):
        answer, body = await found.call("open", **OPEN)
        assert answer["step"] == 0 and body == b"" and found.gallery == [b"png"]
        with pytest.raises(CallFailed, match="it has ended"):
            await found.call("pause", key="b")

    run(test)


def test_a_dead_worker_fails_its_calls_and_another_one_starts(monkeypatch):
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.01)

    async def test(found, workers, lost):
        monkeypatch.setattr(workers[0], "_answer", lambda header, body: None)  # it answers nothing
        call = asyncio.create_task(found.call("open", **OPEN))
        await asyncio.sleep(0)
        workers[0].die()
        with pytest.raises(WorkerGone, match="has ended"):
            await call
        assert lost == [True] and not found.ready.is_set()
        await found.ready.wait()
        workers[0].die()  # a late word of the first one
        await asyncio.sleep(0.05)
        assert found.ready.is_set() and lost == [True]
        assert (await found.call("open", **OPEN))[0]["step"] == 0

    assert len(run(test)) == 2


def test_a_killed_process_is_replaced_and_its_folder_removed(monkeypatch, capfd):
    monkeypatch.setattr(link, "FIRST_PAUSE", 0.01)

    async def test() -> None:
        start = functools.partial(WorkerProcess, program=[str(SMALL_WORKER)])
        found = Link(Settings(), start, lambda header, body: None, lambda: None)
        found.start()
        seen = []
        for _ in range(2):
            await found.ready.wait()
            answer, body = await found.call("echo", bytes(range(256)) * 1000)
            assert body == bytes(range(256))[::-1] * 1000 and Path(answer["folder"]).is_dir()
            seen.append(answer)
            if len(seen) == 1:
                os.kill(answer["process"], signal.SIGKILL)
                while found.ready.is_set():
                    await asyncio.sleep(0.01)
        await found.close()
        assert seen[0]["process"] != seen[1]["process"]
        for each in seen:
            assert not Path(each["folder"]).exists() and not Path(f"/proc/{each['process']}").exists()

    asyncio.run(test())
    assert capfd.readouterr().out == "an ordinary end\n"


def test_a_model_that_cannot_be_loaded_ends_the_server():
    with pytest.raises(ValueError, match=r"^x.safetensors: nan"), serving(Settings(drain_seconds=0.1), Unloadable):
        pass
