# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import norm_silu, reference
from aapt_fast.testing.cases import DEVICES, every_second
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

SHAPE = (2, 3, 5, 4, 24)
GROUPS = pytest.mark.parametrize("groups", [0, 1, 8], ids=lambda groups: f"{groups} groups")


def number(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


def inputs(groups: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None, int, float]:
    """x, gamma, beta, groups, eps; the frames differ in mean and size."""
    x = torch.randn(SHAPE) * torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1, 1) + torch.tensor([0.0, 2.0, 5.0]).view(
        3, 1, 1, 1
    )
    beta = torch.randn(SHAPE[-1]).to(dtype) if groups else None
    return x.to(dtype), (torch.rand(SHAPE[-1]) + 0.5).to(dtype), beta, groups, 1e-6 if groups else 1e-12


def plain_torch(x: Tensor, gamma: Tensor, beta: Tensor | None, groups: int, eps: float) -> Tensor:
    """The composition in torch, in the dtype of x."""
    if groups == 0:
        return F.silu(F.normalize(x, dim=-1, eps=eps) * x.shape[-1] ** 0.5 * gamma)
    y = F.group_norm(x.flatten(0, 1).permute(0, 3, 1, 2).contiguous(), groups, gamma, beta, eps)
    return F.silu(y).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("device", DEVICES)
@GROUPS
def test_equals_reference_and_torch_in_every_phase_of_the_ring(groups, device):
    x, gamma, beta, *rest = inputs(groups)
    expected = plain_torch(x, gamma, beta, *rest)
    for first in range(5):
        out, oracle = (torch.full((2, 5, *SHAPE[2:]), torch.nan, device=device) for _ in range(2))
        start = number(first).to(device)
        given = [tensor if tensor is None else tensor.to(device) for tensor in (x, gamma, beta)]
        norm_silu(*given, *rest, out, start)
        reference.norm_silu(*given, *rest, oracle, start)
        assert_near(out, oracle, 1e-5)  # the pattern of NaN included: no other slot was touched
        assert_near(out[:, [(first + t) % 5 for t in range(3)]].cpu(), expected, 1e-5)


@GROUPS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_twice_torch(dtype, groups):
    arguments = inputs(groups, dtype)
    out = torch.empty(SHAPE, dtype=dtype)
    norm_silu(*arguments, out, None)
    oracle = plain_torch(*(x.double() if isinstance(x, Tensor) else x for x in arguments))
    assert_within_twice_torch(out, oracle, plain_torch(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_may_be_float32(dtype):
    x, gamma, beta, groups, eps = inputs(8, dtype)
    outs = [torch.empty(SHAPE, dtype=dtype) for _ in range(2)]
    norm_silu(x, gamma, beta, groups, eps, outs[0], None)
    norm_silu(x, gamma.float(), beta.float(), groups, eps, outs[1], None)
    assert torch.equal(*outs)


def test_a_pixel_of_zeros_stays_zero():
    x = torch.zeros(SHAPE)
    out = torch.full(SHAPE, torch.nan)
    norm_silu(x, torch.ones(SHAPE[-1]), None, 0, 1e-12, out, None)
    assert not out.any()


def test_frames_do_not_see_each_other():
    x, gamma, beta, groups, eps = inputs(8)
    together, alone = torch.empty(SHAPE), torch.empty(2, 1, *SHAPE[2:])
    norm_silu(x, gamma, beta, groups, eps, together, None)
    norm_silu(x[:, 1:2].contiguous(), gamma, beta, groups, eps, alone, None)
    assert torch.equal(together[:, 1:2], alone)


@GROUPS
def test_opcheck(groups):
    torch.library.opcheck(torch.ops.aapt.norm_silu.default, (*inputs(groups), torch.zeros(2, 4, *SHAPE[2:]), number(2)))


def test_compile_keeps_the_mutation():
    x, *rest = inputs(8)

    def doubled(out: Tensor) -> Tensor:
        norm_silu(2 * x, *rest, out, None)
        return out + 1

    outs = [torch.zeros(SHAPE) for _ in range(2)]
    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert_near(compiled(outs[0]), doubled(outs[1]), 1e-6)
    assert_near(*outs, 1e-6)


def test_gradients_are_refused():
    x, gamma, *rest = inputs(0)
    with pytest.raises(RuntimeError, match="norm_silu has no backward"):
        norm_silu(x, gamma.requires_grad_(), *rest, torch.empty(SHAPE), None)


BAD_INPUTS = {
    "x dimensions": ({"x": torch.ones(3, 5, 4, 24)}, r"x: expected shape \[B, T, H, W, C\], got \[3, 5, 4, 24\]"),
    "x dtype": ({"x": torch.ones(SHAPE).int()}, "x: expected torch.float32 or .*, got torch.int32"),
    "x strides": ({"x": every_second(torch.ones(SHAPE))}, "x: expected a contiguous tensor, got strides"),
    "gamma": ({"gamma": torch.ones(23)}, r"gamma: expected shape \[24\], got \[23\]"),
    "gamma dtype": ({"gamma": torch.ones(24).int()}, "gamma: expected a floating point dtype, got torch.int32"),
    "groups": ({"groups": 7}, "groups: expected 0 or a divisor of 24 channels, got 7"),
    "beta without groups": ({"groups": 0}, "beta: expected None, as there are no groups, got a tensor"),
    "beta": ({"beta": torch.ones(1, 24)}, r"beta: expected shape \[24\], got \[1, 24\]"),
    "out size": ({"out": torch.ones(2, 3, 5, 5, 24)}, r"out: expected shape \[2, S', 5, 4, 24\], got"),
    "out slots": ({"out": torch.ones(2, 2, 5, 4, 24)}, "out: expected at least 3 slots, got 2"),
    "out dtype": ({"out": torch.ones(SHAPE).half()}, r"out: expected torch\.float32, got torch\.float16"),
    "out_start": ({"out_start": torch.tensor([0])}, r"out_start: expected torch\.int32, got torch\.int64"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    names = ("x", "gamma", "beta", "groups", "eps")
    good = dict(zip(names, inputs(8), strict=True)) | {"out": torch.empty(SHAPE), "out_start": None}
    norm_silu(**good)
    with pytest.raises(ValueError, match=message):
        norm_silu(**{**good, **change})
