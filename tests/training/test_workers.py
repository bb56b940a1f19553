# SPDX-License-Identifier: Apache-2.0
"""Workers do not outlive a parent that was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

POOL = """
import multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from aapt_fast.training.workers import begin_worker
if __name__ == "__main__":
    assert "torch" not in sys.modules
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin_worker)
    pool.submit(time.sleep, 600)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """The worker holds stdout open, so `run` returns once both have ended, or raises after the time limit."""
    (tmp_path / "pool.py").write_text(POOL)
    done = subprocess.run([sys.executable, tmp_path / "pool.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9 and "Traceback" not in done.stderr, done.stderr
