# SPDX-License-Identifier: Apache-2.0
"""1, 2, 4 and 8 processes over gloo compute what one device does: sessions, forks and decoders, by both schemes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.distributed.agreement import SCHEMES, results_of_one
from torch import Tensor

JOB = Path(__file__).with_name("agreement.py")
PROGRAM = "import sys; from aapt_fast.distributed import launch; launch.run(int(sys.argv[1]), sys.argv[2:])"
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with torch.no_grad():
        return results_of_one()


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_processes_compute_what_one_device_does(tmp_path: Path, expected: dict[str, Tensor], ranks: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(ranks), str(JOB), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    files = sorted(tmp_path.iterdir())
    assert len(files) == ranks, ended.stderr
    of_ranks = [torch.load(file, weights_only=True) for file in files]
    for scheme in SCHEMES:
        first = of_ranks[0][scheme]
        assert first.keys() == expected.keys()
        for name, values in expected.items():
            if values.dtype == torch.uint8:
                difference = (first[name].int() - values.int()).abs().max()
                assert difference <= 1, f"{scheme}, {name}"  # a value between two numbers may be rounded otherwise
            else:
                torch.testing.assert_close(first[name], values, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{scheme}, {name}")
            assert all(torch.equal(each[scheme][name], first[name]) for each in of_ranks), f"{scheme}, {name}"
