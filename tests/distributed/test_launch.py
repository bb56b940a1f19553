# SPDX-License-Identifier: Apache-2.0
"""Ranks as processes over gloo: the same video as one device, and what happens when one of them fails."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from aapt_fast.distributed import launch
from aapt_fast.profiling.inputs import random_controls, random_image
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import STREAMS, random_model

JOB = Path(__file__).with_name("job.py")
PROGRAM = "import sys; from aapt_fast.distributed import launch; launch.run(int(sys.argv[1]), sys.argv[2:])"


def run(ranks, *arguments, script=JOB):
    """The agent in a process of its own, as a user's program would call it."""
    command = [sys.executable, "-c", PROGRAM, str(ranks), str(script), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_two_processes_make_the_video_of_one(tmp_path):
    ended = run(2, tmp_path)
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert [each["ranks"] for each in reports] == [2, 2], ended.stderr
    model = random_model(dataclasses.replace(STREAMS["pose"], width=64, heads=8))
    with StreamSession(model, random_image(model), seed=7) as session:
        alone = sum(int(session.step(control).sum()) for control in random_controls(model, 4, seed=3))
    assert all(abs(each - alone) < 20 for each in reports[0]["sums"])  # some values are rounded otherwise
    left = [name for each in reports for name in each.get("threads", []) if "gloo" in name]
    assert not left, "threads of gloo that outlive `end` abort at the end of Python, now and then"


def test_the_program_of_the_guide_runs_on_two_processes(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/how-to/use-many-gpus.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stream.py").write_text(program)
    ended = run(2, script="stream.py")
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "walk.gif") as video:
        assert video.n_frames > 12  # equal pictures are stored once


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "rank 1 ended with signal 9"),
        ("hangs", "rank 1 did not answer"),
        ("hangs idle", "rank 1 did not answer"),
    ],
)
def test_a_rank_that_fails_ends_the_job_and_is_named(tmp_path, how, said):
    begun = time.monotonic()
    ended = run(2, tmp_path, 1, how)
    assert ended.returncode != 0 and not list(tmp_path.iterdir())
    assert ended.stderr.rstrip().endswith(f"RankFailed: {said}; all 2 ranks have been ended")
    assert time.monotonic() - begun < 150
    alive = subprocess.run(["pgrep", "-f", f"{JOB} {tmp_path}"], capture_output=True, text=True).stdout.split()
    assert not alive


def test_a_process_without_torchrun_is_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="ranks: expected a process of `torchrun"):
        launch.start()
