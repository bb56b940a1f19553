# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.ops import adds_in_its_epilogue, linear_residual, reference
from aapt_fast.testing import streams
from aapt_fast.testing.cases import DEVICES, LENGTHS, every_second, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch, relative_l2

BATCH, TOKENS, WIDTH, DEPTH = 2, 5, 12, 20
NAMES = ("bias", "gate")
PRESENT = {"all": NAMES, "no gate": ("bias",), "no bias": ("gate",), "product and sum": ()}
GATES = {"shared": (WIDTH,), "per row": (BATCH, 1, WIDTH)}


def make_inputs(
    present: tuple[str, ...] = NAMES, gate: str = "per row", tokens: int = TOKENS, **kwargs
) -> list[torch.Tensor | None]:
    """x, inputs, weight, bias, gate."""
    shapes = ((BATCH, tokens, WIDTH), (BATCH, tokens, DEPTH), (WIDTH, DEPTH))
    optional = {"bias": (WIDTH,), "gate": GATES[gate]}
    return [torch.randn(shape, **kwargs) for shape in shapes] + [
        torch.randn(optional[name], **kwargs) if name in present else None for name in NAMES
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT)
def test_equals_reference(present, gate, device):
    arguments = [x if x is None else x.to(device) for x in make_inputs(present, gate)]
    out = linear_residual(*arguments)
    assert_near(out, reference.linear_residual(*arguments), 1e-6)
    assert out.is_contiguous() and out.data_ptr() != arguments[0].data_ptr()


@pytest.mark.parametrize("tokens", LENGTHS)
def test_token_counts(tokens):
    arguments = make_inputs(tokens=tokens)
    assert_near(linear_residual(*arguments), reference.linear_residual(*arguments), 1e-6)


@pytest.mark.parametrize("view", [strided, every_second])
def test_strided_inputs(view):
    arguments = make_inputs()
    assert_near(linear_residual(*(view(x) for x in arguments)), linear_residual(*arguments), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_twice_torch(dtype):
    x, inputs, weight, bias, gate = (tensor.to(dtype) for tensor in make_inputs())
    oracle = reference.linear_residual(*(tensor.double() for tensor in (x, inputs, weight, bias, gate)))
    plain = x + gate * torch.nn.functional.linear(inputs, weight, bias)
    out = linear_residual(x, inputs, weight, bias, gate)
    assert out.dtype == dtype
    assert_within_twice_torch(out, oracle, plain)


def test_opcheck():
    for present in PRESENT.values():
        torch.library.opcheck(torch.ops.aapt.linear_residual.default, tuple(make_inputs(present)))


X, INPUTS, WEIGHT, BIAS, GATE = make_inputs()
BAD = {
    "x without a batch": ({"x": X[0]}, r"x: expected shape \[B, N, d\], got \[5, 12\]"),
    "x of whole numbers": ({"x": X.int()}, r"x: expected a floating point dtype, got torch\.int32"),
    "inputs with other tokens": ({"inputs": INPUTS[:, 1:]}, r"inputs: expected shape \[2, 5, k\], got \[2, 4, 20\]"),
    "inputs dtype": ({"inputs": INPUTS.half()}, r"inputs: expected torch\.float32, got torch\.float16"),
    "weight of another layer": ({"weight": WEIGHT.T}, r"weight: expected shape \[12, 20\], got \[20, 12\]"),
    "weight dtype": ({"weight": WEIGHT.double()}, r"weight: expected torch\.float32, got torch\.float64"),
    "bias shape": ({"bias": BIAS[1:]}, r"bias: expected shape \[12\], got \[11\]"),
    "gate per token": ({"gate": torch.ones_like(X)}, r"gate: expected shape \[2, 1, 12\], got \[2, 5, 12\]"),
    "gate with two dimensions": ({"gate": X[0]}, r"gate: expected shape \[12\] or \[2, 1, 12\], got \[5, 12\]"),
    "gate device": ({"gate": GATE.to("meta")}, r"gate: expected .*cpu.*, got .*meta"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(change, message):
    good = {"x": X, "inputs": INPUTS, "weight": WEIGHT, "bias": BIAS, "gate": GATE}
    with pytest.raises(ValueError, match=message):
        linear_residual(**good | change)


def test_no_gradients():
    arguments = make_inputs()
    arguments[2].requires_grad_()
    with pytest.raises(RuntimeError, match="linear_residual has no backward"):
        linear_residual(*arguments)
    with torch.no_grad():
        linear_residual(*arguments)


def test_nothing_adds_in_an_epilogue_here():
    """The kernel needs a GPU; wide numbers and gradients do without it everywhere."""
    x = X.bfloat16()
    assert not any(adds_in_its_epilogue(each, each[0]) for each in (X, x, X.double()))


def test_a_generator_whose_layers_add_makes_the_same_frames(monkeypatch):
    """As a GPU with the kernel runs it, with the op's composition in the kernel's place."""
    model = streams.random_model(replace(NANO, layers=2))
    controls = streams.random_controls(model, 3)

    def frames() -> torch.Tensor:
        with streams.random_session(model) as session:
            return streams.play(session, controls)[0]

    expected, calls = frames(), []

    def spy(*arguments: torch.Tensor | None) -> torch.Tensor:
        calls.append(arguments[4])
        return linear_residual(*arguments)

    monkeypatch.setattr("aapt_fast.models.aapt.generator.adds_in_its_epilogue", lambda x, weight: True)
    monkeypatch.setattr("aapt_fast.models.aapt.generator.linear_residual", spy)
    assert relative_l2(frames(), expected) < 1e-5
    assert len(calls) == 3 * 2 * 2 and all(gate is not None for gate in calls)


def test_hidden_states_are_those_of_layers_that_do_not_add(monkeypatch):
    torch.manual_seed(0)
    model = Generator(replace(NANO, layers=2)).requires_grad_(False)
    channels, control = model.config.latent_channels, model.config.control.step_channels
    frame, points = torch.randn(1, channels, 1, *model.config.grid), torch.randn(1, control, 1, *model.config.grid)
    arguments = (frame, frame, points, torch.ones(1))
    expected = model.hidden_states(*arguments, model.new_cache(), (1, 2))
    monkeypatch.setattr("aapt_fast.models.aapt.generator.adds_in_its_epilogue", lambda x, weight: True)
    for actual, wanted in zip(model.hidden_states(*arguments, model.new_cache(), (1, 2)), expected, strict=True):
        assert_near(actual, wanted, 1e-5)
