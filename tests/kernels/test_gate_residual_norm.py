# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings

import pytest
import torch

from aapt_fast.ops import gate_residual_norm, reference
from aapt_fast.ops.kernels import use_kernels, view
from aapt_fast.testing.cases import LENGTHS, every_second, padded_rows, strided
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
KERNEL = "gate_residual_norm/portable"
EPS = 1e-6
NAMES = ("y", "gate", "scale", "shift")
PRESENT = {
    "all": NAMES,
    "no gate": ("y", "scale", "shift"),
    "no scale": ("y", "gate", "shift"),
    "no shift": ("y", "gate", "scale"),
    "sum only": ("y",),
    "no y": ("scale", "shift"),
    "norm only": (),
}
# A warp with 1, 2 and 4 vectors of 8 elements per thread, then a block with as many, full or with idle threads.
WIDTHS = (8, 256, 264, 512, 1016, 1024, 1032, 1536, 2560, 5120, 5128, 8192)
Inputs = list[torch.Tensor | None]


def shape_of(kind: str, batch: int, tokens: int, width: int) -> tuple[int, ...]:
    """Shape of a gate, scale or shift."""
    return {"shared": (width,), "per row": (batch, 1, width), "per token": (batch, tokens, width)}[kind]


def make_inputs(
    target,
    dtype: torch.dtype = torch.bfloat16,
    *,
    batch: int = 2,
    tokens: int = 3,
    width: int = 264,
    present: tuple[str, ...] = NAMES,
    kinds: tuple[str, str, str] = ("per row", "per row", "per row"),
    modulation_dtype: torch.dtype | None = None,
) -> Inputs:
    """Random x, y, gate, scale, shift."""
    x, y = (torch.randn(batch, tokens, width, device=target.device).to(dtype) for _ in range(2))
    modulation = [torch.randn(shape_of(kind, batch, tokens, width)) for kind in kinds]
    modulation = [m.to(target.device, modulation_dtype or dtype) for m in modulation]
    return [x, *(m if name in present else None for name, m in zip(NAMES, (y, *modulation), strict=True))]


def plain_torch(x, y, gate, scale, shift) -> tuple[torch.Tensor, torch.Tensor]:
    """The composition in torch, every operation rounded to the dtype of x: residual, normed [B, N, d]."""
    gate, scale, shift = (m if m is None else m.to(x.dtype) for m in (gate, scale, shift))
    residual = x if y is None else x + (y if gate is None else gate * y)
    normed = torch.nn.functional.rms_norm(residual, x.shape[-1:], None, EPS)
    normed = normed if scale is None else normed * (1 + scale)
    return residual, normed if shift is None else normed + shift


def assert_right(results: tuple[torch.Tensor, torch.Tensor], inputs: Inputs) -> None:
    oracles = reference.gate_residual_norm(*(x if x is None else x.double() for x in inputs), EPS)
    for actual, oracle, plain in zip(results, oracles, plain_torch(*inputs), strict=True):
        assert actual.dtype == inputs[0].dtype and actual.is_contiguous()
        assert_within_twice_torch(actual, oracle, plain)


def check(inputs: Inputs, target, schedule: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Both results of the kernel are within twice torch's own error of the reference in float64."""
    with target.kernels(KERNEL, schedule=schedule):
        results = gate_residual_norm(*inputs, EPS)
    assert_right(results, inputs)
    return results


# ---- the maths ----


@DTYPES
@pytest.mark.parametrize("width", [264, 1032], ids=["a warp per token", "a block per token"])
@pytest.mark.parametrize("kind", ["shared", "per row", "per token"])
@pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT)
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_reference(present, kind, width, dtype, target):
    check(make_inputs(target, dtype, width=width, present=present, kinds=(kind, kind, kind)), target, schedule=1)


@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.usefixtures("poisoned_memory")
def test_widths(width, dtype, target):
    check(make_inputs(target, dtype, width=width, kinds=("shared", "per row", "per token")), target, schedule=2)


@DTYPES
@pytest.mark.parametrize("width", [64, 1152], ids=["a warp per token", "a block per token"])
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.usefixtures("poisoned_memory")
def test_token_counts(tokens, width, dtype, target):
    check(make_inputs(target, dtype, batch=3, tokens=tokens, width=width), target, schedule=tokens % 4)


@DTYPES
@SCHEDULES
def test_every_schedule(schedule, dtype, target):
    check(make_inputs(target, dtype, width=2568), target, schedule)


@DTYPES
@pytest.mark.parametrize("width", [264, 1032, 5128])
@pytest.mark.parametrize("present", [NAMES, ("y", "gate"), ("shift",)], ids="-".join)
def test_modulation_may_be_wider_than_the_stream(present, width, dtype, target):
    inputs = make_inputs(target, dtype, width=width, present=present, modulation_dtype=torch.float32)
    residual, _ = check(inputs, target)
    exact = reference.gate_residual_norm(*inputs, EPS)[0]
    assert_near(residual, exact, 2 * torch.finfo(dtype).eps)


