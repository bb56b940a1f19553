# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from aapt_fast.ops import philox_normal, reference
from aapt_fast.ops.philox_normal import philox_words
from aapt_fast.testing.cases import DEVICES, strided
from aapt_fast.testing.compare import assert_near

# Known-answer vectors published with Random123 for philox4x32-10: counter, key, result.
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def frame_from_the_definition(seed: int, step: int, size: int) -> torch.Tensor:
    """The first `size` numbers by the formulas of ops/philox.py, on Python numbers and one at a time."""
    key = seed % 2**32, (seed >> 32) % 2**32
    result = []
    for counter in range(math.ceil(size / 4)):
        words = reference.philox_words((counter, 0, step % 2**32, (step >> 32) % 2**32), key)
        uniform = (torch.tensor(words).float() * 2.0**-32 + 2.0**-33).tolist()
        for u0, u1 in (uniform[:2], uniform[2:]):
            radius = math.sqrt(-2 * math.log(u0))
            result += [radius * math.cos(2 * math.pi * u1), radius * math.sin(2 * math.pi * u1)]
    return torch.tensor(result[:size])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    assert reference.philox_words(counter, key) == answer
    assert philox_words(numbers(*counter), numbers(*key)).tolist() == list(answer)


def test_words_equal_the_reference_on_random_inputs():
    counters, keys = torch.randint(2**32, (4, 3, 50)), torch.randint(2**32, (2, 3, 1))
    words = philox_words(counters, keys)
    for row in range(3):
        for column in range(50):
            counter, key = counters[:, row, column].tolist(), keys[:, row, 0].tolist()
            assert tuple(words[:, row, column].tolist()) == reference.philox_words(tuple(counter), tuple(key))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("seed", "step"),
    [(0, 0), (7, 3), (-1, 2**40 + 5), (2**63 - 1, 1), (-(2**63), -1)],
    ids=lambda value: f"{value:#x}",
)
def test_frame_equals_the_definition(seed, step, device):
    shape = (3, 5, 2)  # 30 numbers: the last counter is used in half
    frame = philox_normal(numbers(seed), numbers(step), shape, device=device)
    assert frame.dtype == torch.float32 and frame.device.type == device
    assert_near(frame.flatten().cpu(), frame_from_the_definition(seed, step, 30), 1e-6)


def test_rows_do_not_depend_on_their_batch():
    seeds, steps = numbers(5, 5, 2**40, -3), numbers(0, 9, 0, 2**33)
    together = philox_normal(seeds, steps, (4, 3, 3))
    alone = [philox_normal(seeds[i : i + 1], steps[i : i + 1], (4, 3, 3))[0] for i in range(4)]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(philox_normal(strided(seeds), strided(steps), (4, 3, 3)), together)
    assert len({row.sum().item() for row in alone}) == 4


def test_a_larger_frame_starts_with_the_smaller_one():
    small, large = (philox_normal(numbers(1), numbers(2), (1, 1, size)).flatten() for size in (7, 100))
    assert torch.equal(large[:7], small)


def test_distribution_is_standard_normal():
    sample = philox_normal(numbers(11), numbers(0), (16, 64, 64)).flatten().double()
    count = len(sample)
    # Means of 65,536 numbers: five standard errors each.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(sample.pow(power).mean() - moment) < 5 * math.sqrt(variance / count)
    ordered = torch.special.ndtr(sample.sort().values)
    kolmogorov_smirnov = (ordered - (torch.arange(count) + 0.5) / count).abs().max() + 0.5 / count
    assert kolmogorov_smirnov < 1.95 / math.sqrt(count)  # exceeded once in 1,000 seeds
    assert 3.5 < sample.abs().max() < 6.77


def test_neighbours_are_uncorrelated():
    steps = philox_normal(numbers(3, 3, 4), numbers(0, 1, 0), (16, 32, 32)).flatten(1).double()
    limit = 5 / math.sqrt(steps.shape[1])
    assert (torch.corrcoef(steps) - torch.eye(3)).abs().max() < limit  # other step, other seed
    for lag in (1, 2, 3, 4):
        assert (steps[:, lag:] * steps[:, :-lag]).mean(1).abs().max() < limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_rounded_from_float32(dtype):
    frame = philox_normal(numbers(1), numbers(2), (4, 4, 4))
    assert torch.equal(philox_normal(numbers(1), numbers(2), (4, 4, 4), dtype=dtype), frame.to(dtype))


def test_opcheck():
    torch.library.opcheck(torch.ops.aapt.philox_normal.default, (numbers(1, 2), numbers(3, 4), [4, 3, 3]))


def test_compile():
    compiled = torch.compile(
        lambda seed: philox_normal(seed, seed + 1, (4, 3, 3)) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(numbers(1, 2)), philox_normal(numbers(1, 2), numbers(2, 3), (4, 3, 3)) + 1)


BAD_INPUTS = {
    "seed shape": ({"seed": torch.tensor(1)}, r"seed: expected shape \[B\], got \[\]"),
    "seed dtype": ({"seed": torch.tensor([1]).int()}, r"seed: expected torch\.int64, got torch\.int32"),
    "step shape": ({"step": numbers(1, 2)}, r"step: expected shape \[1\], got \[2\]"),
    "step dtype": ({"step": torch.tensor([1.0])}, r"step: expected torch\.int64, got torch\.float32"),
    "step device": ({"step": numbers(1).to("meta")}, "step: expected a tensor on cpu, got one on meta"),
    "shape length": ({"shape": (4, 4)}, r"shape: expected three positive sizes \(C, h, w\), got \(4, 4\)"),
    "shape zero": ({"shape": (4, 0, 4)}, r"shape: expected three positive sizes \(C, h, w\), got \(4, 0, 4\)"),
    "shape huge": ({"shape": (2**20, 2**10, 2**10)}, "shape: expected at most .* elements"),
    "dtype": ({"dtype": torch.int32}, r"dtype: expected a floating point dtype, got torch\.int32"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    good = {"seed": numbers(1), "step": numbers(2), "shape": (4, 4, 4)}
    with pytest.raises(ValueError, match=message):
        philox_normal(**{**good, **change})
