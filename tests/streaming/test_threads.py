# SPDX-License-Identifier: Apache-2.0
"""Sessions of one model in threads of their own give what they give one after the other (docs/reference/threads.md)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from torch import Tensor

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.profiling.inputs import random_controls
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import STREAMS, random_model, random_session

STEPS, SESSIONS = 8, 3


def opened(model: StreamModel) -> list[StreamSession]:
    """Sessions with seeds of their own, the last a fork of the first."""
    sessions = [random_session(model, seed=seed) for seed in range(SESSIONS - 1)]
    sessions[0].step(random_controls(model, 1)[0])
    return [*sessions, sessions[0].fork()]


def played(session: StreamSession, seed: int, barrier: Barrier | None = None) -> Tensor:
    """Video [4 n, H, W, 3] of n steps, each begun together with those of the other threads."""
    video = []
    for control in random_controls(session.model, STEPS, seed=seed):
        if barrier is not None:
            barrier.wait(60)
        video.append(session.step(control))
    return torch.cat(video)


@pytest.mark.parametrize("kind", STREAMS)
def test_threads_give_the_same_video(kind):
    model = random_model(STREAMS[kind])
    expected = [played(session, seed) for seed, session in enumerate(opened(model))]
    assert not torch.equal(expected[0], expected[1])
    barrier, sessions = Barrier(SESSIONS), opened(model)
    with ThreadPoolExecutor(SESSIONS) as threads:
        futures = [threads.submit(played, session, seed, barrier) for seed, session in enumerate(sessions)]
        videos = [future.result() for future in futures]
    for video, wanted in zip(videos, expected, strict=True):
        assert torch.equal(video, wanted)


def test_a_session_goes_on_in_another_thread():
    model = random_model(STREAMS["pose"])
    controls = random_controls(model, 4)
    session, here = random_session(model), random_session(model)
    expected = [here.step(control) for control in controls]
    for control, wanted in zip(controls, expected, strict=True):
        with ThreadPoolExecutor(1) as thread:
            assert torch.equal(thread.submit(session.step, control).result(), wanted)


def test_a_step_in_a_second_thread_is_refused_and_harms_neither():
    model = random_model(STREAMS["pose"])
    controls = random_controls(model, 2)
    session, alone = random_session(model), random_session(model)
    inside, refused = Event(), Event()

    def wait_inside(stage: str) -> None:
        inside.set()
        assert refused.wait(60)

    session.on_stage = wait_inside
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(session.step, controls[0])
        try:
            assert inside.wait(60)
            with pytest.raises(RuntimeError, match="session: a step is being taken in another thread"):
                session.step(controls[1])
        finally:
            refused.set()
        videos = [first.result(60), session.step(controls[1])]
    assert torch.equal(torch.cat(videos), torch.cat([alone.step(control) for control in controls]))
    assert session.steps == 2


def test_a_fork_made_in_the_middle_of_a_step_can_step():
    """A fork has a lock of its own: it is free, whatever its original is doing."""
    model = random_model(STREAMS["pose"])
    [control] = random_controls(model, 1)
    session, videos = random_session(model), []

    def fork_at_its_beginning(stage: str) -> None:
        if stage == "generator":
            session.on_stage = None
            videos.append(session.fork().step(control))

    session.on_stage = fork_at_its_beginning
    videos.append(session.step(control))
    assert torch.equal(*videos)
