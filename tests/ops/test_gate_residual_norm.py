# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import gate_residual_norm, reference
from aapt_fast.testing.cases import DEVICES, LENGTHS, every_second, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

BATCH, TOKENS, WIDTH = 2, 5, 12
MODULATIONS = {"shared": (WIDTH,), "per row": (BATCH, 1, WIDTH), "per token": (BATCH, TOKENS, WIDTH)}
NAMES = ("y", "gate", "scale", "shift")
PRESENT = {
    "all": NAMES,
    "no gate": ("y", "scale", "shift"),
    "no y": ("scale", "shift"),
    "scale only": ("scale",),
    "shift only": ("y", "shift"),
    "norm only": (),
}


def inputs(present: tuple[str, ...] = NAMES, modulation: str = "per row", **kwargs) -> list[torch.Tensor | None]:
    """x, y, gate, scale, shift."""
    shapes = {"y": (BATCH, TOKENS, WIDTH), **dict.fromkeys(NAMES[1:], MODULATIONS[modulation])}
    optional = [torch.randn(shapes[name], **kwargs) if name in present else None for name in NAMES]
    return [torch.randn(BATCH, TOKENS, WIDTH, **kwargs), *optional]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT)
def test_equals_reference(present, modulation, device):
    arguments = [x if x is None else x.to(device) for x in inputs(present, modulation)]
    results = gate_residual_norm(*arguments)
    for actual, expected in zip(results, reference.gate_residual_norm(*arguments, 1e-6), strict=True):
        assert_near(actual, expected, 1e-6)
    assert (results[0] is arguments[0]) == (arguments[1] is None)  # where nothing was added, nothing was copied


@pytest.mark.parametrize("tokens", LENGTHS)
def test_token_counts(tokens):
    x, y = torch.randn(2, 1, tokens, 33)
    residual, normed = gate_residual_norm(x, y, None, None, None)
    assert torch.equal(residual, x + y)
    assert_near(normed.square().mean(-1), torch.ones(1, tokens), 1e-4)


@pytest.mark.parametrize("view", [strided, every_second])
def test_strided_inputs(view):
    arguments = inputs()
    results = gate_residual_norm(*(view(x) for x in arguments))
    for actual, expected in zip(results, gate_residual_norm(*arguments), strict=True):
        assert_near(actual, expected, 1e-6)
        assert actual.is_contiguous()


def test_modulation_may_be_a_slice_of_one_projection():
    x, y, *_ = inputs()
    gate, scale, shift = torch.randn(BATCH, 3, 1, WIDTH).unbind(1)
    results = gate_residual_norm(x, y, gate, scale, shift)
    for actual, expected in zip(results, reference.gate_residual_norm(x, y, gate, scale, shift, 1e-6), strict=True):
        assert_near(actual, expected, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_twice_torch(dtype):
    x, y, gate, scale, shift = (tensor.to(dtype) for tensor in inputs())
    oracle = reference.gate_residual_norm(*(tensor.float() for tensor in (x, y, gate, scale, shift)), 1e-6)
    plain_residual = x + gate * y
    plain = torch.nn.functional.rms_norm(plain_residual, (WIDTH,), None, 1e-6) * (1 + scale) + shift
    residual, normed = gate_residual_norm(x, y, gate, scale, shift)
    assert residual.dtype == normed.dtype == dtype
    assert_within_twice_torch(residual, oracle[0], plain_residual)
    assert_within_twice_torch(normed, oracle[1], plain)


def test_modulation_may_be_wider_than_the_stream():
    x, y, gate, scale, shift = inputs()
    residual, normed = gate_residual_norm(x.bfloat16(), y.bfloat16(), gate, scale, shift)
    oracle = reference.gate_residual_norm(x.bfloat16(), y.bfloat16(), gate, scale, shift, 1e-6)
    assert torch.equal(residual, oracle[0]) and residual.dtype == torch.bfloat16
    assert_near(normed, oracle[1], 1e-2)


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT)
def test_gradients(present, modulation):
    arguments = inputs(present, modulation, dtype=torch.float64, requires_grad=True)
    given = [x for x in arguments if x is not None]
    # One number that weighs both outputs, each element differently.
    share = torch.randn(2, BATCH, TOKENS, WIDTH, dtype=torch.float64)

    def loss(op, *more) -> torch.Tensor:
        return (torch.stack(op(*arguments, *more)) * share).sum()

    actual = torch.autograd.grad(loss(gate_residual_norm), given)
    expected = torch.autograd.grad(loss(reference.gate_residual_norm, 1e-6), given)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert_near(gradient, wanted, 1e-10)


