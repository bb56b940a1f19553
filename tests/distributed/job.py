# SPDX-License-Identifier: Apache-2.0
"""The work of one rank in the tests of test_launch.py: `python job.py RESULTS SCHEME [RANK HOW]`, under torchrun.

Each rank writes what it has found to RESULTS/rank-N.json; so an error of the backend while it ends changes nothing. Rank
RANK, if given, dies or hangs in the second step.
"""

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


def main(results, scheme, rank="-1", how=""):
    torch.set_num_threads(1)
    launch.EXCHANGE_SECONDS = 5
    transport, device = launch.start("cpu")
    assert device.type == "cpu"
    model = random_model(STREAMS["pose"])
    sharded = shard(model, transport, scheme)

    def hurt():
        if transport.rank == int(rank):
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)

    class Hurt(SharedSession):
        def step(self, control=None):
            if self.steps == 1:
                hurt()
            return super().step(control)

    with Hurt(sharded, random_image(model), seed=7, transport=transport, check_every=2) as session:
        if transport.rank == 0:
            video = torch.cat([session.step(control) for control in random_controls(model, 4, seed=3)])
        else:
            session.follow()
            video = torch.zeros(1)
    report = {"sum": int(video.int().sum()), "ranks": transport.size}
    Path(results, f"rank-{transport.rank}.json").write_text(json.dumps(report))
    launch.end()


main(*sys.argv[1:])
