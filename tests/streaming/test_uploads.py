# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from aapt_fast.streaming.uploads import to_device, views_of
from aapt_fast.testing.fake_cuda import FAKE_GPU, fake_cuda

CPU = torch.device("cpu")
PARTS = [
    torch.tensor([1, -(2**40)]),
    torch.tensor([[0.5], [-1.5], [2.5]]),
    torch.zeros(0, 4),
    torch.arange(10, dtype=torch.int32).view(5, 2).T,
    torch.tensor([True, False, True]),
    torch.tensor(2.0, dtype=torch.float64),
]


def test_views_hold_what_is_written_to_all_of_them():
    buffer = torch.zeros(1024, dtype=torch.uint8)
    for view, part in zip(views_of(buffer, PARTS), PARTS, strict=True):
        view.copy_(part)
    for view, part in zip(views_of(buffer.clone(), PARTS), PARTS, strict=True):
        assert view.dtype == part.dtype and torch.equal(view, part)


def test_nothing_is_copied_on_the_cpu():
    first, second = to_device([PARTS[:2], PARTS[2:]], CPU)
    assert all(there is part for there, part in zip([*first, *second], PARTS, strict=True))


def test_one_copy_to_a_gpu():
    if torch.cuda.is_available():
        groups = to_device([PARTS[:2], [], PARTS[2:]], torch.device("cuda", 0))
        assert [len(group) for group in groups] == [2, 0, 4]
        for there, part in zip([*groups[0], *groups[2]], PARTS, strict=True):
            assert there.is_cuda and torch.equal(there.cpu(), part)
        return
    with fake_cuda() as gpu, gpu.counting() as counts:
        there = torch.zeros(3, device=FAKE_GPU)
        groups = to_device([PARTS[:2], [], [*PARTS[2:], there]], FAKE_GPU)
        assert [len(group) for group in groups] == [2, 0, 5] and groups[2][-1] is there
        for copy, part in zip([*groups[0], *groups[2]], [*PARTS, there], strict=True):
            assert copy.device == FAKE_GPU and copy.dtype == part.dtype and copy.shape == part.shape
        assert to_device([[there]], FAKE_GPU) == [[there]]
    assert counts.uploads.total() == 1 and counts.syncs.total() == 0
