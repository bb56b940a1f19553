# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and other ends of a loop over a session's frames, after which the session can go on."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable

import pytest
import torch

from aapt_fast import PagePool, SessionBatch
from aapt_fast.errors import SessionClosed
from aapt_fast.streaming.interrupts import interrupted_at_the_end
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import play, random_controls, random_session


def interrupt(count: int, session: StreamSession) -> Callable[[str], None]:
    """An `on_stage` that presses Ctrl-C `count` times in the next step."""

    def on_stage(stage: str) -> None:
        session.on_stage = None
        for _ in range(count if stage == "generator" else 0):
            signal.raise_signal(signal.SIGINT)

    return on_stage


def test_ctrl_c_in_a_step_waits_for_its_end(pose_model):
    controls = random_controls(pose_model, 5)
    expected = play(random_session(pose_model), controls)[0]
    session, source = random_session(pose_model), iter(controls)
    with pytest.raises(KeyboardInterrupt):
        for _ in session.frames(source):
            session.on_stage = interrupt(1, session)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert session.steps == session.latency.count == 2 and torch.equal(session.frame[:, :, 0], expected[:, :, 1])
    for _ in session.frames(source):
        assert torch.equal(session.frame[:, :, 0], expected[:, :, session.steps - 1])
    assert session.steps == 5


def test_a_second_ctrl_c_does_not_wait_and_closes_the_session(pose_model):
    session = random_session(pose_model)
    session.on_stage = interrupt(2, session)
    with pytest.raises(KeyboardInterrupt):
        session.step(random_controls(pose_model, 1)[0])
    with pytest.raises(SessionClosed, match="closed by KeyboardInterrupt in step 1"):
        session.step(random_controls(pose_model, 1)[0])


def test_ctrl_c_in_a_step_of_a_batch_waits_for_its_end(pose_model, monkeypatch):
    pool, [control] = PagePool.for_sessions(pose_model, 2), random_controls(pose_model, 1)
    sessions = [random_session(pose_model, pool=pool) for _ in range(2)]
    batch, decode = SessionBatch(sessions), pose_model.decode

    def interrupted(*arguments: object) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        monkeypatch.undo()
        return decode(*arguments)

    monkeypatch.setattr(pose_model, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch.step([control] * 2)
    assert [session.steps for session in sessions] == [1, 1]
    batch.step([control] * 2)


@pytest.mark.parametrize("end", [GeneratorExit, ZeroDivisionError, KeyboardInterrupt])
def test_a_loop_that_ends_in_its_body_leaves_the_session_open(pose_model, end):
    controls = random_controls(pose_model, 4)
    expected = play(random_session(pose_model), controls)[1]
    session, source, video = random_session(pose_model), iter(controls), []
    for _ in range(2):
        try:
            for frames in session.frames(source):
                video.append(frames)
                if session.steps % 2 == 0:
                    raise end
        except end:
            continue
    assert torch.equal(torch.cat(video), expected)


def test_an_error_does_not_hide_ctrl_c(pose_model):
    with pytest.raises(KeyboardInterrupt), interrupted_at_the_end():
        signal.raise_signal(signal.SIGINT)
        raise ValueError


def test_a_handler_of_the_program_is_left_alone(pose_model):
    heard, session = [], random_session(pose_model)
    session.on_stage = interrupt(1, session)
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(session.steps))
    try:
        for _ in itertools.islice(session.frames(random_controls(pose_model, 2)), 2):
            pass
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [0] and session.steps == 2
