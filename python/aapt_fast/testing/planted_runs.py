# SPDX-License-Identifier: Apache-2.0
"""A program that runs pytest in forks of itself: modules are loaded once, and each choice of tests is collected once.

A line of standard input asks for a run:
{"arguments": [...], "folder": build folder of the module to test, "seconds": 120}. A line of standard output answers:
{"status": exit status or minus the signal, "output": text}.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import TextIO

import pytest
import torch

# Tests that load what others load: plugins, torch's compiler, the checks of ops.
FIRST = ["tests/kernels/test_kv_write.py", "-k", "opcheck or compile or test_numbers_of_heads"]
MOST_COLLECTIONS = 3


class Collection:
    """A process that has collected the tests of `arguments`, and runs them in forks of itself."""

    def __init__(self, arguments: list[str]) -> None:
        fork = multiprocessing.get_context("fork")
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it stays open as long as the process)
        self._requests, theirs = fork.Pipe()
        self._process = fork.Process(target=_collect, args=(arguments, theirs, self._output), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, folder: str, seconds: float) -> dict[str, int | str]:
        """Run the tests on the module in `folder`, in a process that is killed after `seconds`."""
        self._output.seek(0)
        self._output.truncate()
        try:
            self._requests.send((folder, seconds))
            status = self._requests.recv()
        except (EOFError, ConnectionError):  # pytest refused the arguments
            self._process.join()
            status = self._process.exitcode
        self._output.seek(0)
        return {"status": status, "output": self._output.read()}

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


class _ForkPerRun:
    """A plugin that holds pytest when its tests are collected, and lets a fork go on for each request."""

    def __init__(self, requests: Connection) -> None:
        self._requests = requests

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        while True:
            folder, seconds = self._requests.recv()
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                session.config.option.emulated_build = folder
                return None  # pytest's own loop follows
            self._requests.send(_exit_status(child, seconds))


def _exit_status(child: int, seconds: float) -> int:
    """Wait for a process, which is killed after `seconds`; its exit status, or minus the signal that ended it."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _collect(arguments: list[str], requests: Connection, output: TextIO) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.exit(int(pytest.main([*arguments, "--capture=no"], [_ForkPerRun(requests)])))


def main() -> None:
    """Answer the requests of standard input."""
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", "--capture=sys", *FIRST])
    gc.freeze()  # a fork need not look at what is there for ever
    collections: dict[tuple[str, ...], Collection] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = tuple(request["arguments"])
        if key not in collections:
            if len(collections) == MOST_COLLECTIONS:
                collections.pop(next(iter(collections))).close()  # the oldest
            collections[key] = Collection(request["arguments"])
        print(json.dumps(collections[key].run(request["folder"], request["seconds"])), flush=True)


if __name__ == "__main__":
    main()
