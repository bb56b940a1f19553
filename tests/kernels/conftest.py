# SPDX-License-Identifier: Apache-2.0
"""The tests in this folder run the compiled kernels: emulated, or with --target cuda on a GPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aapt_fast.testing import targets
from aapt_fast.testing.pairwise import pairwise
from aapt_fast.testing.planting import Planter, Runs


@pytest.hookimpl(trylast=True)  # after -k, so that every pair of what it left is there
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep, of each parametrised test of this folder, cases with every pair of values; all of them with --full."""
    if config.getoption("--full"):
        return
    cases = defaultdict(list)
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and hasattr(item, "callspec")
            and item.path.parent == Path(__file__).parent
        ):
            cases[item.path, item.originalname].append(item)
    dropped = set()
    for same_test in cases.values():
        values = [{name: repr(value) for name, value in item.callspec.params.items()} for item in same_test]
        chosen = pairwise(values)
        dropped |= set(same_test) - {same_test[index] for index in chosen}
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> targets.Target:
    """The machine that runs the kernels."""
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
    """The machine that runs kernels for Hopper; skips where there is none."""
    reason = target.why_not_hopper()
    if reason:
        pytest.skip(reason)
    return target


@pytest.fixture
def emulated(target: targets.Target) -> targets.Target:
    """The emulation, for kernels with planted errors; skips elsewhere."""
    if target.name != "emulated":
        pytest.skip("a planted error may hang a GPU; the emulation reports it")
    return target


@pytest.fixture(scope="session")
def planter(tmp_path_factory: pytest.TempPathFactory) -> Planter:
    """Plants bugs in kernels."""
    return Planter(tmp_path_factory.mktemp("planter"))


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    """Runs the tests that have to notice planted bugs."""
    with Runs() as runs:
        yield runs
