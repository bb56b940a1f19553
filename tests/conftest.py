# SPDX-License-Identifier: Apache-2.0
"""For every test: few threads, idle ones asleep, and the same random numbers each time.

`pytest -n 2` shares the tests between two processes of one thread each.
"""

from __future__ import annotations

import os

# Read by OpenMP when torch loads it, so they are set before that import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import shutil
import signal

import numpy
import pytest
import torch

from aapt_fast.testing.targets import EMULATED_BUILD

torch.set_num_threads(min(2, torch.get_num_threads()))
# Without a GPU, torch.manual_seed keeps the seed and the traceback of its caller for one to come, in a millisecond.
seed_every_device = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
# A shell starts a background job with signals ignored, and what a process ignores, its children ignore.
for kind, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(kind) is signal.SIG_IGN:
        signal.signal(kind, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """They stand here because pytest reads options from the outermost folder only."""
    parser.addoption("--target", choices=["emulated", "cuda"], default="emulated", help="where kernels run")
    parser.addoption("--emulated-build", default=str(EMULATED_BUILD), help="folder with the emulated module")
    parser.addoption("--full", action="store_true", help="every combination of values in tests/kernels, not every pair")
    parser.addoption("--originals", help="folder with checkouts of Wan2.1, Self-Forcing and others (CONTRIBUTING.md)")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seeds the global generators before each test, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    seed_every_device(0)


@pytest.fixture(scope="session")
def nvcc() -> str:
    """The nvcc that the build would use."""
    if "CUDACXX" in os.environ:
        return os.environ["CUDACXX"]
    folders = [os.environ[name] + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    found = shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ["PATH"], "/usr/local/cuda/bin"]))
    return found or pytest.skip("nvcc is neither in CUDACXX, CUDA_HOME and CUDA_PATH nor on PATH or in /usr/local/cuda")
