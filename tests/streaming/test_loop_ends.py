# SPDX-License-Identifier: Apache-2.0
"""Ends of a loop over a session's frames: between steps the session can go on, inside a step it is closed."""

from __future__ import annotations

import signal

import pytest
import torch

from aapt_fast.errors import SessionClosed
from aapt_fast.testing.streams import play, random_controls, random_session


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


def test_ctrl_c_in_a_step_closes_the_session_and_is_named(pose_model):
    session = random_session(pose_model)
    session.on_stage = lambda stage: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        session.step(random_controls(pose_model, 1)[0])
    with pytest.raises(SessionClosed, match="closed by KeyboardInterrupt in step 1"):
        session.step(random_controls(pose_model, 1)[0])


def test_a_handler_of_the_program_decides_about_ctrl_c(pose_model):
    heard, session = [], random_session(pose_model)
    session.on_stage = lambda stage: signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(session.steps))
    try:
        for _ in session.frames(random_controls(pose_model, 3)):
            if heard and session.steps == 2:
                break
    finally:
        signal.signal(signal.SIGINT, before)
    assert session.steps == 2 and set(heard) == {0, 1} and not session.closed
