# SPDX-License-Identifier: Apache-2.0
"""A second stream and a replay, with a torch.cuda that runs everything at once and only takes notes."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from aapt_fast.verification.edge_cases import EdgeCase
from aapt_fast.verification.launches import require_replay, require_stream


class FakeCuda:
    """Stands in for torch.cuda; a capture keeps the call, which `replay` repeats into the same results."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.repeat = lambda: None
        for name in ("_sleep", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: self.log.append(name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: "a stream")
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "stream", self._noting)
        monkeypatch.setattr(torch.cuda, "graph", self._noting)

    @contextmanager
    def _noting(self, what):
        self.log.append("capture" if what is self else "stream")
        yield

    def replay(self) -> None:
        self.log.append("replay")
        self.repeat()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def doubling() -> EdgeCase:
    x = torch.tensor([1.0, torch.nan, 3.0])
    return EdgeCase("doubling", (x,), lambda: (2 * x,), ())


def test_inputs_come_when_the_second_stream_is_busy(cuda: FakeCuda, doubling: EdgeCase) -> None:
    before = doubling.inputs[0].clone()
    require_stream(doubling, doubling.call())
    assert cuda.log == ["synchronize", "stream", "_sleep", "synchronize"]
    assert torch.equal(doubling.inputs[0].nan_to_num(9), before.nan_to_num(9))


def test_a_kernel_on_the_wrong_stream_computes_with_zeros_and_is_found(cuda: FakeCuda, doubling: EdgeCase) -> None:
    expected, early = doubling.call(), (torch.zeros(3),)
    with pytest.raises(ValueError, match="output 0 on a second stream: expected the same bits"):
        require_stream(EdgeCase("early", doubling.inputs, lambda: early, ()), expected)


def test_a_replay_computes_with_the_inputs_of_its_time(cuda: FakeCuda, doubling: EdgeCase) -> None:
    expected, results = doubling.call(), (torch.zeros(3),)
    kept = EdgeCase("kept", doubling.inputs, lambda: results, ())
    cuda.repeat = lambda: results[0].copy_(2 * doubling.inputs[0])
    require_replay(kept, expected)
    assert cuda.log == ["stream", "synchronize", "synchronize", "capture", "replay", "replay", "synchronize"]


def test_a_kernel_that_keeps_values_of_the_capture_is_found(cuda: FakeCuda, doubling: EdgeCase) -> None:
    with pytest.raises(ValueError, match="output 0 in a replay"):
        require_replay(doubling, doubling.call())  # the captured call has seen zeros, and no replay repeats it
