# SPDX-License-Identifier: Apache-2.0
"""A program that runs pytest in forks of itself: what tests load is loaded once, and a run starts in a moment.

A line of standard input asks for a run: {"arguments": [...], "seconds": 120}. A line of standard output answers:
{"status": exit status or minus the signal, "output": text}.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import multiprocessing
import os
import sys
import tempfile
from typing import TextIO

import pytest
import torch

# Tests that load what others load: plugins, torch's compiler, the checks of ops.
FIRST = ["tests/kernels/test_kv_write.py", "-k", "opcheck or compile or test_numbers_of_heads"]


def run(arguments: list[str], seconds: float) -> dict[str, int | str]:
    """Run pytest in a child, which is killed after `seconds`."""
    with tempfile.TemporaryFile("w+") as output:
        child = multiprocessing.get_context("fork").Process(target=_run_here, args=(arguments, output))
        child.start()
        child.join(seconds)
        if child.exitcode is None:
            child.kill()
            child.join()
        output.seek(0)
        return {"status": child.exitcode or 0, "output": output.read()}


def _run_here(arguments: list[str], output: TextIO) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.exit(int(pytest.main(arguments)))


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", "--capture=sys", *FIRST])
    gc.freeze()  # a fork need not look at what is there for ever
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
