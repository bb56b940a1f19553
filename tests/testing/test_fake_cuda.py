# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from aapt_fast.testing.fake_cuda import FAKE_GPU, fake_cuda, on_fake_gpu
from aapt_fast.testing.fake_gpu import FakeGPU

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU has no fake one")


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with fake_cuda() as fake:
        yield fake


def test_bytes_of_a_case_worked_out_by_hand(gpu):
    x = torch.zeros(1000, 256, device=FAKE_GPU)
    assert gpu.live_bytes == 1000 * 256 * 4
    with gpu.counting() as counts:
        half = x.to(torch.bfloat16)  # 512,000 bytes more
        view = x[3:].transpose(0, 1)  # none
        y = half @ half[:256].T  # 1000 x 256 x 2 = 512,000: in all 2,048,000
        del half, view
        z = x + 1  # 1,024,000, in the place of the half
    assert counts.peak_bytes == 1_024_000 + 512_000 + 1_024_000
    assert gpu.live_bytes == x.nbytes + y.nbytes + z.nbytes
    assert counts.operators == {"_to_copy": 1, "mm": 1, "add": 1}
    x.add_(1)
    del x, y, z
    assert gpu.live_bytes == 0


def test_copies_and_waits(gpu):
    with gpu.counting() as counts:
        x = torch.arange(4.0).to(FAKE_GPU)
        x.copy_(torch.ones(4))
        torch.tensor([1, 2], device=FAKE_GPU)
        x.add_(torch.tensor(2.0))  # a number, which a kernel takes as an argument
    assert counts.uploads.total() == 3 and counts.syncs.total() == 0
    with gpu.counting() as counts:
        assert x.sum().item() == 0
        assert bool((x > 0).any())
        assert torch.equal(x.cpu(), torch.zeros(4))
        torch.cuda.current_stream(FAKE_GPU).synchronize()
    assert counts.uploads.total() == 0 and counts.syncs.total() == 4


def test_tensors_of_two_devices_are_refused(gpu):
    x = torch.zeros(4, device=FAKE_GPU)
    with pytest.raises(RuntimeError, match=r"add.*: expected tensors of one device, got \[4\] on cuda, \[4\] on cpu"):
        x + torch.ones(4)
    assert torch.equal(torch.ones(2) + 1, torch.tensor([2.0, 2.0]))


def test_modules_on_the_fake_gpu(gpu):
    with torch.device("meta"):
        layer = torch.nn.Linear(1 << 16, 1 << 16)
    layer = on_fake_gpu(layer.bfloat16())
    assert gpu.live_bytes == 2 * ((1 << 32) + (1 << 16))
    with torch.autocast("cuda", torch.float16):
        assert layer(torch.zeros(1, 1 << 16, device=FAKE_GPU)).dtype == torch.float16


def test_everything_is_as_before_afterwards():
    before = torch.cuda.current_stream, torch.cuda.is_available
    with fake_cuda():
        assert torch.cuda.is_available()
    assert (torch.cuda.current_stream, torch.cuda.is_available) == before
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device=FAKE_GPU)
