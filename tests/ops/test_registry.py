# SPDX-License-Identifier: Apache-2.0
"""Registration of ops, the choice of what runs, and autocast inside their bodies."""

from __future__ import annotations

import types

import pytest
import torch

from aapt_fast import ops
from aapt_fast.ops import reference
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.ops.registry import OPS, implementation
from aapt_fast.testing.compare import assert_near

CPU = torch.device("cpu")


def arguments_of(op: str) -> tuple:
    """Arguments of the registered op, without autocast's dtypes: the tensors are float32."""
    torch.manual_seed(0)
    ids, valid = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([[64, 6]], dtype=torch.int32)
    pages = torch.randn(3, 64, 2, 8)
    tokens = torch.randn(1, 70, 2, 8)
    angles = torch.randn(70, 4)
    return {
        "causal_conv3d": (torch.randn(1, 3, 2, 4, 4), torch.randn(5, 3, 3, 3, 3), None, None),
        "channel_concat": (*torch.randn(2, 1, 3, 4, 4), None, torch.randn(8, 24), torch.randn(8), 2),
        "clean_frame": (torch.randn(1, 4, 8), torch.randn(1, 2, 1, 4, 4), torch.rand(1), 2),
        "gate_residual_norm": (*torch.randn(2, 1, 5, 16), torch.randn(16), torch.randn(16), torch.randn(16), 1e-6),
        "kv_write": (
            *(tokens, tokens.clone(), tokens.clone(), torch.randn(8), None, angles.cos(), angles.sin()),
            *(pages.clone(), pages.clone(), ids, 1e-6),
        ),
        "paged_attention": (tokens, pages, pages.flip(0), ids, valid, 0.3, None),
        "philox_normal": (torch.tensor([3]), torch.tensor([1]), (2, 3, 4)),
    }[op]


def results(found: object) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else list(found)


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


def casts_for_itself(op: str) -> bool:
    """True for an op with a rule for autocast, whose bodies are called with autocast off."""
    rules = [torch._C._dispatch_has_kernel_for_dispatch_key(f"aapt::{op}", f"Autocast{key}") for key in ("CPU", "CUDA")]
    assert rules[0] == rules[1]
    return rules[0]


def test_ops_with_a_rule_for_autocast():
    assert {op for op in OPS if casts_for_itself(op)} == {"causal_conv3d", "channel_concat", "gate_residual_norm"}


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("op", [op for op in OPS if not casts_for_itself(op)])
def test_a_body_computes_the_same_under_autocast(op, device_type):
    """Bodies for GPUs run on CPU tensors here: a lower precision inside would show in the numbers."""
    body = OPS[op][device_type]
    expected = results(body(*arguments_of(op)))
    with torch.autocast("cpu", torch.bfloat16):
        found = results(body(*arguments_of(op)))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("op", ["causal_conv3d", "channel_concat"])
def test_ops_that_cast_return_the_dtype_of_autocast(op):
    call = getattr(torch.ops.aapt, op).default
    with torch.autocast("cpu", torch.bfloat16):
        assert call(*arguments_of(op)).dtype == torch.bfloat16
    double = [x.double() if isinstance(x, torch.Tensor) else x for x in arguments_of(op)]
    with torch.autocast("cpu", torch.bfloat16):
        assert call(*double).dtype == torch.float64


def test_autocast_would_show_in_the_reference_of_attention():
    arguments = arguments_of("paged_attention")
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
        assert implementation("paged_attention", torch.device("cuda")) == "torch reference in float32"
