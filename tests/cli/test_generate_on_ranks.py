# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast generate --gpus N`, with processes on a CPU for GPUs."""

import json
import os
import subprocess
import sys

from aapt_fast.cli import main


def test_two_ranks_write_one_video(tmp_path):
    out = tmp_path / "walk.gif"
    options = ["--device", "cpu", "--dtype", "float32", "--motion", "walk", "--frames", "8", "--scale", "1"]
    command = [sys.executable, "-m", "aapt_fast", "generate", "--gpus", "2", *options, "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert ended.returncode == 0, ended.stderr
    [report] = [json.loads(line) for line in ended.stdout.splitlines()]
    assert report["frames"] == 8 and out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["walk.gif"]


def test_ranks_that_do_not_divide_the_heads_are_refused_at_once(tmp_path, capsys):
    assert main(["generate", "--gpus", "3", "--out", str(tmp_path / "x.gif")]) == 2
    expected = "aapt-fast generate: --gpus: expected a number that divides 4 heads of mini-person, got 3\n"
    assert capsys.readouterr().err == expected
    assert main(["generate", "--gpus", "0", "--out", str(tmp_path / "x.gif")]) == 2
    assert capsys.readouterr().err == "aapt-fast generate: --gpus: expected at least 1, got 0\n"
