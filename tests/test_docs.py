# SPDX-License-Identifier: Apache-2.0
"""The documentation is true: links lead somewhere, every page is in the index, the tutorial runs, names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from aapt_fast.cli.options import COMMANDS
from aapt_fast.serve.settings import Limits

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md"))]
CARDS = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("python/aapt_fast/assets/*/CARD.md"))]


def links(page: str) -> list[Path]:
    """The files that a page links to."""
    path = ROOT / page
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    return [(path.parent / target).resolve() for target in targets]


@pytest.mark.parametrize("page", [*PAGES, *CARDS, "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"])
def test_links_lead_to_files(page):
    assert [target for target in links(page) if not target.exists()] == []


def test_every_page_is_in_the_index():
    indexed = {target for target in links("docs/README.md") if target.is_relative_to(DOCS)}
    assert indexed == {ROOT / page for page in PAGES} - {DOCS / "README.md"}


def run_page(page: str) -> dict:
    """Run the Python blocks of a page, one after the other; returns their names."""
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(compile(block, page, "exec"), scope)
    return scope


def test_the_page_about_saved_sessions_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run_page("how-to/branch-and-save.md")
    assert [len(scope[name]) for name in ("videos", "other", "repeated")] == [8, 3, 6]
    for mine, again in ((scope["videos"][:3], scope["repeated"][:3]), (scope["other"], scope["repeated"][3:])):
        assert all(torch.equal(one, two) for one, two in zip(mine, again, strict=True))


def test_the_page_about_the_server_runs():
    scope = run_page("how-to/serve.md")
    assert [picture.size for picture in scope["pictures"]] == [(96, 96)] * 24 and scope["obeyed"]
    assert scope["other"].number == 8 and scope["other"].is_discontinuous and len(scope["replay"]) > 1000


def test_the_page_about_the_server_has_the_defaults():
    page = (DOCS / "how-to/serve.md").read_text()
    for name, value in Limits().to_dict().items():
        found = re.search(rf"^\|[^|]*`{name}`[^|]*\| ([^|]*) \|", page, re.MULTILINE)
        assert found is not None and str(round(value)) in found[1].split(", "), name


def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run_page("tutorial/first-stream.md")
    assert scope["frames"].shape == scope["one_future"].shape == (4, 96, 96, 3)
    assert [video.shape for video in scope["videos"]] == [(4, 96, 96, 3)] * 2
    assert scope["what_if"].steps == scope["session"].steps + 1


def test_the_command_line_page_names_every_command():
    page = (DOCS / "reference/command-line.md").read_text()
    assert set(re.findall(r"aapt-fast ([a-z]+)", page)) == set(COMMANDS)


def test_environment_variables_are_read_somewhere():
    ours, _ = (DOCS / "reference/environment-variables.md").read_text().split("Other programs")
    variables = re.findall(r"^\| `([A-Z_]+)` \|", ours, re.MULTILINE)
    files = [*ROOT.glob("cmake/*"), ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", ROOT / "Makefile"]
    sources = "\n".join(path.read_text() for path in [*files, *ROOT.glob("python/**/*.py")])
    assert "AAPT_KERNELS" in variables and [name for name in variables if name not in sources] == []


def test_the_notice_names_files_that_exist():
    """Each claim about where a fact stands, and everything that a build compiles in."""
    notice = (ROOT / "NOTICE").read_text()
    places = set(re.findall(r"(?:models|ops|integrations|compat|profiling)(?:/\w+)+\.py", notice))
    assert places and [place for place in places if not (ROOT / "python/aapt_fast" / place).exists()] == []
    assert all(name in notice for name in ("pybind11", "CUTLASS", "CUDA runtime"))
    assert 'license-files = ["LICENSE", "NOTICE"]' in (ROOT / "pyproject.toml").read_text()
