# SPDX-License-Identifier: Apache-2.0
"""Starting the ranks of a job, and ending all of them when one has failed.

    start()         in each process that `torchrun` has started: joins the others
    run(n, ...)     starts n such processes on this machine, by torchrun's own agent, and waits for them
    Followers(n)    makes this process rank 0, and starts the others

A rank that dies is seen by the agent within a second. A rank that hangs lets the others wait in an exchange; they give
up after `EXCHANGE_SECONDS` and die, too. In both cases all processes end, and one message names the rank that failed.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aapt_fast.distributed.transport import TorchTransport, Transport
from aapt_fast.errors import RankFailed, RankHung, require

EXCHANGE_SECONDS = 60
"""Seconds after which a rank gives up an exchange of tensors."""
START_SECONDS = 600
"""Seconds that ranks wait for each other in `start`, and to compare: machines load files at different speeds."""
IDLE = timedelta(days=30)
"""For how long ranks wait for a command of rank 0: a user may think."""


def started_by_torchrun() -> bool:
    """True in a process that `torchrun`, or `run`, has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(
    device: str | None = None, on_failure: Callable[[RankHung], object] | None = None
) -> tuple[TorchTransport, torch.device]:
    """Join the other processes of a job that `torchrun` has started.

    Args:
        device: "cuda" (exchanges by NCCL) or "cpu" (gloo); None for a GPU if there is one.
        on_failure: called before an exchange raises RankHung.

    Returns:
        The transport, and the device of this rank: with GPUs, number LOCAL_RANK.

    Raises:
        ValueError: no `torchrun`, fewer GPUs than ranks on a machine (on all ranks), or a torch without NCCL.
    """
    require(started_by_torchrun(), "ranks", "a process of `torchrun --nproc-per-node N script.py`", "one without")
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    require(kind in ("cuda", "cpu"), "device", "'cuda' or 'cpu'", repr(device))
    backend, place = "gloo", torch.device("cpu")
    if kind == "cuda":
        require(dist.is_nccl_available(), "device", "'cpu': this torch has no NCCL; one for CUDA brings it", "'cuda'")
        backend, place = "nccl", torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if place.index < torch.cuda.device_count():
            torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(seconds=START_SECONDS))
    group = dist.new_group(backend=backend, timeout=timedelta(seconds=EXCHANGE_SECONDS))
    objects = dist.new_group(backend="gloo", timeout=timedelta(seconds=START_SECONDS))
    patience = timedelta(seconds=EXCHANGE_SECONDS) if dist.get_rank() == 0 else IDLE
    commands = dist.new_group(backend="gloo", timeout=patience)
    transport = TorchTransport(group, objects, commands, on_failure)
    require_gpus_of_all(transport, place)
    return transport, place


def require_gpus(ranks: int) -> None:
    """Raise ValueError unless this machine has a GPU for each of so many ranks."""
    gpus = torch.cuda.device_count()
    require(ranks <= gpus, "ranks", f"at most {gpus} on this machine, one per GPU", ranks)


def require_gpus_of_all(transport: Transport, place: torch.device) -> None:
    """Raise the same ValueError on every rank if one of them has no GPU of its own. `place` is that of this rank."""
    said = None
    if place.type == "cuda":
        try:
            require_gpus(place.index + 1)
        except ValueError as error:
            said = str(error)
    for message in reversed(transport.gather(said)):  # the last one counts all ranks of its machine
        if message is not None:
            raise ValueError(message)


def end() -> None:
    """Leave the job. Waits for the other ranks, so that none of them loses its connection in the middle of its work."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def run(ranks: int, arguments: Sequence[str]) -> None:
    """Run `python arguments...` as so many ranks on this machine, and wait for all of them.

    Their output goes to this process's own. Raises RankFailed if one of them fails, KeyboardInterrupt after a signal,
    which the ranks have got, too.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="aapt_fast",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        max_restarts=0,
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # RankFailed says it in one sentence
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except SignalException as stop:
        raise KeyboardInterrupt(f"stopped by {stop.sigval.name}") from None
    except ChildFailedError as error:
        raise RankFailed(f"{_first_cause(error)}; all {ranks} ranks have been ended") from None


def _first_cause(error: Any) -> str:
    """What happened first in a job whose agent gave up, as one sentence. `error`: a ChildFailedError."""
    rank, failure = error.get_first_failure()
    hung = re.search(rf"{RankHung.__name__}\W+(.*?did not answer)", str(failure.message))
    if hung:
        return hung[1]
    return _ended(rank, failure.exitcode)


def _ended(rank: int, status: int) -> str:
    """The end of a rank in words; a negative status is that of a signal."""
    return f"rank {rank} ended with {f'signal {-status}' if status < 0 else f'status {status}'}"


class Followers:
    """Ranks 1 to n - 1 of a job on this machine, each a process that runs `python arguments...`. This one is rank 0.

    They and this process call `start`. They end with this process, whatever ends it: their standard input does, which
    `end_with_rank_0` waits for.

    Args:
        ranks: n.
        arguments: of Python.
        message: a line for the standard input of each.
        on_failure: called in a thread, with a sentence, when one of them ends before `let_end`.
    """

    def __init__(self, ranks: int, arguments: Sequence[str], message: str, on_failure: Callable[[str], object]) -> None:
        self._on_failure, self._closing = on_failure, False
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "WORLD_SIZE": str(ranks),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already, also for rank 0
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        os.environ.update(**common, RANK="0", LOCAL_RANK="0")
        self.processes: list[subprocess.Popen[str]] = []
        for rank in range(1, ranks):
            environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, *arguments]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, text=True)
            self.processes.append(process)
            assert process.stdin is not None
            process.stdin.write(message + "\n")
            process.stdin.flush()
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def ended(self, seconds: float) -> str | None:
        """The end of one of them, in words; waits so many seconds for one. None if all of them live."""
        until = time.monotonic() + seconds
        while True:
            for rank, process in enumerate(self.processes, 1):
                status = process.poll()
                if status is not None:
                    return _ended(rank, status)
            if time.monotonic() > until:
                return None
            time.sleep(0.02)

    def let_end(self) -> None:
        """Take their ends for ordinary from here on."""
        self._closing = True

    def close(self, seconds: float) -> None:
        """Wait for their end, which they have been told of; kill those that have not ended after so many seconds."""
        self.let_end()
        end = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """End them at once, also those that hang."""
        self.let_end()
        for process in self.processes:
            process.kill()

    def _watch(self, rank: int, process: subprocess.Popen[str]) -> None:
        status = process.wait()
        if not self._closing:
            self._on_failure(_ended(rank, status))


def end_with_rank_0() -> str:
    """The message of `Followers` to this process, which ends from here on when rank 0 does."""
    message = sys.stdin.readline()

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, name="aapt_fast-rank-0", daemon=True).start()
    return message
