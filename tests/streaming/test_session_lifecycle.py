# SPDX-License-Identifier: Apache-2.0
"""Fork, reset and close; the pages of sessions, their memory over time and their times."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from aapt_fast import EulerSampler
from aapt_fast.errors import PoolExhausted, SessionClosed
from aapt_fast.models.aapt.presets import NANO_TEXT
from aapt_fast.streaming.pages import PagePool, session_pages
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import (
    play,
    random_controls,
    random_image,
    random_model,
    random_prompt,
    random_session,
    shuffled_pool,
)

STEPS = 6  # frame 1 leaves the window of 2 after step 3
IMAGE, CONTROL = -torch.ones(3, 32, 32), torch.zeros(19, 3)


def test_a_pool_for_sessions_holds_exactly_so_many(model):
    length = 5 if model.config.text_width else 0
    pool = PagePool.for_sessions(model, 2, sampler=EulerSampler(2), text_length=length)
    sessions = [random_session(model, sampler=EulerSampler(2), pool=pool) for _ in range(2)]
    assert pool.available == 0
    for session in sessions:
        play(session, random_controls(model, 1))
        session.close()
    assert pool.available == pool.pages


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, 1), {}, TypeError, "model: expected StreamModel, got NoneType"),
        (("model", "2"), {}, TypeError, "sessions: expected int, got str"),
        (("model", 0), {}, ValueError, "sessions: expected at least 1, got 0"),
        (("model", 1), {"sampler": 2}, TypeError, "sampler: expected Sampler, got int"),
        (("model", 1), {"text_length": None}, TypeError, "text_length: expected int, got NoneType"),
        (("model", 1), {"text_length": -1}, ValueError, "text_length: expected at least 0"),
    ],
)
def test_bad_pools_for_sessions(pose_model, arguments, options, error, message):
    model, sessions = arguments
    with pytest.raises(error, match=message):
        PagePool.for_sessions(pose_model if model == "model" else model, sessions, **options)


@pytest.mark.parametrize("shared", [False, True], ids=["own pools", "one pool"])
@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_forks_go_on_bit_for_bit(model, at, shared):
    controls, others = random_controls(model, at + 5), random_controls(model, 5, seed=6)
    expected = play(random_session(model), controls)[1]
    expected_other = play(random_session(model), controls[:at] + others)[1]
    pool = shuffled_pool(model, 3 * session_pages(model.generator, model.grid, text_length=5)) if shared else None
    origin = random_session(model, pool=pool)
    for control in controls[:at]:
        origin.step(control)
    fork = origin.fork()
    fork_of_fork = fork.fork()
    assert torch.equal(play(fork, controls[at : at + 2])[1], expected[4 * at : 4 * at + 8])
    assert torch.equal(play(origin, others)[1], expected_other[4 * at :])
    origin.close()
    assert torch.equal(play(fork_of_fork, others)[1], expected_other[4 * at :])
    fork_of_fork.close()
    assert torch.equal(play(fork, controls[at + 2 :])[1], expected[4 * at + 8 :])
    assert fork.steps == at + 5 and fork.latency.count == 5


def test_a_fork_that_finds_no_pages_changes_nothing(pose_model):
    pool = PagePool.for_model(pose_model, 2 * session_pages(pose_model.generator, pose_model.grid, EulerSampler(2)) - 1)
    session = random_session(pose_model, sampler=EulerSampler(2), pool=pool)
    session.step(CONTROL)
    free, available = pool.free, pool.available
    with pytest.raises(PoolExhausted):
        session.fork()
    assert (pool.free, pool.available) == (free, available)
    session.step(CONTROL)


@pytest.mark.parametrize("steps", [0, 2, 5])
def test_reset_repeats_the_first_run(model, steps):
    session, controls = random_session(model, sampler=EulerSampler(2)), random_controls(model, STEPS)
    first = session.first_frame
    expected = play(random_session(model, sampler=EulerSampler(2)), controls)[1]
    play(session, [*controls, *controls][: steps + 1])
    session.reset()
    assert session.steps == session.latency.count == 0
    assert torch.equal(session.first_frame, first)
    assert torch.equal(play(session, controls)[1], expected)


def test_reset_takes_new_arguments_and_keeps_the_others(model):
    controls, image = random_controls(model, 3), random_image(model, seed=8)
    session = random_session(model)
    play(session, controls)
    longer = {"prompt": random_prompt(model, length=70)} if model.config.text_width else {}  # two pages, not one
    session.reset(image, seed=9, **longer)
    fresh = StreamSession(model, image, seed=9, **longer)
    assert torch.equal(play(session, controls)[1], play(fresh, controls)[1]) and session.seed == 9
    session.reset(seed=4)
    fresh = StreamSession(model, image, seed=4, **longer)
    assert torch.equal(play(session, controls)[1], play(fresh, controls)[1])


def test_the_control_of_the_image_goes_with_it(pose_model):
    controls, image_control = random_controls(pose_model, 2), random_controls(pose_model, 1, seed=5)[0][0]
    with_it, without = (play(random_session(pose_model, image_control=c), controls)[1] for c in (image_control, None))
    assert not torch.equal(with_it, without)
    session = random_session(pose_model)
    again = [
        ({}, with_it),
        ({"image": random_image(pose_model)}, without),
        ({"image_control": image_control}, with_it),
    ]
    for options, expected in again:
        session.reset(**options)
        assert torch.equal(play(session, controls)[1], expected)


def test_a_bad_reset_changes_nothing(pose_model):
    controls = random_controls(pose_model, 3)
    expected = play(random_session(pose_model), controls)[1]
    session = random_session(pose_model)
    play(session, controls[:1])
    for options in ({"image": IMAGE[:, :8]}, {"prompt": "a cat"}, {"seed": 0.5}, {"image_control": IMAGE}):
        with pytest.raises((ValueError, TypeError)):
            session.reset(**options)
    assert torch.equal(play(session, controls[1:])[1], expected[4:])


def test_a_reset_that_finds_no_pages_closes_the_session():
    model = random_model(NANO_TEXT)
    pool = PagePool.for_model(model, session_pages(model.generator, model.grid, text_length=5))
    session = random_session(model, pool=pool)
    with pytest.raises(PoolExhausted):
        session.reset(prompt=random_prompt(model, length=70))
    with pytest.raises(SessionClosed, match="closed by PoolExhausted in reset"):
        session.step()
    assert pool.free == pool.available == pool.pages


def test_a_closed_session_is_closed(model):
    pool = PagePool.for_model(model, session_pages(model.generator, model.grid, EulerSampler(2), 5))
    control = random_controls(model, 1)[0]
    with random_session(model, sampler=EulerSampler(2), pool=pool) as session:
        session.step(control)
        assert pool.free < pool.pages and not session.closed
    session.close()
    assert session.closed and pool.free == pool.available == pool.pages
    for use in (lambda: session.step(control), session.fork, session.reset, session.frames, session.__enter__):
        with pytest.raises(SessionClosed, match=r"closed by close\(\)"):
            use()
    random_session(model, sampler=EulerSampler(2), pool=pool)


def test_an_error_inside_a_step_closes_the_session(pose_model, monkeypatch):
    pool = PagePool.for_model(pose_model, session_pages(pose_model.generator, pose_model.grid))
    session = random_session(pose_model, pool=pool)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(pose_model, "decode", fail)
    with pytest.raises(MemoryError):
        session.step(CONTROL)
    assert pool.free == pool.available == pool.pages
    with pytest.raises(SessionClosed, match="closed by MemoryError in step 1"):
        session.step(CONTROL)


# ---- pages, memory, time ----


def test_sessions_in_one_pool_do_not_disturb_each_other(model):
    controls, others = random_controls(model, STEPS), random_controls(model, STEPS, seed=6)
    expected, expected_other = (play(random_session(model), c)[1] for c in (controls, others))
    pages = session_pages(model.generator, model.grid, text_length=5 if model.config.text_width else 0)
    pool = shuffled_pool(model, 2 * pages)
    one, other = random_session(model, pool=pool), random_session(model, pool=pool)
    with pytest.raises(PoolExhausted, match=f"asked for {pages} pages, 0 of {pool.pages} are available"):
        random_session(model, pool=pool)
    with pytest.raises(
        PoolExhausted, match=r"^pool: asked for \d+ pages, 0 of .* PagePool.for_sessions.* a fork is a s"
    ):
        one.fork()
    for step in range(STEPS):
        assert torch.equal(one.step(controls[step]), expected[4 * step : 4 * step + 4])
        assert torch.equal(other.step(others[step]), expected_other[4 * step : 4 * step + 4])


def test_a_refused_session_leaves_the_pool_untouched():
    model = random_model(NANO_TEXT)
    pool = PagePool.for_model(model, session_pages(model.generator, model.grid, EulerSampler(2), 5))
    taken = pool.allocate(1)
    with pytest.raises(PoolExhausted):
        random_session(model, sampler=EulerSampler(2), pool=pool)
    assert pool.free == pool.available == pool.pages - 1
    pool.release(taken)
    random_session(model, sampler=EulerSampler(2), pool=pool)


def test_a_step_that_finds_no_pages_can_be_repeated(pose_model):
    controls = random_controls(pose_model, 2)
    expected = play(random_session(pose_model, sampler=EulerSampler(2)), controls)[1]
    pool = PagePool.for_model(pose_model, session_pages(pose_model.generator, pose_model.grid, EulerSampler(2)))
    session = random_session(pose_model, sampler=EulerSampler(2), pool=pool)
    session.step(controls[0])
    taken = pool.allocate(pool.free - 1)  # enough for one of the two caches
    with pytest.raises(PoolExhausted):
        session.step(controls[1])
    pool.release(taken)
    assert torch.equal(session.step(controls[1]), expected[4:])


def test_memory_of_a_long_stream_is_flat(pose_model):
    pool = PagePool.for_model(pose_model, session_pages(pose_model.generator, pose_model.grid))
    session, control = random_session(pose_model, pool=pool), random_controls(pose_model, 1)[0]

    def measure() -> tuple[int, int]:
        gc.collect()
        return pool.free, sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    for _ in range(10):
        session.step(control)
    early = measure()
    for _ in range(90):
        session.step(control)
    assert measure() == early and session.steps == 100
    assert session.frame.isfinite().all() and session.frame.std() > 0.1


def test_a_session_counts_its_steps(pose_model):
    session = random_session(pose_model)
    assert session.latency.first_frame_s > 0 and session.latency.count == 0
    play(session, random_controls(pose_model, 2))
    report = json.loads(json.dumps(session.latency.as_dict()))
    assert report["count"] == 2 and 0 < report["step_ms"]["p50"] <= report["step_ms"]["p99"]
