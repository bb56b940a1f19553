# SPDX-License-Identifier: Apache-2.0
"""The tests in this folder run the compiled kernels: emulated, or with --target cuda on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from aapt_fast.testing import targets


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> targets.Target:
    """Where the kernels run."""
    if request.config.getoption("--target") == "cuda":
        return targets.cuda()
    return targets.emulated(Path(request.config.getoption("--emulated-build")))