def test_modulation_of_different_dtypes(target):
    x, y, gate, scale, shift = make_inputs(target)
    check([x, y, gate.float(), scale, shift.float()], target)


@DTYPES
def test_small_numbers_meet_eps_and_large_ones_do_not_overflow(dtype, target):
    inputs = make_inputs(target, dtype, tokens=4, present=())
    x = inputs[0]
    x[:, 0] = 0
    x[:, 1] *= 1e-3
    x[:, 2] = 60000.0  # the square does not fit float16
    residual, normed = check(inputs, target)
    assert torch.equal(residual, x) and (normed[:, 0] == 0).all() and normed.isfinite().all()


@DTYPES
def test_a_token_that_is_nan_stays_alone(dtype, target):
    inputs = make_inputs(target, dtype, batch=1, tokens=6, width=64)
    inputs[0][0, 2, 7] = torch.nan
    with target.kernels(KERNEL):
        residual, normed = gate_residual_norm(*inputs)
    assert residual.isnan().sum() == 1
    assert normed.isnan().all(-1).tolist() == normed.isnan().any(-1).tolist() == [[False, False, True] + 3 * [False]]


@pytest.mark.parametrize("shape", [(2, 0, 64), (0, 3, 64), (2, 3, 0)], ids=str)
def test_nothing_to_do(shape, target):
    with target.kernels(KERNEL):
        results = gate_residual_norm(torch.empty(shape, dtype=torch.bfloat16, device=target.device), *4 * [None])
    assert all(result.shape == shape for result in results)


def test_the_kernel_is_what_runs(target, monkeypatch):
    calls, compiled = [], target.module.gate_residual_norm_portable
    monkeypatch.setattr(target.module, "gate_residual_norm_portable", lambda *a: (calls.append(a), compiled(*a)))
    check(make_inputs(target), target)
    assert len(calls) == 1


# ---- views ----


@DTYPES
@pytest.mark.parametrize("modulation_dtype", [None, torch.float32], ids=["same dtype", "float32"])
@pytest.mark.parametrize("width", [264, 1032])
def test_padded_rows(width, modulation_dtype, dtype, target):
    kinds = ("shared", "per row", "per token")
    inputs = make_inputs(target, dtype, width=width, kinds=kinds, modulation_dtype=modulation_dtype)
    check([padded_rows(x) for x in inputs], target)


def test_modulation_may_be_a_slice_of_one_projection(target):
    x, y, *_ = make_inputs(target, width=64)
    gate, scale, shift = torch.randn(2, 3, 1, 64, device=target.device).bfloat16().unbind(1)
    check([x, y, gate, scale, shift], target)


def test_tokens_may_share_memory(target):
    x, *_ = make_inputs(target, width=64)
    check([x, x[:, :1].expand(x.shape), None, x[:1, :1].expand(x.shape), None], target)


@pytest.mark.parametrize("argument", range(5), ids=["x", *NAMES])
def test_rows_more_than_2_to_the_31_elements_apart(argument, target):
    inputs = make_inputs(target, tokens=2, width=64, kinds=("per token", "per row", "per token"))
    memory = torch.empty(2**31 + 2 * 64, dtype=torch.bfloat16, device=target.device)
    far = memory.as_strided(inputs[argument].shape, (2**31, 64, 1)).copy_(inputs[argument])
    check([far if i == argument else x for i, x in enumerate(inputs)], target)


# ---- what the kernel does not do ----

