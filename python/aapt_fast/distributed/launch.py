# SPDX-License-Identifier: Apache-2.0
"""Starting the ranks of a job, and ending all of them when one has failed.

    start()         in each process that `torchrun` has started: joins the others
    run(n, ...)     starts n such processes on this machine, by torchrun's own agent, and waits for them

A rank that dies is seen by the agent within a second. A rank that hangs lets the others wait in an exchange; they give
up after `EXCHANGE_SECONDS` and die, too. In both cases all processes end, and one message names the rank that failed.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aapt_fast.distributed.transport import TorchTransport
from aapt_fast.errors import RankFailed, RankHung, require

EXCHANGE_SECONDS = 60
"""Seconds after which a rank gives up an exchange of tensors."""
IDLE = timedelta(days=30)
"""For how long ranks wait for a command of rank 0: a user may think."""


def started_by_torchrun() -> bool:
    """True in a process that `torchrun`, or `run`, has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(device: str | None = None) -> tuple[TorchTransport, torch.device]:
    """Join the other processes of a job that `torchrun` has started.

    Args:
        device: "cuda" (exchanges by NCCL) or "cpu" (gloo); None for a GPU if there is one.

    Returns:
        The transport, and the device of this rank: with GPUs, number LOCAL_RANK.

    Raises:
        ValueError: no `torchrun`, fewer GPUs than ranks on this machine, or a torch without NCCL.
    """
    require(started_by_torchrun(), "ranks", "a process of `torchrun --nproc-per-node N script.py`", "one without")
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    require(kind in ("cuda", "cpu"), "device", "'cuda' or 'cpu'", repr(device))
    backend, place = "gloo", torch.device("cpu")
    if kind == "cuda":
        require(dist.is_nccl_available(), "device", "'cpu': this torch has no NCCL; one for CUDA brings it", "'cuda'")
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        require(local < gpus, "ranks", f"at most {gpus} on this machine, one per GPU", local + 1)
        backend, place = "nccl", torch.device("cuda", local)
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(seconds=EXCHANGE_SECONDS))
    commands = dist.new_group(backend="gloo", timeout=IDLE)
    return TorchTransport(commands=commands), place


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
    why = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"status {failure.exitcode}"
    return f"rank {rank} ended with {why}"
