# SPDX-License-Identifier: Apache-2.0
"""Sessions that go back: the same bits follow as the first time, and other controls are obeyed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from aapt_fast import PagePool, SessionBatch, StreamModel, StreamSession, WindowRule
from aapt_fast.errors import SessionClosed
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.profiling.inputs import random_image
from aapt_fast.testing.streams import STREAMS, play, random_controls, random_model, random_session
from aapt_fast.testing.wan import TINY, random_wan


def wander(session: StreamSession, again: StreamSession, fresh: Iterator[object], steps: int) -> None:
    """Random steps and rewinds by at most 7, across the wrap of the window and the point where a sink leaves it.

    `again` takes the steps that are left over, and has to see the same.
    """
    choose = random.Random(5)
    taken, video, furthest = [], [], 0
    while len(taken) < steps:
        if choose.random() < 0.3:
            to = max(furthest - 7, 0, len(taken) - choose.choice((0, 1, 2, 5)))
            session.rewind(to)
            del taken[to:], video[to:]
        else:
            taken.append(next(fresh))
            video.append(session.step(taken[-1]))
            furthest = max(furthest, len(taken))
        assert session.steps == len(taken)
    assert torch.equal(torch.cat(video), torch.cat([again.step(control) for control in taken]))
    assert torch.equal(session.frame, again.frame)


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("kind", list(STREAMS))
def test_any_path_back_and_forth_gives_the_video_of_its_last_controls(kind, recorded, recorded_on_the_cpu):
    model = random_model(STREAMS[kind])
    controls = random_controls(model, 60) if model.control is not None else [None] * 60
    wander(random_session(model, history=7, cuda_graph=recorded), random_session(model), iter(controls), 14)


SAMPLERS = {
    "blocks": FewStepSampler(steps=(1000, 500), window=WindowRule(3, 4, 1)),
    "noisy context": FewStepSampler(steps=(1000,), context_noise=50.0, window=WindowRule(1, 3)),
    "moving sink": FewStepSampler(steps=(1000,), window=WindowRule(2, 2, 2, sink_position="saturated")),
}


@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_blocks_of_a_wan_transformer(sampler, with_image):
    model = StreamModel(random_wan(TINY), random_model(NANO).vae, grid=(4, 6))
    prompt = torch.randn(5, TINY.text_width, generator=torch.Generator().manual_seed(4))
    image = random_image(model) if with_image else None
    sessions = [StreamSession(model, image, prompt=prompt, sampler=sampler, history=history) for history in (7, 0)]
    wander(*sessions, itertools.repeat(None), 7)


def test_pages_are_those_of_the_declared_history(pose_model):
    """No step, rewind or fork takes a page that was not reserved, and closing gives all of them back."""
    pool = PagePool.for_sessions(pose_model, 2, history=3)
    session = random_session(pose_model, pool=pool, history=3)
    controls = random_controls(pose_model, 9)
    play(session, controls)
    session.rewind(7)
    fork = session.fork()
    for each in (session, fork):
        play(each, controls[:4])
        each.rewind(each.steps - 3)
        play(each, controls[:4])
        each.close()
    assert pool.free == pool.available == pool.pages


def test_both_branches_go_on_on_their_own(pose_model):
    controls, others = random_controls(pose_model, 8), random_controls(pose_model, 4, seed=3)
    session = random_session(pose_model, history=4)
    play(session, controls[:6])
    branch = session.fork()
    branch.rewind(3)
    assert (session.steps, branch.steps) == (6, 3)
    mine, theirs = play(session, controls[6:])[1], play(branch, others)[1]
    assert torch.equal(mine, play(random_session(pose_model), controls)[1][-8:])
    assert torch.equal(theirs, play(random_session(pose_model), controls[:3] + others)[1][-16:])
    branch.rewind(4)
    assert torch.equal(branch.step(others[1]), theirs[4:8])


def test_a_session_of_a_batch_goes_back_alone(pose_model):
    pool = PagePool.for_sessions(pose_model, 2, history=2)
    sessions = [random_session(pose_model, pool=pool, history=2, seed=seed) for seed in range(2)]
    controls, batch = random_controls(pose_model, 4), SessionBatch(sessions)
    video = [batch.step([control] * 2) for control in controls]
    sessions[0].rewind(2)
    redone = [batch.step([control] * 2) for control in controls[2:]]
    torch.testing.assert_close(redone[0][0], video[2][0], atol=1, rtol=0)  # of another composition
    assert [session.steps for session in sessions] == [4, 6]


def test_frames_that_are_ahead_are_no_part_of_the_past(pose_model):
    controls = random_controls(pose_model, 5)
    session = random_session(pose_model, history=2)
    loop = session.frames(iter([*controls[:4], controls[4], controls[3]]), ahead=True)
    for _ in range(4):
        last = next(loop)
    session.rewind(3)
    next(loop)
    session.rewind(3)
    assert torch.equal(next(loop), last)


def test_other_steps_are_refused_and_change_nothing(pose_model):
    controls = random_controls(pose_model, 6)
    expected = play(random_session(pose_model), controls)[1]
    session = random_session(pose_model, history=2)
    play(session, controls[:5])
    for step in (2, 6, -1):
        with pytest.raises(ValueError, match=rf"^to_step: expected 3\.\.5, got {step}$"):
            session.rewind(step)
    session.rewind(3)
    with pytest.raises(ValueError, match=r"^to_step: expected 3\.\.3, got 2$"):
        session.rewind(2)
    for step in (2.0, True, "3"):
        with pytest.raises(TypeError, match=r"^to_step: expected an integer"):
            session.rewind(step)
    assert torch.equal(play(session, controls[3:])[1], expected[-12:])
    without = random_session(pose_model)
    with pytest.raises(ValueError, match=r"^to_step: expected none: the session was opened with history=0, got 0$"):
        without.rewind(0)
    for history, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^history: expected"):
            random_session(pose_model, history=history)
        with pytest.raises(error, match=r"^history: expected"):
            PagePool.for_sessions(pose_model, 1, history=history)


def test_an_error_on_the_way_back_closes_the_session(pose_model, monkeypatch):
    session = random_session(pose_model, history=2)
    play(session, random_controls(pose_model, 2))

    def fails(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(type(session._run.decoder), "decode", fails)
    with pytest.raises(ZeroDivisionError):
        session.rewind(1)
    with pytest.raises(SessionClosed, match="closed by ZeroDivisionError in rewind"):
        session.rewind(0)


def test_a_reset_begins_a_new_past(pose_model):
    session = random_session(pose_model, history=3)
    controls = random_controls(pose_model, 3)
    expected = play(session, controls)[1]
    session.reset()
    with pytest.raises(ValueError, match=r"^to_step: expected 0\.\.0, got 3$"):
        session.rewind(3)
    play(session, controls[::-1])
    session.rewind(0)
    assert torch.equal(play(session, controls)[1], expected)
