# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import channel_concat, reference
from aapt_fast.testing.cases import DEVICES, every_second, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

WIDTH, CHANNELS, CONTROL, PATCH = 10, 4, 3, 2
GRID = (6, 4)


def inputs(control: bool = True, bias: bool = True, patch: int = PATCH, **kwargs) -> tuple:
    """noised, recycled, control, weight, bias, patch."""
    channels = 2 * CHANNELS + (CONTROL if control else 0)
    return (
        torch.randn(2, CHANNELS, *GRID, **kwargs),
        torch.randn(2, CHANNELS, *GRID, **kwargs),
        torch.randn(2, CONTROL, *GRID, **kwargs) if control else None,
        torch.randn(WIDTH, channels * patch**2, **kwargs),
        torch.randn(WIDTH, **kwargs) if bias else None,
        patch,
    )


def convolution(noised, recycled, control, weight, bias, patch: int) -> torch.Tensor:
    """The same by definition of a patch embedding: a convolution with stride `patch` over the concatenation."""
    joined = torch.cat([x for x in (noised, recycled, control) if x is not None], 1)
    kernel = weight.view(WIDTH, joined.shape[1], patch, patch)
    return torch.nn.functional.conv2d(joined, kernel, bias, stride=patch).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("control", [True, False], ids=["control", "no control"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("patch", [1, 2])
def test_equals_convolution_and_reference(patch, bias, control, device):
    arguments = tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(control, bias, patch))
    tokens = channel_concat(*arguments)
    assert tokens.shape == (2, 24 // patch**2, WIDTH) and tokens.is_contiguous()
    assert_near(tokens, convolution(*arguments), 1e-5)
    assert_near(tokens, reference.channel_concat(*arguments), 1e-5)


@pytest.mark.parametrize("view", [strided, every_second])
def test_strided_inputs(view):
    *tensors, patch = inputs()
    assert_near(channel_concat(*(view(x) for x in tensors), patch), channel_concat(*tensors, patch), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_twice_torch(dtype):
    arguments = tuple(x.to(dtype) if isinstance(x, torch.Tensor) else x for x in inputs())
    oracle = reference.channel_concat(*(x.float() if isinstance(x, torch.Tensor) else x for x in arguments))
    tokens = channel_concat(*arguments)
    assert tokens.dtype == dtype
    assert_within_twice_torch(tokens, oracle, convolution(*arguments))


@pytest.mark.parametrize("control", [True, False], ids=["control", "no control"])
def test_gradients(control):
    *tensors, patch = inputs(control, dtype=torch.float64, requires_grad=True)
    given = [x for x in tensors if x is not None]
    assert torch.autograd.gradcheck(lambda *_: channel_concat(*tensors, patch), given)
    actual = torch.autograd.grad(channel_concat(*tensors, patch).square().sum(), given)
    expected = torch.autograd.grad(reference.channel_concat(*tensors, patch).square().sum(), given)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert_near(gradient, wanted, 1e-10)


def test_gradients_only_where_needed():
    noised, recycled, control, weight, bias, patch = inputs()
    recycled.requires_grad_()
    bias.requires_grad_()
    channel_concat(noised, recycled, control, weight, bias, patch).sum().backward()
    assert recycled.grad is not None and bias.grad is not None and weight.grad is None
    assert_near(bias.grad, torch.full((WIDTH,), 12.0), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_mixed_inputs(dtype):
    noised, recycled, control, weight, bias, patch = inputs()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype):
        tokens = channel_concat(noised.to(dtype), recycled, control, weight, bias, patch)
    assert tokens.dtype == dtype
    tokens.float().sum().backward()
    assert weight.grad.dtype == torch.float32
    assert_near(tokens, channel_concat(noised, recycled, control, weight, bias, patch), 0.02)


def test_opcheck():
    torch.library.opcheck(torch.ops.aapt.channel_concat.default, inputs(requires_grad=True))
    noised, recycled, control, weight, bias, patch = inputs(bias=False)
    arguments = (noised, recycled, strided(control), weight, bias, patch)
    torch.library.opcheck(torch.ops.aapt.channel_concat.default, arguments)


def test_compile():
    arguments = inputs()
    arguments[3].requires_grad_()
    compiled = torch.compile(channel_concat, fullgraph=True, backend="aot_eager")
    tokens, expected = compiled(*arguments), channel_concat(*arguments)
    assert_near(tokens, expected, 1e-6)
    gradients = (torch.autograd.grad(x.square().sum(), arguments[3])[0] for x in (tokens, expected))
    assert_near(*gradients, 1e-5)


BAD_INPUTS = {
    "noised": ({"noised": torch.randn(2, 4, 6, 2)}, r"noised: expected shape \[2, 4, 6, 4\], got \[2, 4, 6, 2\]"),
    "noised dimensions": (
        {"noised": torch.randn(4, 6, 4)},
        r"noised: expected shape \[2, 4, 6, 4\], got \[4, 6, 4\]",
    ),
    "noised dtype": (
        {"noised": torch.randn(2, 4, 6, 4).half()},
        r"noised: expected torch\.float32, got torch\.float16",
    ),
    "recycled dtype": (
        {"recycled": torch.ones(2, 4, 6, 4).int()},
        "recycled: expected a floating point dtype, got tor",
    ),
    "control": ({"control": torch.randn(1, 3, 6, 4)}, r"control: expected shape \[2, Cc, 6, 4\], got \[1, 3, 6, 4\]"),
    "control device": ({"control": torch.randn(2, 3, 6, 4, device="meta")}, "control: expected a tensor on cpu, got"),
    "weight columns": ({"weight": torch.randn(10, 43)}, r"weight: expected shape \[d, 44\], got \[10, 43\]"),
    "missing control": ({"control": None}, r"weight: expected shape \[d, 32\], got \[10, 44\]"),
    "bias": ({"bias": torch.randn(9)}, r"bias: expected shape \[10\], got \[9\]"),
    "patch": ({"patch": 3}, "patch: expected a divisor of 6 and 4, got 3"),
    "patch zero": ({"patch": 0}, "patch: expected a divisor of 6 and 4, got 0"),
}
NAMES = ("noised", "recycled", "control", "weight", "bias", "patch")


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    with pytest.raises(ValueError, match=message):
        channel_concat(**{**dict(zip(NAMES, inputs(), strict=True)), **change})
