# SPDX-License-Identifier: Apache-2.0
"""Registration of ops, the choice of what runs, and autocast inside their bodies."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aapt_fast import ops
from aapt_fast.ops import fused_attention, reference
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.ops.registry import OPS, implementation
from aapt_fast.testing.attention import packed_attention
from aapt_fast.testing.compare import assert_near

CPU = torch.device("cpu")


def seeded(function: Callable[[], tuple]) -> Callable[[], tuple]:
    def call() -> tuple:
        torch.manual_seed(0)
        return function()

    return call


def pages() -> Tensor:
    return torch.randn(3, 64, 2, 8)


def tokens() -> Tensor:
    return torch.randn(1, 70, 2, 8)


IDS, VALID = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([[64, 6]], dtype=torch.int32)
FRAMES = torch.zeros(1, 2, 2, 3, 8)
ANGLES = torch.linspace(0, 3, 280).view(70, 4)

ARGUMENTS = {
    op: seeded(function)
    for op, function in {
        "causal_conv3d": lambda: (torch.randn(1, 3, 2, 4, 4), torch.randn(5, 3, 3, 3, 3), None, None),
        "channel_concat": lambda: (*torch.randn(2, 1, 3, 4, 4), None, torch.randn(8, 24), torch.randn(8), 2),
        "clean_frame": lambda: (torch.randn(1, 4, 8), torch.randn(1, 2, 1, 4, 4), torch.rand(1), 2),
        "gate_residual_norm": lambda: (*torch.randn(2, 1, 5, 16), *torch.randn(3, 16), 1e-6),
        "kv_write": lambda: (
            *(tokens(), tokens(), tokens(), torch.randn(8), None, ANGLES.cos(), ANGLES.sin()),
            *(pages(), pages(), IDS, 1e-6),
        ),
        "paged_attention": lambda: (tokens(), pages(), pages(), IDS, VALID, 0.3, None, None),
        "norm_silu": lambda: (torch.randn(1, 2, 2, 3, 8), torch.randn(8), None, 0, 1e-12, FRAMES.clone(), None),
        "philox_normal": lambda: (torch.tensor([3]), torch.tensor([1]), (2, 3, 4)),
        "ring_conv3d": lambda: (
            *(torch.randn(1, 4, 2, 3, 8), None, torch.randn(1, 27, 8, 8), None, None),
            *(FRAMES.clone(), None, 2, "same", torch.randn(8), FRAMES.clone(), None, 1e-12),
        ),
    }.items()
}
"""Arguments of a registered op in float32, the same in every call."""


def results(call: Callable, op: str) -> list[Tensor]:
    """What the op returns, and its arguments after the call: some ops change them."""
    arguments = ARGUMENTS[op]()
    found = call(*arguments)
    returned = [found] if isinstance(found, Tensor) else list(found or ())
    return returned + [each for each in arguments if isinstance(each, Tensor)]


def test_every_registered_op_has_a_body_for_both_devices():
    registered = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "aapt::" in name
    }
    assert set(OPS) == registered >= {kernel.op for kernel in KERNELS.values()}
    for op, bodies in OPS.items():
        for key in ("CPU", "CUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aapt::{op}", key)
            assert bodies[key.lower()].op == op


def test_all_public_names_exist():
    assert all(hasattr(ops, name) for name in ops.__all__)


@pytest.mark.parametrize("op", ARGUMENTS)
def test_a_body_for_gpus_computes_the_same_under_autocast(op, monkeypatch):
    """It runs on CPU tensors here, where a lower precision inside would show in the numbers as well."""
    monkeypatch.setattr(fused_attention, "torch_kernel", lambda q: packed_attention)  # torch's own need a GPU
    body = OPS[op]["cuda"]
    expected = results(body, op)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(body, op)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("op", sorted(ARGUMENTS.keys() - {"causal_conv3d", "channel_concat"}))
def test_ops_in_float32_compute_the_same_under_autocast(op):
    call = getattr(torch.ops.aapt, op).default
    expected = results(call, op)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(call, op)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("op", ["causal_conv3d", "channel_concat"])
def test_ops_that_cast_return_the_dtype_of_autocast(op):
    call = getattr(torch.ops.aapt, op).default
    double = [x.double() if isinstance(x, Tensor) else x for x in ARGUMENTS[op]()]
    with torch.autocast("cpu", torch.bfloat16):
        assert call(*ARGUMENTS[op]()).dtype == torch.bfloat16
        assert call(*double).dtype == torch.float64


def test_autocast_would_show_in_the_reference_of_attention():
    arguments = ARGUMENTS["paged_attention"]()[:-1]
    with torch.autocast("cpu", torch.bfloat16):
        lower = reference.paged_attention(*arguments)[0]
    with pytest.raises(AssertionError):
        assert_near(lower, reference.paged_attention(*arguments)[0], 1e-4)


def test_the_implementation_is_the_choice_that_calls_make():
    module = types.ModuleType("fake")
    module.build_info = lambda: {"cuda": False, "emulated": True}
    module.kv_write_portable = lambda *_: None
    assert implementation("kv_write", CPU) == "torch composition"
    with use_kernels("all", extension=module):
        assert implementation("kv_write", CPU) == "kv_write/portable"
        assert implementation("philox_normal", CPU) == "torch composition"
    with use_kernels("none", extension=module):
        assert implementation("kv_write", CPU) == "torch composition"
    with use_kernels("none"):
        assert implementation("paged_attention", torch.device("cuda")) == "torch's fused attention"
