# SPDX-License-Identifier: Apache-2.0
"""Sessions, batches and pools show their state at a prompt."""

from __future__ import annotations

from aapt_fast import PagePool, SessionBatch
from aapt_fast.testing.streams import random_controls, random_session


def test_state_at_a_prompt(pose_model):
    pose_model.name = "nano"
    pool = PagePool.for_sessions(pose_model, 2)
    pages = pool.pages
    assert repr(pool) == f"PagePool({pages} of {pages} pages available, torch.float32, on cpu)"
    sessions = [random_session(pose_model, pool=pool) for _ in range(2)]
    batch = SessionBatch(sessions)
    assert repr(batch) == "SessionBatch(2 sessions of nano, steps taken: 0)"
    sessions[0].step(random_controls(pose_model, 1)[0])
    assert repr(pool) == f"PagePool(0 of {pages} pages available, torch.float32, on cpu)"
    assert repr(batch) == "SessionBatch(2 sessions of nano, steps taken: 0 to 1)"
    speed = sessions[0].latency.in_words()
    assert "fps (real time is 24" in speed
    assert repr(sessions[0]) == f"StreamSession(nano, steps taken: 1, {speed}, open)"
    assert repr(sessions[1]) == "StreamSession(nano, steps taken: 0, open)"
    sessions[0].close()
    assert repr(pool) == f"PagePool({pages // 2} of {pages} pages available, torch.float32, on cpu)"
    assert repr(sessions[0]) == f"StreamSession(nano, steps taken: 1, {speed}, closed by close())"
