# SPDX-License-Identifier: Apache-2.0
"""Calls of an op as a GPU program makes them: on a second stream, and captured once and replayed.

Both change the inputs while the GPU is busy: a kernel that runs on another stream than the current one, or keeps values
that it saw at the capture, computes with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.verification.edge_cases import EdgeCase

BUSY_CYCLES = 20_000_000
"""Cycles, about 10 ms, for which the second stream is busy before the inputs are there."""


def require_stream(case: EdgeCase, expected: tuple[Tensor, ...]) -> None:
    """Raise ValueError unless the call on a second stream gives `expected`, tensors [...] of one on the first."""
    values = _take_away(case)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(BUSY_CYCLES)
        _bring_back(case, values)
        results = case.call()
    torch.cuda.synchronize()
    _require_equal(results, expected, "on a second stream")


def require_replay(case: EdgeCase, expected: tuple[Tensor, ...]) -> None:
    """Raise ValueError unless a replayed capture gives `expected`, tensors [...] of a call without one."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        case.call()  # whatever a first call loads or allocates
    torch.cuda.synchronize()
    values = _take_away(case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.call()
    _bring_back(case, values)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    _require_equal(results, expected, "in a replay")


def _take_away(case: EdgeCase) -> list[Tensor]:
    """Set the inputs to zero, and return their values."""
    values = [tensor.clone() for tensor in case.inputs]
    for tensor in case.inputs:
        tensor.zero_()
    torch.cuda.synchronize()
    return values


def _bring_back(case: EdgeCase, values: list[Tensor]) -> None:
    for tensor, value in zip(case.inputs, values, strict=True):
        tensor.copy_(value)


def _require_equal(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], where: str) -> None:
    for number, (tensor, other) in enumerate(zip(results, expected, strict=True)):
        equal = bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())
        require(equal, f"output {number} {where}", "the same bits as on the first stream", "others")
