# SPDX-License-Identifier: Apache-2.0
"""The work of one rank in the tests of test_train_on_ranks.py: `python train_job.py FOLDER STEPS [OPTION...]`.

Every stage trains in FOLDER/STAGE, or goes on there, until it has taken STEPS more steps or all of them. The weights of
one that is done go to FOLDER/STAGE.pt. Options: context (two ranks share tokens), recompute.
"""

import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import torch

from aapt_fast.distributed import launch
from aapt_fast.testing.small_trainings import STAGES, stop_after
from aapt_fast.training import precision
from aapt_fast.training.place import join


def main(folder, steps, *options):
    torch.set_num_threads(1)
    place = join("cpu", recompute="recompute" in options, context=2 if "context" in options else 1)
    for name, train in STAGES.items():
        with suppress(KeyboardInterrupt), patch.object(precision, "fast_dtype", lambda device: torch.float32):
            model = train(Path(folder, name), place, stop_after(int(steps)))
            weights = place.whole_state(model)
            if place.is_first:
                torch.save(weights, Path(folder, f"{name}.pt"))
    launch.end()


main(*sys.argv[1:])
