# SPDX-License-Identifier: Apache-2.0
"""`causal_conv3d` against `F.conv3d` on explicitly padded input, on every way the CPU may take."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from aapt_fast.ops.causal_conv3d import causal_conv3d, causal_conv3d_reference, tap_major
from aapt_fast.testing.cases import DEVICES, every_second, strided
from aapt_fast.testing.compare import assert_near

# The three ways to sum over time taps on the CPU, and a shape [B, C, T, H, W] and O that takes each with 3x3x3 taps.
WAYS = {
    "taps_in_inputs": ((2, 5, 3, 6, 7), 7),
    "taps_in_outputs": ((2, 5, 3, 6, 7), 3),
    "pairs_of_frames": ((2, 17, 4, 16, 17), 18),
}


def arguments(
    shape: tuple[int, ...], outputs: int, kernel: tuple[int, int, int] = (3, 3, 3), **options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, history with unit-size outputs."""
    batch, channels, _, height, width = shape
    kt, kh, kw = kernel
    scale = (channels * kt * kh * kw) ** -0.5
    return (
        torch.randn(shape, **options),
        torch.randn(outputs, channels, *kernel, **options) * scale,
        torch.randn(outputs, **options),
        torch.randn(batch, channels, kt - 1, height, width, **options),
    )


