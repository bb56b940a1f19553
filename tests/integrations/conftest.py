# SPDX-License-Identifier: Apache-2.0
"""Fixtures: checkouts of the original repositories; attention through our ops without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.integrations.originals import Checkout, opened

from aapt_fast.integrations import attention, diffusers_attention


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


@pytest.fixture
def compositions(monkeypatch) -> list[str]:
    """Sends every call through pages, as if a kernel took any dtype on the CPU; lists the ops that ran."""
    ran: list[str] = []

    def noted(name: str, function):
        return lambda *arguments: (ran.append(name), function(*arguments))[1]

    for module in (attention, diffusers_attention):
        monkeypatch.setattr(module, "attention_obstacle", lambda *_: None)
    for name in ("kv_write", "paged_attention"):
        monkeypatch.setattr(attention, name, noted(name, getattr(attention, name)))
    return ran
