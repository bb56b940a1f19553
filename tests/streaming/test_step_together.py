# SPDX-License-Identifier: Apache-2.0
"""Several sessions in one evaluation: each gets what it would get alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from aapt_fast import page_pool, session_pages, step_together
from aapt_fast.errors import PoolExhausted, SessionClosed
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming import samplers
from aapt_fast.streaming.cache_batch import CacheBatch
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.streams import (
    STREAMS,
    play,
    random_controls,
    random_model,
    random_prompt,
    random_session,
    shuffled_pool,
)

CONTROL = torch.zeros(19, 3)
TOLERANCE = 1e-5


@pytest.fixture(params=STREAMS.values(), ids=STREAMS)
def model(request) -> StreamModel:
    return random_model(request.param)


@pytest.fixture
def pose_model() -> StreamModel:
    return random_model(NANO)


def pool_for(model: StreamModel, sessions: int, nfe: int = 1):
    return shuffled_pool(model, sessions * session_pages(model.config, nfe, 9))


def play_together(sessions: Sequence[StreamSession], controls: Sequence[Sequence]) -> list[torch.Tensor]:
    """Steps of all sessions, `controls` per session and step; the frames [1, C, n, h, w] of each."""
    frames: list[list[torch.Tensor]] = [[] for _ in sessions]
    for of_step in zip(*controls, strict=True):
        videos = step_together(sessions, of_step)
        for session, made, video in zip(sessions, frames, videos, strict=True):
            assert video.shape == (4, *session.model.video_size, 3) and video.dtype == torch.uint8
            made.append(session.frame)
    return [torch.cat(made, 2) for made in frames]


@pytest.mark.parametrize("nfe", [1, 3])
def test_sessions_at_other_steps_get_what_they_get_alone(model, nfe):
    """Other seeds, prompts of other lengths, and runs that begin, fill their window or have a sink of their own."""
    lead, steps = (0, 1, 3, 6), 5
    controls = [random_controls(model, before + steps, seed=before) for before in lead]
    texts = [random_prompt(model) for _ in lead]
    prompts = [text if text is None else text[: 2 + row] for row, text in enumerate(texts)]
    pool = pool_for(model, len(lead), nfe)
    sessions, expected = [], []
    for row, (before, prompt) in enumerate(zip(lead, prompts, strict=True)):
        options = {"nfe": nfe, "seed": 40 + row, "prompt": prompt}
        expected.append(play(random_session(model, **options), controls[row])[0][:, :, before:])
        sessions.append(random_session(model, pool=pool, **options))
        for control in controls[row][:before]:
            sessions[row].step(control)
    actual = play_together(sessions, [each[before:] for each, before in zip(controls, lead, strict=True)])
    for frames, wanted in zip(actual, expected, strict=True):
        assert_near(frames, wanted, TOLERANCE)
    assert [session.steps for session in sessions] == [before + steps for before in lead]
    assert all(session.latency.count == session.steps for session in sessions)


def test_a_session_may_step_alone_between(model):
    pool, controls = pool_for(model, 2), [random_controls(model, 9, seed=row) for row in range(2)]
    expected = [play(random_session(model, seed=row), controls[row])[0] for row in range(2)]
    sessions = [random_session(model, seed=row, pool=pool) for row in range(2)]
    made: list[list[torch.Tensor]] = [[], []]
    for step in range(9):
        if step % 3 == 1:
            for row in (1, 0):
                sessions[row].step(controls[row][step])
        else:
            step_together(
                sessions[:: -1 if step % 2 else 1], [each[step] for each in controls[:: -1 if step % 2 else 1]]
            )
        for row in range(2):
            made[row].append(sessions[row].frame)
    for row in range(2):
        assert_near(torch.cat(made[row], 2), expected[row], TOLERANCE)


@pytest.mark.parametrize("at", [1, 5])
def test_forks_go_on_together(model, at):
    """What-if: one past, three futures, the pages of the past shared until the sink is rewritten."""
    controls = random_controls(model, at)
    futures = [random_controls(model, 5, seed=10 + row) for row in range(3)]
    origin = random_session(model, pool=pool_for(model, 3))
    for control in controls:
        origin.step(control)
    sessions = [origin, origin.fork(), origin.fork()]
    actual = play_together(sessions, futures)
    for frames, future in zip(actual, futures, strict=True):
        assert_near(frames, play(random_session(model), controls + future)[0][:, :, at:], TOLERANCE)


def test_one_alone_and_bfloat16(pose_model):
    controls = random_controls(pose_model, 5)
    alone = random_session(pose_model, pool=pool_for(pose_model, 1))
    assert_near(play_together([alone], [controls])[0], play(random_session(pose_model), controls)[0], TOLERANCE)
    half = random_model(NANO, torch.bfloat16)
    pool, oracle = pool_for(half, 2), play(random_session(pose_model), controls)[0]
    sessions = [random_session(half, pool=pool) for _ in range(2)]
    single = play(random_session(half), controls)[0]
    for frames in play_together(sessions, [controls, controls]):
        assert (frames - oracle).norm() <= 2 * (single - oracle).norm()


def test_the_model_runs_once_per_evaluation(pose_model, monkeypatch):
    pool, rows = pool_for(pose_model, 3, 2), []
    forward = type(pose_model.generator).forward
    monkeypatch.setattr(
        type(pose_model.generator), "forward", lambda self, x, *rest: rows.append(len(x)) or forward(self, x, *rest)
    )
    sessions = [random_session(pose_model, pool=pool, nfe=2) for _ in range(3)]
    step_together(sessions, [CONTROL] * 3)
    assert rows == [3, 3]


def test_pages_are_those_of_single_steps(pose_model):
    pool = pool_for(pose_model, 2)
    sessions = [random_session(pose_model, pool=pool) for _ in range(2)]
    free = []
    for _ in range(12):
        step_together(sessions, [CONTROL] * 2)
        free.append(pool.free)
    assert len(set(free[4:])) == 1
    for session in sessions:
        session.close()
    assert pool.free == pool.available == pool.pages


# ---- bad input ----


def test_a_bad_control_changes_nothing(pose_model):
    pool = pool_for(pose_model, 2)
    sessions = [random_session(pose_model, pool=pool) for _ in range(2)]
    for controls, message in (
        ([CONTROL, torch.zeros(3, 3)], "control: expected"),
        ([CONTROL], "controls: expected 2, one per session, got 1"),
        (None, "control: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            step_together(sessions, controls)
    assert [session.steps for session in sessions] == [0, 0]
    expected = play(random_session(pose_model), [CONTROL])[0]
    for frames in play_together(sessions, [[CONTROL], [CONTROL]]):
        assert_near(frames, expected, TOLERANCE)


def test_sessions_that_cannot_be_batched_are_refused(pose_model):
    pool = pool_for(pose_model, 4, 2)
    good = random_session(pose_model, pool=pool)
    closed = random_session(pose_model, pool=pool)
    closed.close()
    recorded = random_session(pose_model, pool=pool)
    recorded._sampler.__class__ = type("Other", (samplers.FrameSampler,), {})
    text = random_model(NANO_TEXT)
    for others, error, message in (
        ([], ValueError, "sessions: expected at least one, got none"),
        ([good, "x"], TypeError, "sessions: expected StreamSession, got str"),
        ([good, good], ValueError, "sessions: expected each once, got one of them twice"),
        ([good, closed], SessionClosed, r"closed by close\(\)"),
        ([good, random_session(pose_model)], ValueError, "sessions: expected sessions in one pool"),
        ([good, random_session(pose_model, nfe=2, pool=pool)], ValueError, "1 evaluations per step, got 2"),
        ([good, random_session(text)], ValueError, "sessions: expected sessions of the same model object"),
        ([good, recorded], ValueError, r"not recorded \(RecordedBatch takes recorded ones\), got one with a Other"),
        (good, TypeError, "sessions: expected a sequence, one per session, got StreamSession"),
    ):
        with pytest.raises(error, match=message):
            step_together(others, [CONTROL] * 2)
    with pytest.raises(TypeError, match="controls: expected a sequence, one per session, got int"):
        step_together([good], 5)
    good.step(CONTROL)


def test_an_error_inside_closes_them_all_and_gives_the_pages_back(pose_model, monkeypatch):
    pool = pool_for(pose_model, 2)
    sessions = [random_session(pose_model, pool=pool) for _ in range(2)]
    step_together(sessions, [CONTROL] * 2)
    monkeypatch.setattr(samplers, "philox_normal", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        step_together(sessions, [CONTROL] * 2)
    assert all(session.closed for session in sessions)
    assert pool.free == pool.available == pool.pages
    with pytest.raises(SessionClosed, match="by RuntimeError in a step together with others"):
        sessions[1].step(CONTROL)


def test_stolen_pages_are_noticed_before_anything_changes(pose_model):
    pool = page_pool(pose_model, 2 * session_pages(pose_model.config))
    sessions = [random_session(pose_model, pool=pool) for _ in range(2)]
    taken = pool.allocate(pool.free - 1)
    with pytest.raises(PoolExhausted):
        step_together(sessions, [CONTROL] * 2)
    pool.release(taken)
    expected = play(random_session(pose_model), [CONTROL])[0]
    for frames in play_together(sessions, [[CONTROL], [CONTROL]]):
        assert_near(frames, expected, TOLERANCE)


def test_caches_that_do_not_fit_together_are_refused(pose_model):
    pool = pool_for(pose_model, 2)
    (one,) = random_session(pose_model, pool=pool)._sampler._caches
    (other,) = random_session(pose_model)._sampler._caches
    for caches, message in (
        ([], "caches: expected at least one, got none"),
        ([one, one], "caches: expected each of them once, got one of them twice"),
        ([one, other], "caches: expected caches of one pool, got caches of several"),
    ):
        with pytest.raises(ValueError, match=message):
            CacheBatch(caches)
    q = torch.zeros(1, 1, one.tokens, 2, 16)
    with pytest.raises(ValueError, match="layer: expected 0"):
        CacheBatch([one]).attend(99, q, q, q, None, None)
    with pytest.raises(ValueError, match="q: expected shape"):
        CacheBatch([one]).attend(0, q[:, :, 1:], q, q, None, None)
    with pytest.raises(RuntimeError, match="advance: expected 1 frame after"):
        CacheBatch([one]).advance(1)
