# SPDX-License-Identifier: Apache-2.0
"""Small models of every kind of input, and CUDA graphs without a GPU."""

from __future__ import annotations

import pytest

from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming import graph
from aapt_fast.testing.recorder import record_on_cpu
from aapt_fast.testing.streams import STREAMS, random_model


@pytest.fixture(params=STREAMS.values(), ids=STREAMS)
def model(request) -> StreamModel:
    """One of each, in turn."""
    return random_model(request.param)


@pytest.fixture
def pose_model() -> StreamModel:
    """A model that is controlled by poses."""
    return random_model(NANO)


@pytest.fixture
def recorded_on_the_cpu(monkeypatch) -> None:
    """Lets sessions on the CPU record their steps."""
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
