# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import norm_silu, reference
from aapt_fast.ops.kernels import stream_of, view
from aapt_fast.testing.cases import surrounded
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

KERNEL = "norm_silu/portable"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
SCHEDULES = pytest.mark.parametrize("schedule", range(3), ids=lambda seed: f"schedule {seed}")
# Channels and groups. One, three and four vectors of 8 channels per lane, with and without idle lanes; groups inside of
# a vector, of some vectors, and of all.
NORMS = {
    "16 channels": (16, 0),
    "40 channels": (40, 0),
    "96 channels": (96, 0),
    "512 channels": (512, 0),
    "936 channels": (936, 0),
    "groups of 2": (64, 32),
    "groups of 3": (24, 8),
    "groups of 16": (512, 32),
    "one group": (40, 1),
}
NAMES = pytest.mark.parametrize("name", NORMS)
Arguments = dict[str, Any]


def inputs(
    target, name: str, dtype: torch.dtype, size: tuple[int, int] = (9, 15), batch: int = 2, start: int | None = 3
) -> Arguments:
    """Arguments of the op for frames that differ in mean and size; two slots of `out` get no frame."""
    channels, groups = NORMS[name]
    random = {"device": target.device}
    x = torch.randn(batch, 2, *size, channels, **random)
    x[:, 1] = 3 * x[:, 1] + 2
    return {
        "x": surrounded(x.to(dtype)),
        "gamma": surrounded((torch.rand(channels, **random) + 0.5).to(dtype)),
        "beta": surrounded(torch.randn(channels, **random).to(dtype)) if groups else None,
        "groups": groups,
        "eps": 1e-6 if groups else 1e-12,
        "out": surrounded(torch.full((batch, 4, *size, channels), torch.nan, **random).to(dtype)),
        "out_start": None if start is None else torch.tensor([start], dtype=torch.int32, **random),
    }


def run(target, arguments: Arguments, schedule: int = 0) -> Tensor:
    """The op by its kernel into a fresh `out` [B, S', H, W, C]."""
    out = surrounded(torch.full_like(arguments["out"], torch.nan))
    with target.kernels(KERNEL, schedule=schedule):
        norm_silu(**{**arguments, "out": out})
    return out


def plain_torch(x: Tensor, gamma: Tensor, beta: Tensor | None, groups: int, eps: float) -> Tensor:
    """The composition in torch, in the dtype of x."""
    if groups == 0:
        return F.silu(F.normalize(x, dim=-1, eps=eps) * x.shape[-1] ** 0.5 * gamma)
    y = F.group_norm(x.flatten(0, 1).permute(0, 3, 1, 2).contiguous(), groups, gamma, beta, eps)
    return F.silu(y).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def assert_right(out: Tensor, arguments: Arguments, floor: float = 2e-6) -> None:
    """Every slot: the written ones within twice torch's own error of the reference in float64, the others NaN."""
    wide = {name: x.double() if isinstance(x, Tensor) and name != "out_start" else x for name, x in arguments.items()}
    wide["out"] = torch.full_like(wide["out"], torch.nan)
    reference.norm_silu(**wide)
    first = 0 if arguments["out_start"] is None else int(arguments["out_start"])
    slots = [(first + t) % 4 for t in range(2)]
    assert torch.equal(out.isfinite(), wide["out"].isfinite())
    *given, _, _ = arguments.values()
    assert_within_twice_torch(out[:, slots], wide["out"][:, slots], plain_torch(*given), floor)


@DTYPES
@SCHEDULES
@NAMES
def test_equals_reference(name, schedule, dtype, target):
    arguments = inputs(target, name, dtype)
    assert_right(run(target, arguments, schedule), arguments)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (5, 13), (17, 31)], ids=str)
@NAMES
def test_sizes(name, size, target):
    arguments = inputs(target, name, torch.bfloat16, size, batch=1)
    assert_right(run(target, arguments, schedule=1), arguments)


