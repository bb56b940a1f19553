# SPDX-License-Identifier: Apache-2.0
"""What the README shows is true: its example runs, its files and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aapt_fast.cli import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    scope: dict = {}
    for block in blocks:  # the second goes on from the first
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["frames"].shape == (4, 96, 96, 3)
    assert scope["what_if"].steps == 12
    assert [video.shape for video in scope["videos"]] == [(4, 96, 96, 3)] * 2


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_commands_exist() -> None:
    assert set(re.findall(r"aapt-fast (\w+)", README)) == set(COMMANDS)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize("variable", re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
def test_environment_variables_are_read_somewhere(variable: str) -> None:
    sources = [*ROOT.glob("cmake/*"), ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", *ROOT.glob("python/**/*.py")]
    assert any(variable in path.read_text() for path in sources)
