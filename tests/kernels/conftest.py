# SPDX-License-Identifier: Apache-2.0
"""The tests in this folder run the compiled kernels: emulated, or with --target cuda on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aapt_fast.testing import targets


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> targets.Target:
    """Where the kernels run."""
    if request.config.getoption("--target") == "cuda":
        return targets.cuda()
    return targets.emulated(Path(request.config.getoption("--emulated-build")))


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel does not write cannot pass for a result."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def hopper(target: targets.Target) -> targets.Target:
    """Where kernels for Hopper run."""
    reason = target.why_not_hopper()
    if reason:
        pytest.skip(reason)
    return target


@pytest.fixture
def emulated(target: targets.Target) -> targets.Target:
    """The emulation, for kernels with planted errors."""
    if target.name != "emulated":
        pytest.skip("a planted error may hang a GPU; the emulation reports it")
    return target