@pytest.mark.parametrize("name", ["96 channels", "groups of 2"])
def test_every_phase_of_the_ring_and_every_run_gives_the_same_bits(name, target):
    expected = run(target, inputs_of := inputs(target, name, torch.bfloat16, start=None))[:, :2]
    for start in range(8):
        arguments = {**inputs_of, "out_start": torch.tensor([start], dtype=torch.int32, device=target.device)}
        out = run(target, arguments, schedule=start)
        assert torch.equal(out[:, [start % 4, (start + 1) % 4]], expected)
        assert out[:, [(start + 2) % 4, (start + 3) % 4]].isnan().all()


@pytest.mark.parametrize("name", ["16 channels", "groups of 16"])
def test_a_frame_alone_and_in_a_batch(name, target):
    arguments = inputs(target, name, torch.bfloat16, batch=3, start=0)
    together = run(target, arguments)
    for row in range(3):
        each = {**arguments, **{key: surrounded(arguments[key][row : row + 1]) for key in ("x", "out")}}
        assert torch.equal(run(target, each)[0, :2], together[row, :2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["96 channels", "groups of 2"])
def test_weights_in_float32(name, dtype, target):
    arguments = inputs(target, name, dtype)
    wide = {key: None if arguments[key] is None else surrounded(arguments[key].float()) for key in ("gamma", "beta")}
    assert torch.equal(run(target, {**arguments, **wide}).nan_to_num(), run(target, arguments).nan_to_num())


@pytest.mark.parametrize("name", ["groups of 16", "one group"])
def test_a_mean_far_from_zero_costs_no_digits(name, target):
    """Against float64: a variance from sums of squares alone would lose all of them."""
    arguments = inputs(target, name, torch.float32)
    arguments["x"] += 3000
    wide = {key: x.double() if isinstance(x, Tensor) and key != "out_start" else x for key, x in arguments.items()}
    reference.norm_silu(**wide)
    assert_near(run(target, arguments).nan_to_num(), wide["out"].nan_to_num(), 2e-3)


def test_pixels_of_zeros_and_large_numbers(target):
    arguments = inputs(target, "96 channels", torch.bfloat16)
    arguments["x"][:, 0] = 0
    arguments["x"][:, 1] *= 1e15
    out = run(target, arguments)
    assert not out[:, 3].any()
    assert_right(out, arguments)


def test_a_frame_of_one_constant_is_beta(target):
    arguments = inputs(target, "groups of 3", torch.bfloat16, start=0)
    arguments["x"][:] = 5
    expected = F.silu(arguments["beta"].float()).to(torch.bfloat16).expand_as(arguments["x"])
    assert_near(run(target, arguments)[:, :2], expected, 1e-2)


def test_small_pixels_are_not_taken_for_zeros(target):
    """Norms around 1e-7, above the smallest one to divide by."""
    arguments = inputs(target, "16 channels", torch.bfloat16, size=(2, 3))
    arguments["x"] *= 2.0**-25
    assert_right(run(target, arguments), arguments)


def test_beta_may_be_missing(target):
    arguments = {**inputs(target, "groups of 3", torch.float16), "beta": None}
    assert_right(run(target, arguments), arguments)


@NAMES
def test_writes_nothing_else(name, target):
    arguments = inputs(target, name, torch.bfloat16, batch=1)
    shape, groups = arguments["out"].shape, arguments["groups"]
    memory = torch.full((arguments["out"].numel() + 64,), torch.nan, device=target.device).bfloat16()
    arguments["out"] = memory[32:-32].view(shape)
    sums = torch.full((2 * 3 * groups * 2 + 2,), torch.nan, device=target.device)
    partial = sums[1:-1].view(2, 3, groups, 2) if groups else None
    with target.kernels():
        given = {key: view(x) if isinstance(x, Tensor) else x for key, x in arguments.items()}
        partial_view = None if partial is None else view(partial)
        target.module.norm_silu_portable(**given, partial=partial_view, stream=stream_of(target.device))
    assert memory.isfinite().sum() == arguments["x"].numel()
    assert sums[0].isnan() and sums[-1].isnan() and (partial is None or partial.isfinite().all())
    assert_right(arguments["out"], arguments)


UNSUPPORTED = {
    "float64": ({"x": torch.double, "out": torch.double}, "x: expected bfloat16 or float16 for this kernel, got"),
    "gamma": ({"gamma": torch.float16}, "gamma: expected float32 or bfloat16 for this kernel, got float16"),
}


@pytest.mark.parametrize(("dtypes", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_dtypes(dtypes, message, target):
    """A kernel chosen by name names what it does not do; otherwise the composition runs."""
    arguments = inputs(target, "groups of 3", torch.bfloat16, size=(2, 3))
    arguments |= {name: arguments[name].to(dtype) for name, dtype in dtypes.items()}
    with target.kernels(KERNEL), pytest.raises(target.module.Unsupported, match=message):
        norm_silu(**arguments)
    norm_silu(**arguments)
    assert arguments["out"].isfinite().any()


@pytest.mark.parametrize(
    ("channels", "groups", "message"),
    [
        (20, 0, "x: expected a multiple of 8 channels up to 1024 for this kernel, got 20"),
        (1032, 0, "x: expected a multiple of 8 channels up to 1024 for this kernel, got 1032"),
        (256, 256, "groups: expected at most 128 for this kernel, got 256"),
    ],
    ids=["not a multiple of 8", "too many channels", "too many groups"],
)
def test_unsupported_sizes(channels, groups, message, target):
    x = torch.randn(1, 1, 2, 2, channels, device=target.device).bfloat16()
    arguments = (x, torch.ones(channels, device=target.device), None, groups, 1e-6, torch.empty_like(x), None)
    with target.kernels(KERNEL), pytest.raises(target.module.Unsupported, match=message):
        norm_silu(*arguments)


BAD_ARGUMENTS = {
    "x": ({"x": torch.ones(2, 2, 3, 24)}, r"x: expected shape \[any, any, any, any, any\], got"),
    "x strides": (
        {"x": torch.ones(2, 2, 2, 24, 3).half().transpose(3, 4)},
        "x: expected a contiguous tensor, got strides",
    ),
    "gamma": ({"gamma": torch.ones(23)}, r"gamma: expected shape \[24\], got \[23\]"),
    "groups": ({"groups": 5}, "groups: expected 0 or a divisor of 24 channels, got 5"),
    "beta without groups": ({"groups": 0}, "beta: expected None, as there are no groups, got a tensor"),
    "beta": ({"beta": torch.ones(25)}, r"beta: expected shape \[24\], got \[25\]"),
    "out": ({"out": torch.ones(2, 4, 2, 3, 16).half()}, r"out: expected shape \[2, any, 2, 3, 24\], got"),
    "out dtype": ({"out": torch.ones(2, 4, 2, 3, 24)}, "out: expected float16, got float32"),
    "out slots": ({"out": torch.ones(2, 1, 2, 3, 24).half()}, "out: expected at least 2 slots, got 1"),
    "out_start": ({"out_start": torch.ones(1)}, "out_start: expected int32, got float32"),
    "no partial": ({"partial": None}, "partial: expected a tensor, got None"),
    "partial": ({"partial": torch.ones(4, 1, 7, 2)}, r"partial: expected shape \[4, any, 8, 2\], got"),
    "partial dtype": ({"partial": torch.ones(4, 1, 8, 2).half()}, "partial: expected float32, got float16"),
    "no chunk": ({"partial": torch.ones(4, 0, 8, 2)}, "partial: expected at least one chunk, got 0"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(change, message, target):
    """The compiled function checks for itself; the op checks its arguments before."""
    good = inputs(target, "groups of 3", torch.float16, size=(2, 3)) | {"partial": torch.empty(4, 1, 8, 2)}
    given = {name: view(x) if isinstance(x, Tensor) else x for name, x in {**good, **change}.items()}
    with pytest.raises(ValueError, match=message):
        target.module.norm_silu_portable(**given, stream=(0, 0))


@pytest.mark.parametrize("name", ["96 channels", "groups of 3"])
def test_nothing_to_compute(name, target):
    assert run(target, inputs(target, name, torch.bfloat16, size=(0, 3))).shape[2] == 0


@pytest.mark.parametrize("name", ["16 channels", "groups of 3"])
def test_opcheck(name, target):
    arguments = inputs(target, name, torch.bfloat16, size=(1, 2), batch=1)
    arguments["out"].zero_()
    with target.kernels(KERNEL):
        torch.library.opcheck(torch.ops.aapt.norm_silu.default, tuple(arguments.values()))
