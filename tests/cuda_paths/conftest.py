# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from aapt_fast.testing.fake_cuda import fake_cuda
from aapt_fast.testing.fake_gpu import FakeGPU


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    if torch.cuda.is_available():
        pytest.skip("a machine with a GPU runs the code itself")
    with fake_cuda(devices=2) as fake:
        yield fake
