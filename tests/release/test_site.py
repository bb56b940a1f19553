# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: no warning, every page and every public name, and links that lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import aapt_fast

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.relative_to(REPOSITORY / "docs") for path in (REPOSITORY / "docs").rglob("*.md")} - {
        Path("README.md")
    }
    assert [page for page in pages if not (site / page.with_suffix(".html")).is_file()] == []
    assert (site / "repository/python/aapt_fast/assets/mini-person/CARD.html").is_file()


def test_every_public_name_is_explained(site: Path) -> None:
    page = (site / "reference/python.html").read_text()
    names = set(aapt_fast.__all__) - {"__version__"}
    assert [name for name in names if f'id="aapt_fast.{name}"' not in page] == []


def test_links_lead_to_files_of_the_site(site: Path) -> None:
    """Those of the index and of a page from outside of docs/, whose links the hook has changed."""
    for name in ("index.html", "repository/CONTRIBUTING.html", "repository/index.html"):
        targets = re.findall(r'<a href="(?!https?:|#|mailto:)([^"#]+)', (site / name).read_text())
        assert targets and [each for each in targets if not (site / name).parent.joinpath(each).exists()] == []


@pytest.fixture
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs/site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "[a](how-to/serve.md#x)", "[a](how-to/serve.md#x)"),
        ("how-to/serve.md", "[a](../../CONTRIBUTING.md#building)", "[a](../repository/CONTRIBUTING.md#building)"),
        ("repository/README.md", "![a](docs/page.png)", "![a](../page.png)"),
        ("repository/CONTRIBUTING.md", "[a](README.md)", "[a](README.md)"),
        ("results/coin.md", "[the code](../../python/aapt_fast/training/coin.py)", "the code"),
        ("results/coin.md", "[a](../nothing.md)", "[a](../nothing.md)"),
        ("results/coin.md", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
    ],
)
def test_links_are_pointed_at_the_site(hooks: ModuleType, page: str, link: str, expected: str) -> None:
    known = {"README.md", "how-to/serve.md", "page.png", "repository/CONTRIBUTING.md", "repository/README.md"}
    assert hooks.rewritten(link, page, known) == expected
