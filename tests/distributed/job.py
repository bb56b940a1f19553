# SPDX-License-Identifier: Apache-2.0
"""The work of one rank in the tests of test_launch.py: `python job.py RESULTS [RANK HOW]`, under torchrun.

Each rank writes what it has found to RESULTS/rank-N.json; so an error of the backend while it ends changes nothing.
After `launch.end` it adds the names of its threads.
Rank RANK, if given, dies or hangs in the second step, or hangs before it ("hangs idle").
"""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from aapt_fast.distributed import launch
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.shared_session import SharedSession
from aapt_fast.profiling.inputs import random_controls, random_image
from aapt_fast.testing.streams import STREAMS, random_model

CONFIG = dataclasses.replace(STREAMS["pose"], width=64, heads=8)


def play(transport, scheme, hurt):
    """The sum of the video of four steps, from rank 0."""

    class Session(SharedSession):
        def step(self, control=None):
            if self.steps == 1:
                hurt(None)
            video = super().step(control)
            if self.steps == 1:
                hurt("idle")
            return video

    model = random_model(CONFIG)
    with Session(
        shard(model, transport, scheme, whole_decoder=False), random_image(model), seed=7, transport=transport
    ) as session:
        if transport.rank == 0:
            return sum(int(session.step(control).sum()) for control in random_controls(model, 4, seed=3))
        session.follow()


def main(results, rank="-1", how=""):
    torch.set_num_threads(1)
    if how.startswith("hangs"):
        launch.EXCHANGE_SECONDS = 5
    transport, _ = launch.start("cpu")

    def hurt(place):
        """Called by step 2, and after step 1, between two commands, with "idle"."""
        if transport.rank == int(rank) and (place == "idle") == (how == "hangs idle"):
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)

    sums = [play(transport, scheme, hurt) for scheme in ("sp", "tp")]
    report = {"ranks": transport.size, "sums": sums}
    file = Path(results, f"rank-{transport.rank}.json")
    file.write_text(json.dumps(report))
    launch.end()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    file.write_text(json.dumps({**report, "threads": threads}))


main(*sys.argv[1:])