UNSUPPORTED = {
    "float64": (lambda x: {name: t.double() for name, t in x.items()}, "x: expected bfloat16 or float16 .* another"),
    "a width of 60": (
        lambda x: {name: t[..., :60] for name, t in x.items()},
        "x: expected a width that is a multiple of 8 up to 8192 for this kernel, got 60",
    ),
    "a width of 8200": (
        lambda x: {name: t.repeat(*(t.dim() - 1) * [1], 129)[..., :8200] for name, t in x.items()},
        "x: expected a width that is a multiple of 8 up to 8192 for this kernel, got 8200",
    ),
    "every second element": (lambda x: {"x": every_second(x["x"])}, "x: expected rows of adjacent elements"),
    "y in odd places": (lambda x: {"y": strided(x["y"])}, "y: expected rows .* multiples of 16 bytes"),
    "gate in odd places": (lambda x: {"gate": strided(x["gate"])}, "gate: expected rows .* multiples of 16 bytes"),
    "a scale with gaps": (lambda x: {"scale": every_second(x["scale"])}, "scale: expected rows of adjacent elements"),
    "a float64 scale": (
        lambda x: {"scale": x["scale"].double()},
        "scale: expected float32 or bfloat16 for this kernel, got another dtype",
    ),
    "the other half precision": (
        lambda x: {"shift": x["shift"].half()},
        "shift: expected float32 or bfloat16 for this kernel, got float16",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_arguments_are_refused(change, message, target):
    good = dict(zip(("x", *NAMES), make_inputs(target, width=64), strict=True))
    with target.kernels(KERNEL), pytest.raises(target.module.Unsupported, match=message):
        gate_residual_norm(**{**good, **change(good)})


def test_a_kernel_that_is_not_named_leaves_these_to_the_composition(target):
    inputs = [x.double() for x in make_inputs(target)]
    expected = gate_residual_norm(*inputs)
    with use_kernels("all", extension=target.module):
        with pytest.warns(UserWarning, match="gate_residual_norm/portable does not run: x: expected bfloat16 or"):
            results = gate_residual_norm(*inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(make_inputs(target), target)
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual, wanted)


BAD = {
    "dimensions": (lambda x: {"x": x["x"][0]}, r"x: expected shape \[any, any, any\], got \[3, 64\]"),
    "y shape": (lambda x: {"y": x["y"][:1]}, r"y: expected shape \[2, 3, 64\], got \[1, 3, 64\]"),
    "y dtype": (lambda x: {"y": x["y"].half()}, "y: expected bfloat16, got float16"),
    "gate without y": (lambda x: {"y": None}, "gate: expected None, as y is None, got a tensor"),
    "gate rows": (lambda x: {"gate": x["gate"][:1]}, r"gate: expected shape \[2, any, 64\], got \[1, 1, 64\]"),
    "scale tokens": (lambda x: {"scale": x["y"][:, :2]}, "scale: expected 1 or 3 tokens, got 2"),
    "shift width": (lambda x: {"shift": x["y"][0, 0, :32]}, r"shift: expected shape \[64\], got \[32\]"),
    "residual shape": (lambda x: {"residual": x["y"][:1]}, r"residual: expected shape \[2, 3, 64\]"),
    "normed dtype": (lambda x: {"normed": x["y"].float()}, "normed: expected bfloat16, got float32"),
    "normed strides": (lambda x: {"normed": padded_rows(x["y"])}, "normed: expected a contiguous tensor"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_the_compiled_function_checks_for_itself(change, message, target):
    good = dict(zip(("x", *NAMES), make_inputs(target, width=64), strict=True))
    outs = {name: torch.zeros_like(good["x"]) for name in ("residual", "normed")}
    stream = (0, 0) if target.device.type == "cpu" else (target.device.index, 0)
    with pytest.raises(ValueError, match=message):
        views = (view(tensor) for tensor in {**good, **outs, **change(good)}.values())
        target.module.gate_residual_norm_portable(*views, EPS, stream)
    assert all((out == 0).all() for out in outs.values())


# ---- as a torch op ----


@DTYPES
def test_gradients_are_those_of_the_composition(dtype, target):
    inputs = [x.requires_grad_() for x in make_inputs(target, dtype)]

    def gradients() -> tuple[torch.Tensor, ...]:
        residual, normed = gate_residual_norm(*inputs)
        return torch.autograd.grad((residual.float() * normed.float()).mean(), inputs)

    expected = gradients()
    with target.kernels(KERNEL):
        actual = gradients()
    for gradient, wanted in zip(actual, expected, strict=True):
        assert gradient.dtype == wanted.dtype and wanted.any()
        assert_near(gradient.float() / wanted.abs().max().float(), wanted.float() / wanted.abs().max().float(), 0.02)


def test_autocast_runs_in_float32(target):
    """As a session in half precision calls it: the residual stream stays in float32, y comes from a linear map."""
    x, y, *modulation = make_inputs(target)
    arguments = (x.float(), y, *(m.float() for m in modulation))
    with torch.autocast(target.device.type, torch.bfloat16), target.kernels(KERNEL):
        results = gate_residual_norm(*arguments)
    assert_right(results, [x.float(), y.float(), *arguments[2:]])


def test_opcheck(target):
    with target.kernels(KERNEL):
        torch.library.opcheck(torch.ops.aapt.gate_residual_norm.default, (*make_inputs(target, width=64), EPS))


def test_compiles_forward_and_backward(target):
    inputs = [x.requires_grad_() for x in make_inputs(target, width=64)]

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        residual, normed = gate_residual_norm(*arguments)
        return (residual * normed).float().sum()

    with target.kernels(KERNEL):
        actual = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
        expected = torch.autograd.grad(loss(*inputs), inputs)
    for gradient, wanted in zip(actual, expected, strict=True):
        assert torch.equal(gradient, wanted)
