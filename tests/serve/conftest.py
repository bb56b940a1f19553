# SPDX-License-Identifier: Apache-2.0
"""A browser for the tests of the page; they are skipped where none is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aapt_fast.testing.browser import Page, browser, find_browser


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the browser's downloads."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def open_browser(downloads: Path) -> Iterator[Page]:
    """A browser with one page for all tests."""
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium or Chrome is installed")
    with browser(executable, downloads) as page:
        yield page


@pytest.fixture
def page(open_browser: Page) -> Iterator[Page]:
    """The page as on a desk, left without an error."""
    open_browser.resize(1280, 800)
    open_browser.errors.clear()
    yield open_browser
    open_browser.open("about:blank")
    assert open_browser.errors == []
