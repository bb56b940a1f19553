# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aapt_fast.integrations import shared_vae
from aapt_fast.models.vae import picture_memory, ring_cache, video_stream
from aapt_fast.ops.registry import OPS
from aapt_fast.testing.fake_cuda import fake_cuda
from aapt_fast.testing.fake_gpu import FakeGPU


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    if torch.cuda.is_available():
        pytest.skip("a machine with a GPU runs the code itself")
    with fake_cuda(devices=2) as fake:
        yield fake


OUT = 5
"""Place of `out` among the arguments of `ring_conv3d` and `norm_silu`."""
NORMED = 10
"""Place of `normed` among those of `ring_conv3d`, which may have no `out` beside it."""


@pytest.fixture
def decoder_kernels(monkeypatch) -> None:
    """Stand-ins that launch once and allocate nothing, as the kernels of video VAEs do on Hopper."""

    def launch_once(*arguments: Any) -> None:
        result = arguments[NORMED] if arguments[OUT] is None else arguments[OUT]
        result[:, :1].zero_()

    for op in ("ring_conv3d", "norm_silu"):
        monkeypatch.setitem(OPS[op], "cuda", launch_once)
    for module in (video_stream, picture_memory, shared_vae):
        monkeypatch.setattr(module, "kernels_run", lambda device, dtype: True)
    monkeypatch.setattr(ring_cache, "most_normed", lambda device: 192)
