# SPDX-License-Identifier: Apache-2.0
"""Checkouts of the original repositories, for the tests that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.integrations.originals import Checkout, opened


@pytest.fixture
def original(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Checkout]]:
    """Opens the checkout of a repository until the test ends; without one the test is skipped."""
    given = request.config.getoption("--originals")
    with ExitStack() as stack:

        def open_one(repository: str) -> Checkout:
            if given is None:
                pytest.skip("--originals names no folder with checkouts of the original repositories")
            folder = Path(given).resolve() / repository
            if not folder.is_dir():
                pytest.skip(f"no {repository} in the folder of --originals")
            return stack.enter_context(opened(folder))

        yield open_one