def spelled_out(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor | None) -> Tensor:
    """The definition, tap by tap, in float64."""
    kt, kh, kw = weight.shape[2:]
    past = x.new_zeros(*x.shape[:2], kt - 1, *x.shape[3:]) if history is None else history
    frames = torch.cat([past, x], dim=2).double()
    padded = F.pad(frames, (kw // 2, kw // 2, kh // 2, kh // 2))
    windows = padded.unfold(2, kt, 1).unfold(3, kh, 1).unfold(4, kw, 1)
    y = torch.einsum("bcthwijk,ocijk->bothw", windows, weight.double())
    return y if bias is None else y + bias.double().view(-1, 1, 1, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (2, 1, 1), (2, 3, 3), (3, 1, 1), (3, 3, 3), (4, 3, 1)])
def test_equals_the_definition(kernel, with_history, length, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x, weight, bias, history = (t.to(device) for t in arguments((2, 5, length, 4, 3), 7, kernel))
    history = history if with_history else None
    expected = spelled_out(x, weight, bias, history)
    assert_near(causal_conv3d(x, weight, bias, history), expected, 2e-6)
    assert_near(causal_conv3d(x, weight, None, history), spelled_out(x, weight, None, history), 2e-6)
    assert_near(causal_conv3d_reference(x, weight, bias, history), expected, 2e-6)


@pytest.mark.parametrize("way", WAYS)
def test_each_shape_takes_the_way_it_stands_for(way, monkeypatch):
    module = importlib.import_module("aapt_fast.ops.causal_conv3d")
    taken = []
    for name in WAYS:
        function = getattr(module, f"_{name}")
        monkeypatch.setattr(module, f"_{name}", lambda *a, f=function, n=name: taken.append(n) or f(*a))
    causal_conv3d(*arguments(*WAYS[way]))
    assert taken == [way]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("with_history", [False, True])
def test_every_way_equals_the_definition(way, with_history):
    x, weight, bias, history = arguments(*WAYS[way])
    history = history if with_history else None
    assert_near(causal_conv3d(x, weight, bias, history), spelled_out(x, weight, bias, history), 2e-6, way)
    assert_near(causal_conv3d(x, weight, None, history), spelled_out(x, weight, None, history), 2e-6, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (1, 3), (2, 2), (3, 1)])
def test_chunks_give_what_the_whole_clip_gives(way, chunks):
    (_, channels, _, height, width), outputs = WAYS[way]
    x, weight, bias, _ = arguments((1, channels, 4, height, width), outputs)
    seen = x.new_zeros(1, channels, 2, height, width)
    pieces = []
    for piece in x.split(chunks, dim=2):
        pieces.append(causal_conv3d(piece, weight, bias, seen if pieces else None))
        seen = torch.cat([seen, piece], dim=2)[:, :, -2:]
    assert_near(torch.cat(pieces, dim=2), causal_conv3d(x, weight, bias), 2e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_future_leaves_the_past_alone(way):
    x, weight, bias, history = arguments(*WAYS[way])
    changed = x.clone()
    changed[:, :, -1] = torch.inf
    before = causal_conv3d(x, weight, bias, history)[:, :, :-1]
    after = causal_conv3d(changed, weight, bias, history)[:, :, :-1]
    assert torch.equal(before, after)


@pytest.mark.parametrize("way", WAYS)
def test_strides_and_layouts_do_not_matter(way):
    x, weight, bias, history = arguments(*WAYS[way])
    expected = causal_conv3d(x, weight, bias, history)
    assert expected.is_contiguous(memory_format=torch.channels_last_3d)
    for restride in (strided, every_second, lambda t: t.contiguous(memory_format=torch.channels_last_3d)):
        assert_near(causal_conv3d(restride(x), weight, bias, restride(history)), expected, 1e-6)
        assert_near(causal_conv3d(x, restride(weight), bias, history), expected, 1e-6)
    assert_near(causal_conv3d(x, tap_major(weight), every_second(bias), history), expected, 1e-6)


def test_tap_major_changes_the_layout_only():
    weight = torch.randn(4, 3, 2, 5, 1)
    laid_out = tap_major(weight)
    assert torch.equal(laid_out, weight)
    assert laid_out.permute(0, 3, 4, 2, 1).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    x, weight, bias, history = (t.to(dtype) for t in arguments((1, 17, 4, 16, 16), 16))
    y = causal_conv3d(x, weight, bias, history)
    assert y.dtype == dtype
    assert_near(y, spelled_out(x, weight, bias, history), 2 * torch.finfo(dtype).eps)


# ---- gradients ----


@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("kernel", [(1, 3, 1), (2, 1, 1), (3, 3, 3)])
def test_gradcheck(kernel, with_history):
    *rest, history = arguments((2, 2, 2, 3, 2), 3, kernel, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (*rest, *([history] if with_history and kernel[0] > 1 else []))]
    assert torch.autograd.gradcheck(causal_conv3d, inputs)


def test_gradgradcheck():
    inputs = [t.requires_grad_() for t in arguments((1, 2, 2, 2, 1), 2, (2, 3, 1), dtype=torch.float64)]
    assert torch.autograd.gradgradcheck(causal_conv3d, inputs)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_equal_those_of_the_reference(way):
    inputs = [t.requires_grad_() for t in arguments(*WAYS[way])]
    results = [function(*inputs) for function in (causal_conv3d, causal_conv3d_reference)]
    grad_y = torch.randn_like(results[0])
    ours, expected = (torch.autograd.grad(y, inputs, grad_y) for y in results)
    for name, a, b in zip(("x", "weight", "bias", "history"), ours, expected, strict=True):
        assert_near(a, b, 1e-5, name)


def test_only_the_wanted_gradients_are_computed():
    x, weight, bias, history = arguments((1, 5, 2, 3, 3), 4)
    causal_conv3d(x, weight, bias.requires_grad_(), history).sum().backward()
    assert_near(bias.grad, torch.full((4,), 18.0), 1e-6)
    history.requires_grad_()
    causal_conv3d(x, weight, None, history).sum().backward()
    assert history.grad is not None and x.grad is None and weight.grad is None


# ---- torch.library ----


@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_opcheck(way, with_history):
    x, weight, bias, history = arguments(*WAYS[way])
    inputs = (x.requires_grad_(), weight.requires_grad_(), bias, history if with_history else None)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(torch.ops.aapt.causal_conv3d.default, inputs, test_utils=tests)


def test_opcheck_under_aot_autograd():
    x, weight, bias, history = arguments((1, 2, 2, 3, 2), 2)
    inputs = (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), history)
    opcheck(torch.ops.aapt.causal_conv3d.default, inputs, test_utils="test_aot_dispatch_dynamic")


def test_compiles_without_graph_breaks():
    x, weight, bias, history = arguments((1, 5, 2, 4, 4), 6)
    weight.requires_grad_()

    def layer(x: Tensor, history: Tensor | None) -> Tensor:
        return F.silu(causal_conv3d(x, weight, bias, history))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_near(compiled(x, history), layer(x, history), 1e-6)
    (grad,) = torch.autograd.grad(compiled(x, None).sum(), weight)
    (expected,) = torch.autograd.grad(layer(x, None).sum(), weight)
    assert_near(grad, expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_follows_the_dtype_in_force(dtype):
    x, weight, bias, history = arguments((1, 5, 2, 4, 4), 6)
    with torch.autocast("cpu", dtype=dtype):
        y = causal_conv3d(x, weight.requires_grad_(), bias, history.to(dtype))
        double = causal_conv3d(x.double(), weight.double(), None, None)
    assert y.dtype == dtype and double.dtype == torch.float64
    assert_near(y, spelled_out(x, weight, bias, history), 4 * torch.finfo(dtype).eps)
    y.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


# ---- errors ----

GOOD = arguments((2, 4, 3, 5, 5), 6)
BAD = {
    "x has four dimensions": (dict(x=torch.zeros(2, 4, 5, 5)), "x: expected shape"),
    "x is of integers": (dict(x=torch.zeros(2, 4, 3, 5, 5, dtype=torch.int64)), "x: expected a floating-point dtype"),
    "x has no frames": (dict(x=torch.zeros(2, 4, 0, 5, 5)), "x: expected at least one element"),
    "weight has other channels": (
        dict(weight=torch.zeros(6, 3, 3, 3, 3)),
        "weight: expected shape [O, 4, kt",
    ),
    "weight has no taps": (dict(weight=torch.zeros(6, 4, 0, 3, 3)), "weight: expected at least one element"),
    "weight is even": (
        dict(weight=torch.zeros(6, 4, 3, 2, 3)),
        "weight: expected odd kernel height and width",
    ),
    "weight in another dtype": (dict(weight=GOOD[1].double()), "weight: expected torch.float32, got torch.float64"),
    "bias is too short": (dict(bias=torch.zeros(5)), "bias: expected shape [6], got [5]"),
    "bias in another dtype": (dict(bias=GOOD[2].half()), "bias: expected torch.float32, got torch.float16"),
    "history is too long": (dict(history=torch.zeros(2, 4, 3, 5, 5)), "history: expected shape [2, 4, 2, 5, 5]"),
    "history of another batch": (dict(history=torch.zeros(1, 4, 2, 5, 5)), "history: expected shape [2, 4, 2, 5, 5]"),
    "history in another dtype": (dict(history=GOOD[3].bfloat16()), "history: expected torch.float32"),
    "history elsewhere": (dict(history=GOOD[3].to("meta")), "history: expected a tensor on cpu, got one on meta"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    changes, message = BAD[case]
    good = dict(zip(("x", "weight", "bias", "history"), GOOD, strict=True))
    causal_conv3d(**good)
    with pytest.raises(ValueError) as error:
        causal_conv3d(**{**good, **changes})
    assert str(error.value).startswith(message)
