# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops import philox_normal
from aapt_fast.ops.kernels import DTYPE_CODES, stream_of, use_kernels, view
from aapt_fast.testing.cases import strided

KERNEL = "philox_normal/portable"
KEYS = {
    "zeros": (0, 0),
    "small": (7, 3),
    "negative seed, step beyond 32 bits": (-1, 2**40 + 5),
    "largest seed": (2**63 - 1, 1),
    "smallest seed, negative step": (-(2**63), -1),
    "low words alike": (7 + 2**32, 3 + 2**32),
}
SHAPES = {
    "1": (1, 1, 1),
    "2": (2, 1, 1),
    "3": (1, 3, 1),
    "4": (1, 2, 2),
    "30": (3, 5, 2),
    "1023, a block less one": (3, 11, 31),
    "1025, a block and one": (1, 25, 41),
    "4 blocks": (16, 16, 16),
}


def composition(seed: torch.Tensor, step: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """The same frames [B, C, h, w] by torch ops."""
    with use_kernels("none"):
        return philox_normal(seed, step, shape)


def assert_same_numbers(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for a rare last bit.

    Two libraries may differ in the last bit of a logarithm, sine or cosine in float64. That moves a number over the
    border between two float32 about once in 2^27 times; where the cosine should be 0, it is 1e-16 in torch.
    """
    assert actual.shape == expected.shape and actual.dtype == expected.dtype == torch.float32
    error = (actual.double() - expected.double()).abs()
    assert (error <= 2.0**-23 * expected.double().abs() + 1e-14).all(), f"differs by {error.max():.3g}"
    assert (error > 0).sum() <= 1 + 1e-6 * error.numel(), f"{int((error > 0).sum())} of {error.numel()} numbers differ"


@pytest.mark.parametrize("schedule", range(2), ids=lambda seed: f"schedule {seed}")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_composition(shape, schedule, target):
    seeds, steps = torch.tensor(list(KEYS.values()), device=target.device).T
    with target.kernels(KERNEL, schedule=schedule):
        frames = philox_normal(seeds, steps, shape)
    assert frames.is_contiguous() and frames.device == target.device
    assert_same_numbers(frames, composition(seeds, steps, shape))


@pytest.mark.parametrize(("seed", "step"), KEYS.values(), ids=KEYS)
def test_many_numbers_equal_composition(seed, step, target):
    seeds, steps = torch.tensor([[seed], [step]], device=target.device)
    with target.kernels(KERNEL):
        frames = philox_normal(seeds, steps, (16, 64, 64))
    assert_same_numbers(frames, composition(seeds, steps, (16, 64, 64)))


def test_rows_do_not_depend_on_their_batch_or_strides(target):
    seeds, steps = torch.tensor([[5, 5, 2**40, -3], [0, 9, 0, 2**33]], device=target.device)
    with target.kernels(KERNEL):
        together = philox_normal(seeds, steps, (4, 3, 3))
        alone = [philox_normal(seeds[i : i + 1], steps[i : i + 1], (4, 3, 3))[0] for i in range(4)]
        assert torch.equal(philox_normal(strided(seeds), steps.repeat_interleave(3)[::3], (4, 3, 3)), together)
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_rounded_from_float32(dtype, target):
    seeds, steps = torch.tensor([[1], [2]], device=target.device)
    with target.kernels(KERNEL):
        frame = philox_normal(seeds, steps, (4, 4, 4))
        assert torch.equal(philox_normal(seeds, steps, (4, 4, 4), dtype=dtype), frame.to(dtype))


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("shape", [(1, 2, 6), (1, 1, 7)], ids=str)
def test_writes_nothing_else(shape, offset, target):
    seeds, steps = torch.tensor([[1, 2], [3, 4]], device=target.device)
    memory = torch.full((40,), torch.nan, device=target.device)
    size = 2 * shape[1] * shape[2]
    out = memory[4 + offset : 4 + offset + size].view(2, *shape)
    with target.kernels(KERNEL):
        target.module.philox_normal_portable(view(seeds), view(steps), view(out), stream_of(target.device))
    assert_same_numbers(out, composition(seeds, steps, shape))
    assert memory.isnan().sum() == 40 - size


def test_opcheck_and_compile(target):
    seeds, steps = torch.tensor([[1, 2], [3, 4]], device=target.device)
    compiled = torch.compile(
        lambda seed, step: philox_normal(seed, step, (4, 3, 3)) + 1, fullgraph=True, backend="aot_eager"
    )
    with target.kernels(KERNEL):
        torch.library.opcheck(torch.ops.aapt.philox_normal.default, (seeds, steps, [4, 3, 3]))
        assert torch.equal(compiled(seeds, steps), philox_normal(seeds, steps, (4, 3, 3)) + 1)


BAD_ARGUMENTS = {
    "seed": ({"seed": torch.tensor([1])}, r"seed: expected shape \[2\], got \[1\]"),
    "seed dtype": ({"seed": torch.ones(2)}, "seed: expected int64, got float32"),
    "step": ({"step": torch.ones(2, 2, dtype=torch.int64)}, r"step: expected shape \[2\], got \[2, 2\]"),
    "step dtype": ({"step": torch.tensor([1, 2]).int()}, "step: expected int64, got int32"),
    "out dtype": ({"out": torch.empty(2, 1, 2, 3).half()}, "out: expected float32, got float16"),
    "out dimensions": (
        {"out": torch.empty(2, 6)},
        r"out: expected shape \[any, any, any, any\], got \[2, 6\]",
    ),
    "out strides": ({"out": torch.empty(2, 3, 2, 1).transpose(1, 2)}, "out: expected a contiguous tensor, got strides"),
    "too many numbers": (
        {"out": (0, DTYPE_CODES[torch.float32], (2, 2**20, 2**10, 2**10), (2**40, 2**20, 2**10, 1))},
        "shape: expected at most 17179869180 numbers per frame, got 1099511627776",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(change, message, target):
    """The compiled function checks for itself; the op checks its arguments before."""
    good = {"seed": torch.tensor([1, 2]), "step": torch.tensor([3, 4]), "out": torch.empty(2, 1, 2, 3)}
    with pytest.raises(ValueError, match=message):
        target.module.philox_normal_portable(
            **{name: x if isinstance(x, tuple) else view(x) for name, x in {**good, **change}.items()}, stream=(0, 0)
        )
