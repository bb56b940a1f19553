# SPDX-License-Identifier: Apache-2.0
"""Truth of the README and of `help(aapt_fast)`: the example runs; files, commands and names exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import aapt_fast
from aapt_fast.cli import main
from aapt_fast.cli.options import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_is_what_the_command_writes(tmp_path, monkeypatch):
    """Up to the key press, `aapt-fast generate` makes the same video."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["session"].steps == 24 and scope["session"].closed
    assert [video.shape for video in scope["videos"]] == [(4, 96, 96, 3)] * 2
    video = torch.cat(scope["video"])
    with Image.open("wave.gif") as written:
        assert video.shape == (written.n_frames, 96, 96, 3) == (96, 96, 96, 3)
    command = [
        "generate",
        "--motion",
        "walk",
        "--frames",
        "16",
        "--scale",
        "1",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    assert main([*command, "--out", "walk"]) == 0
    pictures = [np.asarray(Image.open(path)) for path in sorted(Path("walk").iterdir())]
    assert np.array_equal(np.stack(pictures), video[:16].numpy())


def test_examples_for_other_models_name_public_things():
    """These need weights and a pipeline; the pages that they link to are tested in full."""
    blocks = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")
        assert set(re.findall(r"aapt_fast\.(\w+)", block)) <= set(aapt_fast.__all__)


def test_it_can_be_read_in_two_minutes():
    assert len(README.splitlines()) <= 120


def test_commands_exist():
    commands = set(re.findall(r"aapt-fast (\w+)", README))
    assert commands and commands <= set(COMMANDS)


def test_the_torch_that_it_installs_is_the_pinned_one():
    """With another version, `make` would install torch once more, from PyPI and with CUDA."""
    (version,) = re.findall(r"pip install torch==(\S+)\s+--index-url", README)
    assert f"torch=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", re.sub(r"```py.*?```", "", README, flags=re.DOTALL)))
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_benches_exist():
    benches = re.findall(r"python -m bench\.(\w+)", README)
    assert benches and [name for name in benches if not (ROOT / f"bench/{name}.py").is_file()] == []


def test_help_lists_every_public_name_once():
    listed = re.findall(r"^    (\w+) {2,}\S", aapt_fast.__doc__, re.MULTILINE)
    assert sorted(listed) == sorted(set(aapt_fast.__all__) - {"__version__"})
