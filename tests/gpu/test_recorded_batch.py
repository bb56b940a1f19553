# SPDX-License-Identifier: Apache-2.0
"""A batch of sessions whose step is one CUDA graph, on a GPU; tests/streaming/test_batch.py needs none."""

from __future__ import annotations

import pytest
import torch

import aapt_fast
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near

STEPS = 10  # the window of mini-person is 5
LEAD = (0, 2, 7)  # steps that the sessions have taken before

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: recordings were replayed on the CPU")


@pytest.mark.parametrize("kernels", ["none", "auto", "all"])
def test_a_recorded_batch_is_that_of_eager_launches(kernels):
    model = aapt_fast.StreamModel.from_pretrained("mini-person", device="cuda", dtype=torch.bfloat16)
    gallery, control = aapt_fast.load_gallery("mini-person"), torch.zeros(19, 3)

    def opened() -> list[StreamSession]:
        pool = aapt_fast.PagePool.for_sessions(model, len(LEAD) + 1)
        sessions = [StreamSession(model, gallery[row].image, seed=row, pool=pool) for row in range(len(LEAD))]
        for session, before in zip(sessions, LEAD, strict=True):
            for _ in range(before):
                session.step(control)
        return sessions

    with aapt_fast.use_kernels(kernels):
        recorded, eager = opened(), opened()
        batches = aapt_fast.SessionBatch(recorded, cuda_graph=True), aapt_fast.SessionBatch(eager)
        for step in range(STEPS):
            controls = [control] * len(LEAD)
            if step == 4:  # a step alone, a fork that comes and goes, a reset
                assert_near(recorded[1].step(control).float(), eager[1].step(control).float(), 2 / 255)
                recorded[0].fork().close()
                recorded[2].reset(seed=9), eager[2].reset(seed=9)
            videos, expected = (batch.step(controls) for batch in batches)
            for video, wanted in zip(videos, expected, strict=True):
                assert_near(video.float(), wanted.float(), 2 / 255)  # two levels of 255
