# SPDX-License-Identifier: Apache-2.0
"""Records of op calls say what ran, kernels included."""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from aapt_fast.ops import gate_residual_norm, observe_ops, philox_normal, use_kernels

SEED = torch.tensor([1])


class Unsupported(ValueError):
    """Raised by the made-up kernel for what it does not take."""


def module(refuses: bool = False) -> types.ModuleType:
    """A compiled module with one kernel, which leaves its result as it is."""

    def philox_normal_portable(seed: object, step: object, out: object, stream: object) -> None:
        if refuses:
            raise Unsupported("seed: expected another one")

    made = types.ModuleType("fake")
    made.build_info = lambda: {"cuda": False, "emulated": True}
    made.Unsupported = Unsupported
    made.philox_normal_portable = philox_normal_portable
    return made


def noise() -> torch.Tensor:
    return philox_normal(SEED, SEED, (1, 2, 2))


def test_torch_operators_are_recorded():
    with observe_ops() as calls:
        noise(), noise()
        gate_residual_norm(torch.randn(1, 2, 4), None, None, None, None)
    noise()
    assert calls.counts == {"philox_normal": {"torch composition": 2}, "gate_residual_norm": {"torch composition": 1}}
    assert calls.what_ran() == {"gate_residual_norm": "torch composition", "philox_normal": "torch composition"}


@pytest.mark.parametrize("names", ["all", "philox_normal/portable"])
def test_kernels_are_recorded(names):
    with use_kernels(names, extension=module()), observe_ops() as calls:
        noise()
        with use_kernels("none"):
            noise()
        gate_residual_norm(torch.randn(1, 2, 4), None, None, None, None)
    assert calls.what_ran() == {
        "gate_residual_norm": "torch composition",
        "philox_normal": "philox_normal/portable and torch composition",
    }


def test_a_kernel_that_refuses_is_not_recorded():
    with use_kernels("all", extension=module(refuses=True)), observe_ops() as calls, pytest.warns(UserWarning):
        noise()
    assert calls.what_ran() == {"philox_normal": "torch composition"}


def test_calls_that_fail_are_not_recorded():
    with (
        use_kernels("philox_normal/portable", extension=module(refuses=True)),
        observe_ops() as calls,
        pytest.raises(Unsupported),
    ):
        noise()
    assert calls.what_ran() == {}


def test_records_nest_and_belong_to_their_thread():
    with observe_ops() as outer:
        with observe_ops() as inner:
            noise()
            thread = threading.Thread(target=noise)
            thread.start()
            thread.join()
        noise()
    assert inner.counts["philox_normal"].total() == 1 and outer.counts["philox_normal"].total() == 2


def test_the_hook_is_open_during_a_call_and_changes_nothing():
    events = []

    @contextmanager
    def on_op(op: str) -> Iterator[None]:
        events.append(f"before {op}")
        yield
        events.append(f"after {op}")

    expected = noise()
    with observe_ops(on_op):
        found = noise()
    assert torch.equal(found, expected) and events == ["before philox_normal", "after philox_normal"]
