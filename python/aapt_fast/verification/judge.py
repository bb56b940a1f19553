# SPDX-License-Identifier: Apache-2.0
"""The two questions about a kernel: are its results right, and how fast is it next to torch's best."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.profiling.timing import Sample
from aapt_fast.verification.compare import error_and_limit
from aapt_fast.verification.edge_cases import EdgeCase


def require_right(results: tuple[Tensor, ...], case: EdgeCase) -> None:
    """Raise ValueError if one of the results [...] is further from the reference than twice torch's own error."""
    for number, (actual, expected) in enumerate(zip(results, case.expected, strict=True)):
        oracle, name = expected.oracle, f"output {number}"
        require(actual.shape == oracle.shape, name, f"shape {list(oracle.shape)}", list(actual.shape))
        magnitude = float(oracle[oracle.isfinite()].abs().max()) if oracle.isfinite().any() else 1.0
        floor = expected.floor * max(1.0, magnitude)
        error, limit = error_and_limit(actual, oracle, expected.torch, floor)
        words = f"an error of at most {limit:.3g}, twice that of torch in {actual.dtype}"
        require(error <= limit, name, words, f"{error:.3g}")  # raises for nan, too


def against_best(samples: Mapping[str, Sample], kernel: str, rivals: Collection[str]) -> tuple[str, float]:
    """Name the fastest of `rivals` by its median, and give its time over the kernel's.

    The ratio is the median over the repetitions, in which both were neighbours. Above 1 the kernel is faster.
    """
    best = min(rivals, key=lambda system: samples[system].p50)
    return best, samples[kernel].times(samples[best])