def test_gradcheck():
    arguments = inputs(dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gate_residual_norm, arguments, fast_mode=True)


@pytest.mark.parametrize("output", [0, 1], ids=["residual", "normed"])
def test_one_output_may_be_unused(output):
    arguments = inputs(dtype=torch.float64, requires_grad=True)
    inputs_used = arguments[:3] if output == 0 else arguments
    actual = torch.autograd.grad(gate_residual_norm(*arguments)[output].square().sum(), inputs_used)
    expected = torch.autograd.grad(reference.gate_residual_norm(*arguments, 1e-6)[output].square().sum(), inputs_used)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert_near(gradient, wanted, 1e-10)


def test_autocast_runs_in_float32():
    x, y, gate, scale, shift = inputs(requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        residual, normed = gate_residual_norm(x, y.bfloat16(), gate, scale, shift)
    assert residual.dtype == normed.dtype == torch.float32
    expected = reference.gate_residual_norm(x, y.bfloat16().float(), gate, scale, shift, 1e-6)
    assert_near(normed, expected[1], 1e-6)
    normed.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (x, y, gate, scale, shift))


def test_opcheck():
    torch.library.opcheck(torch.ops.aapt.gate_residual_norm.default, (*inputs(requires_grad=True), 1e-6))
    x, scale = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True), torch.randn(WIDTH, requires_grad=True)
    for arguments in ((x, None, None, scale, None, 1e-6), (strided(x.detach()), None, None, None, scale, 1e-6)):
        torch.library.opcheck(torch.ops.aapt.gate_residual_norm.default, arguments)


def test_compiles_with_inductor_forward_and_backward():
    arguments = inputs(requires_grad=True)

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        residual, normed = gate_residual_norm(*arguments)
        return (residual * normed).sum()

    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*arguments), arguments)
    for gradient, expected in zip(actual, torch.autograd.grad(loss(*arguments), arguments), strict=True):
        assert_near(gradient, expected, 1e-5)


def test_compiled_for_a_cpu_it_is_fused():
    """No call of the op is left for the compiler to go around, and the results are the op's, under autocast too."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x, *others = inputs()
    arguments = [x.bfloat16(), *others]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.compile(gate_residual_norm, backend=keep, fullgraph=True)(*arguments)
        expected = gate_residual_norm(*arguments)
    assert len(graphs) == 1 and "aapt" not in graphs[0].code
    for made, wanted in zip(actual, expected, strict=True):
        assert made.dtype == wanted.dtype == torch.float32
        assert_near(made, wanted, 1e-6)


X = torch.randn(BATCH, TOKENS, WIDTH)
BAD_INPUTS = {
    "x dimensions": ({"x": X[0]}, r"x: expected shape \[B, N, d\], got \[5, 12\]"),
    "x dtype": ({"x": X.int()}, r"x: expected a floating point dtype, got torch\.int32"),
    "y shape": ({"y": X[:1]}, r"y: expected shape \[2, 5, 12\], got \[1, 5, 12\]"),
    "y dtype": ({"y": X.bfloat16()}, r"y: expected torch\.float32, got torch\.bfloat16"),
    "y device": ({"y": X.to("meta")}, "y: expected a tensor on cpu, got one on meta"),
    "gate without y": ({"y": None}, "gate: expected None, as y is None, got a tensor"),
    "gate shape": (
        {"gate": torch.ones(1, 1, 12)},
        r"gate: expected shape \[12\], \[2, 1, 12\] or \[2, 5, 12\], got \[1, 1, 12\]",
    ),
    "scale shape": ({"scale": torch.ones(11)}, r"scale: expected shape \[12\], .*, got \[11\]"),
    "scale dtype": ({"scale": torch.ones(12).int()}, r"scale: expected a floating point dtype, got torch\.int32"),
    "shift device": ({"shift": torch.ones(12, device="meta")}, "shift: expected a tensor on cpu, got one on meta"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    good = dict(zip(("x", *NAMES), inputs(), strict=True))
    with pytest.raises(ValueError, match=message):
        gate_residual_norm(**{**good, **change})
