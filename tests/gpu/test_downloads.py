# SPDX-License-Identifier: Apache-2.0
"""Videos that are copied from a GPU while it goes on computing; tests/streaming/test_host_copies.py has the rest."""

from __future__ import annotations

import pytest
import torch

from aapt_fast import FrameDownloader

STEPS, SHAPE = 40, (4, 416, 736, 3)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the copies were tested on the CPU")


@pytest.mark.parametrize("buffers", [2, 3])
def test_results_are_what_was_sent(buffers):
    """Sources are dropped at once, and the same amount of memory is asked for and overwritten while copies run."""
    out, pending = FrameDownloader(buffers), []
    work = torch.randn(2048, 2048, device="cuda")
    for step in range(STEPS):
        work = work @ work / 2048  # the source is late
        pending.append(out.submit(torch.full(SHAPE, step, dtype=torch.uint8, device="cuda") + 0))
        torch.full(SHAPE, 255, dtype=torch.uint8, device="cuda")
        if step + 1 >= buffers:
            oldest = pending[step + 1 - buffers].result()
            assert (oldest == step + 1 - buffers).all()
    with pytest.raises(RuntimeError, match="result: expected a call before"):
        pending[0].result()


def test_the_host_does_not_wait_for_the_copy():
    out, work = FrameDownloader(), torch.randn(8192, 8192, device="cuda")
    video = torch.zeros(SHAPE, dtype=torch.uint8, device="cuda")
    out.submit(video).result()  # buffers and stream are there
    torch.cuda.synchronize()
    for _ in range(20):
        work = work @ work / 8192
    late = video + (work[0, 0] * 0).nan_to_num().to(torch.uint8)
    pending = out.submit(late)
    assert not pending._arrived.query()
    assert (pending.result() == 0).all() and pending._frames.is_pinned()
