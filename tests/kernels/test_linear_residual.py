# SPDX-License-Identifier: Apache-2.0
"""On a Hopper GPU only: CUTLASS brings its own instructions, which the emulation does not have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import adds_in_its_epilogue, linear_residual, reference
from aapt_fast.testing import streams
from aapt_fast.testing.cases import every_second, padded_rows
from aapt_fast.testing.compare import assert_within_twice_torch, relative_l2

KERNEL = "linear_residual/sm90"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
NAMES = ("bias", "gate")
PRESENT = {"all": NAMES, "no gate": ("bias",), "no bias": ("gate",), "product and sum": ()}
# tokens, width, depth: one tile and less, tiles that end in the middle, odd numbers of tiles, the generator's own
SHAPES = ((1, 8, 8), (128, 256, 64), (129, 264, 72), (300, 520, 200), (1196, 3072, 3072))
Inputs = list[torch.Tensor | None]


@pytest.fixture
def gpu(hopper):
    """A GPU with a build of this kernel."""
    if hopper.name == "emulated":
        pytest.skip("CUTLASS does not run in the emulation")
    return hopper


def make_inputs(
    target,
    shape: tuple[int, int, int] = (129, 264, 72),
    dtype: torch.dtype = torch.bfloat16,
    *,
    batch: int = 1,
    present: tuple[str, ...] = NAMES,
    shared_gate: bool = False,
) -> Inputs:
    """Random x, inputs, weight, bias, gate; the update is about as large as x."""
    tokens, width, depth = shape
    gate = (width,) if shared_gate else (batch, 1, width)
    x, inputs, weight, bias, gate_values = (
        torch.randn(each, device=target.device)
        for each in ((batch, tokens, width), (batch, tokens, depth), (width, depth), (width,), gate)
    )
    made = [x, inputs, weight * depth**-0.5, bias if "bias" in present else None]
    made.append(gate_values if "gate" in present else None)
    return [each if each is None else each.to(dtype) for each in made]


def check(inputs: Inputs, target) -> torch.Tensor:
    """The kernel is within twice torch's own error of the reference in float64."""
    with target.kernels(KERNEL):
        out = linear_residual(*inputs)
    x, given, weight, bias, gate = inputs
    update = torch.nn.functional.linear(given, weight, bias)
    plain = x + (update if gate is None else gate * update)
    oracle = reference.linear_residual(*(each if each is None else each.double() for each in inputs))
    assert out.dtype == x.dtype and out.is_contiguous()
    assert_within_twice_torch(out, oracle, plain)
    return out


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype, gpu):
    check(make_inputs(gpu, shape, dtype), gpu)


@pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT)
def test_parts_that_are_missing(present, gpu):
    check(make_inputs(gpu, present=present), gpu)


@pytest.mark.parametrize("shared_gate", [False, True], ids=["gate per row", "one gate"])
def test_rows(shared_gate, gpu):
    check(make_inputs(gpu, batch=3, shared_gate=shared_gate), gpu)


@pytest.mark.parametrize("view", [padded_rows, every_second], ids=lambda view: view.__name__)
def test_strided_tokens(view, gpu):
    """Tokens further apart than they are wide; last dimensions that are not dense are somebody else's."""
    x, inputs, *others = make_inputs(gpu, batch=2)
    arguments = [padded_rows(x), padded_rows(inputs), *others]
    if view is padded_rows:
        check(arguments, gpu)
        return
    with gpu.kernels(KERNEL), pytest.raises(ValueError, match="x: expected"):
        linear_residual(every_second(x), inputs, *others)


def test_the_same_bits_every_time(gpu):
    inputs = make_inputs(gpu, (1196, 3072, 3072))
    first = check(inputs, gpu)
    assert all(torch.equal(check(inputs, gpu), first) for _ in range(3))


def test_no_tokens(gpu):
    inputs = make_inputs(gpu, (0, 256, 64))
    with gpu.kernels(KERNEL):
        assert linear_residual(*inputs).shape == (1, 0, 256)


@pytest.mark.parametrize("change", [{"shape": (5, 12, 64)}, {"shape": (5, 64, 12)}], ids=["width", "depth"])
def test_what_it_does_not_do(change, gpu):
    with gpu.kernels(KERNEL), pytest.raises(ValueError, match=r"for this kernel|16 bytes"):
        linear_residual(*make_inputs(gpu, **change))


def test_in_a_cuda_graph(gpu):
    inputs = make_inputs(gpu)
    expected = check(inputs, gpu)
    graph = torch.cuda.CUDAGraph()
    with gpu.kernels(KERNEL), torch.cuda.graph(graph):
        out = linear_residual(*inputs)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)


def test_a_stream_uses_it(gpu):
    """Frames differ from those in float32 as much as those of torch's own layers do, up to a factor of two."""

    def model(dtype: torch.dtype) -> StreamModel:
        made = streams.random_model(replace(NANO, width=128), torch.float32)
        parts = (part.to(gpu.device, dtype) for part in (made.generator, made.vae))
        return StreamModel(*parts, token_dtype=dtype)

    def frames(made: StreamModel) -> torch.Tensor:
        with streams.random_session(made) as session:
            return streams.play(session, streams.random_controls(made, 3))[0]

    half, weight = model(torch.bfloat16), torch.zeros(8, 8, dtype=torch.bfloat16, device=gpu.device)
    plain, oracle = frames(half), frames(model(torch.float32))
    with gpu.kernels(KERNEL):
        assert adds_in_its_epilogue(weight[None], weight)
        computed = frames(half)
    assert not torch.equal(computed, plain)
    assert relative_l2(computed, oracle) < 2 * relative_l2(plain, oracle)
