# SPDX-License-Identifier: Apache-2.0
"""Several sessions in one evaluation: each gets what it would get alone, and a recorded batch gives the same bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from aapt_fast import EulerSampler, FewStepSampler, PagePool, SessionBatch
from aapt_fast.errors import PoolExhausted, SessionClosed
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming import graph, step
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.pages import session_pages
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.streams import (
    play,
    random_controls,
    random_model,
    random_prompt,
    random_session,
    shuffled_pool,
)
from aapt_fast.testing.wan import TINY, random_wan

pytestmark = pytest.mark.usefixtures("recorded_on_the_cpu")
CONTROL = torch.zeros(19, 3)
TOLERANCE = 1e-5


recorded_or_not = pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])


def pool_for(model: StreamModel, sessions: int, nfe: int = 1) -> PagePool:
    return shuffled_pool(model, sessions * session_pages(model.generator, model.grid, EulerSampler(nfe), 9))


def open_sessions(model: StreamModel, lead: Sequence[int], nfe: int = 1) -> list[StreamSession]:
    """Sessions in one pool with seeds and prompts of their own, which have taken `lead` steps."""
    torch.manual_seed(3)
    pool, sessions = pool_for(model, len(lead), nfe), []
    for row, before in enumerate(lead):
        text = random_prompt(model)
        prompt = None if text is None else text[: 2 + row]
        session = random_session(model, sampler=EulerSampler(nfe), seed=40 + row, prompt=prompt, pool=pool)
        for control in random_controls(model, before, seed=before):
            session.step(control)
        sessions.append(session)
    return sessions


def controls_of(model: StreamModel, sessions: int, steps: int) -> list[list]:
    """Controls per step and session."""
    rows = [random_controls(model, steps, seed=60 + row) for row in range(sessions)]
    return [list(of_step) for of_step in zip(*rows, strict=True)]


def frames_of(sessions: Sequence[StreamSession]) -> list[torch.Tensor]:
    return [session.frame for session in sessions]


def assert_same(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


# ---- the same stream ----


@pytest.mark.parametrize(("nfe", "recorded"), [(1, False), (2, True)], ids=["plain", "two evaluations, recorded"])
def test_sessions_at_other_steps_get_what_they_get_alone(model, nfe, recorded):
    """Other seeds, prompts of other lengths; runs that begin, windows that fill or are full."""
    lead = (0, 1, 3, 6)
    alone, together = (open_sessions(model, lead, nfe) for _ in range(2))
    batch = SessionBatch(together, cuda_graph=recorded)
    assert batch.sessions == tuple(together)
    for controls in controls_of(model, len(lead), 5):
        videos = batch.step(controls)
        assert all(video.shape == (4, *model.video_size, 3) and video.dtype == torch.uint8 for video in videos)
        for session, control in zip(alone, controls, strict=True):
            session.step(control)
        for frame, expected in zip(frames_of(together), frames_of(alone), strict=True):
            assert_near(frame, expected, TOLERANCE)
    assert [session.steps for session in together] == [before + 5 for before in lead]
    assert all(session.latency.count == session.steps for session in together)


@pytest.mark.parametrize("lead", [(0, 0), (0, 1, 5), (2, 6)], ids=str)
def test_a_recorded_batch_gives_the_same_bits(model, lead):
    plain, recorded = (open_sessions(model, lead) for _ in range(2))
    batches = SessionBatch(plain), SessionBatch(recorded, cuda_graph=True)
    for controls in controls_of(model, len(lead), 5):
        assert_same(batches[1].step(controls), batches[0].step(controls))
        assert_same(frames_of(recorded), frames_of(plain))


def test_one_alone_is_a_session_bit_by_bit(pose_model):
    controls = random_controls(pose_model, 5)
    expected = play(random_session(pose_model), controls)[1].split(4)
    session = random_session(pose_model)  # in a pool of its own
    for recorded in (False, True):
        batch = SessionBatch([session], cuda_graph=recorded)
        for control, video in zip(controls, expected, strict=True):
            assert_same(batch.step([control]), [video])
        session.reset()


@recorded_or_not
def test_half_precision(pose_model, recorded):
    half = StreamModel(copy.deepcopy(pose_model.generator).to(torch.bfloat16), pose_model.vae)
    controls = random_controls(pose_model, 5)
    pool, oracle = pool_for(half, 2), play(random_session(pose_model), controls)[0]
    single = play(random_session(half), controls)[0]
    sessions = [random_session(half, pool=pool) for _ in range(2)]
    batch, made = SessionBatch(sessions, cuda_graph=recorded), []
    for control in controls:
        batch.step([control] * 2)
        made.append(frames_of(sessions))
    for frames in zip(*made, strict=True):
        assert (torch.cat(frames, 2) - oracle).norm() <= 2 * (single - oracle).norm()


@recorded_or_not
def test_steps_alone_and_in_another_batch_between(model, recorded):
    alone, together = (open_sessions(model, (1, 2, 4)) for _ in range(2))
    batches = [SessionBatch(together, cuda_graph=recorded), SessionBatch(together[::-1], cuda_graph=recorded)]
    for number, controls in enumerate(controls_of(model, 3, 9)):
        if number % 3 == 2:
            for row in (2, 0, 1):
                together[row].step(controls[row])
        else:
            batches[number % 3].step(controls[:: -1 if number % 3 else 1])
        for session, control in zip(alone, controls, strict=True):
            session.step(control)
        for frame, expected in zip(frames_of(together), frames_of(alone), strict=True):
            assert_near(frame, expected, TOLERANCE)


@pytest.mark.parametrize(("at", "recorded"), [(1, False), (5, True)], ids=["plain, early", "recorded, late"])
def test_forks_go_on_together(model, at, recorded):
    """One past, three futures, the pages of the past shared until the sink is rewritten."""
    controls = random_controls(model, at)
    futures = [random_controls(model, 5, seed=10 + row) for row in range(3)]
    origin = random_session(model, pool=pool_for(model, 3))
    for control in controls:
        origin.step(control)
    sessions = [origin, origin.fork(), origin.fork()]
    batch, made = SessionBatch(sessions, cuda_graph=recorded), []
    for of_step in zip(*futures, strict=True):
        batch.step(list(of_step))
        made.append(frames_of(sessions))
    for frames, future in zip(zip(*made, strict=True), futures, strict=True):
        expected = play(random_session(model), controls + future)[0][:, :, at:]
        assert_near(torch.cat(frames, 2), expected, TOLERANCE)


@recorded_or_not
def test_a_reset_is_noticed(model, recorded):
    """With a prompt of another length, which needs other tables; and in the batch that was made before."""
    alone, together = (open_sessions(model, (2, 4)) for _ in range(2))
    batch = SessionBatch(together, cuda_graph=recorded)
    for number, controls in enumerate(controls_of(model, 2, 7)):
        if number == 2:
            torch.manual_seed(5)
            prompt = random_prompt(model)
            for session in (alone[0], together[0]):
                session.reset(seed=9, prompt=prompt)
        batch.step(controls)
        for session, control in zip(alone, controls, strict=True):
            session.step(control)
        for frame, expected in zip(frames_of(together), frames_of(alone), strict=True):
            assert_near(frame, expected, TOLERANCE)


OTHER_FIRST = (1000, 700, 300)


@pytest.mark.parametrize(
    ("lead", "first_steps", "recorded"),
    [  # every pair of values
        ((0, 0), None, False),
        ((0, 0), OTHER_FIRST, True),
        ((0, 2), None, True),
        ((0, 2), OTHER_FIRST, False),
        ((3, 1), None, False),
        ((3, 1), OTHER_FIRST, True),
    ],
    ids=str,
)
def test_blocks_of_a_wan_transformer(lead, first_steps, recorded):
    """Sessions of one that begins its run otherwise step alone as long as some are at their first step."""
    model = StreamModel(random_wan(TINY), random_model(NANO).vae, grid=(4, 6))
    sampler = FewStepSampler(steps=(1000, 500), first_steps=first_steps)

    def opened() -> list[StreamSession]:
        pool = PagePool.for_sessions(model, len(lead), sampler=sampler)
        sessions = []
        for row, before in enumerate(lead):
            prompt = torch.randn(3 + row, TINY.text_width, generator=torch.Generator().manual_seed(row))
            sessions.append(StreamSession(model, prompt=prompt, seed=row, sampler=sampler, pool=pool))
            for _ in range(before):
                sessions[-1].step()
        return sessions

    alone, together = opened(), opened()
    batch = SessionBatch(together, cuda_graph=recorded)
    for _ in range(4):
        for video, session in zip(batch.step(), alone, strict=True):
            assert video.shape == session.step().shape
        for frame, expected in zip(frames_of(together), frames_of(alone), strict=True):
            assert_near(frame, expected, TOLERANCE)


def test_the_model_runs_once_per_evaluation(pose_model, monkeypatch):
    rows = []
    forward = type(pose_model.generator).forward
    monkeypatch.setattr(
        type(pose_model.generator), "forward", lambda self, x, *rest: rows.append(len(x)) or forward(self, x, *rest)
    )
    batch = SessionBatch(open_sessions(pose_model, (0, 0, 0), nfe=2))
    batch.step([CONTROL] * 3)
    assert rows == [3, 3]


def test_replays_run_no_python(model):
    sessions = open_sessions(model, (1, 2))
    batch, calls = SessionBatch(sessions, cuda_graph=True), []
    model.generator.register_forward_hook(lambda *_: calls.append(1))
    for controls in controls_of(model, 2, 5):
        batch.step(controls)
    assert not calls


@recorded_or_not
def test_frames_that_were_given_out_stay_as_they_were(pose_model, recorded):
    sessions = open_sessions(pose_model, (1, 2))
    batch = SessionBatch(sessions, cuda_graph=recorded)
    videos, frames = batch.step([CONTROL] * 2), frames_of(sessions)
    kept = [tensor.clone() for tensor in (*videos, *frames)]
    batch.step([CONTROL] * 2)
    assert_same([*videos, *frames], kept)


@recorded_or_not
def test_autocast_around(pose_model, recorded):
    plain, inside = (open_sessions(pose_model, (1, 2)) for _ in range(2))
    batch = SessionBatch(plain)
    with torch.autocast("cpu", torch.bfloat16):
        other = SessionBatch(inside, cuda_graph=recorded)
    for controls in controls_of(pose_model, 2, 2):
        with torch.autocast("cpu", torch.bfloat16):
            videos = other.step(controls)
        assert_same(videos, batch.step(controls))
        assert not any(video.is_inference() for video in videos)


@recorded_or_not
def test_pages_are_those_of_single_steps(pose_model, recorded):
    sessions = open_sessions(pose_model, (0, 0))
    pool, free = sessions[0]._pool, []
    batch = SessionBatch(sessions, cuda_graph=recorded)
    for _ in range(12):
        batch.step([CONTROL] * 2)
        free.append(pool.free)
    assert len(set(free[4:])) == 1
    for session in sessions:
        session.close()
    assert pool.free == pool.available == pool.pages


# ---- bad input, errors ----


def test_sessions_that_cannot_be_batched_are_refused(pose_model):
    pool = pool_for(pose_model, 4, 2)
    good, closed = random_session(pose_model, pool=pool), random_session(pose_model, pool=pool)
    closed.close()
    twice = random_session(pose_model, sampler=EulerSampler(2), pool=pool)
    other_model = random_session(random_model(NANO_TEXT))
    for others, error, message in (
        ([], ValueError, "sessions: expected at least one, got none"),
        (good, TypeError, "sessions: expected a sequence, one per session, got StreamSession"),
        ([good, "x"], TypeError, "sessions: expected StreamSession, got str"),
        ([good, good], ValueError, "sessions: expected each once, got one of them twice"),
        ([good, closed], SessionClosed, r"closed by close\(\)"),
        ([good, random_session(pose_model)], ValueError, "sessions: expected sessions in one pool"),
        ([good, twice], ValueError, "sessions: expected one sampler, EulerSampler"),
        ([good, other_model], ValueError, "sessions: expected sessions of the same model object"),
    ):
        with pytest.raises(error, match=message):
            SessionBatch(others)
    assert_same([good.step(CONTROL)], [random_session(pose_model).step(CONTROL)])


def test_refused_where_nothing_is_recorded(pose_model, monkeypatch):
    monkeypatch.delitem(graph.RECORDERS, "cpu")
    sessions = open_sessions(pose_model, (1, 2))
    with pytest.raises(ValueError, match="cuda_graph: expected False: steps on a cpu are not recorded, got True"):
        SessionBatch(sessions, cuda_graph=True)
    with pytest.raises(TypeError, match="cuda_graph"):
        SessionBatch(sessions, cuda_graph="yes")


@recorded_or_not
def test_a_bad_control_changes_nothing(pose_model, recorded):
    plain, sessions = (open_sessions(pose_model, (1, 2)) for _ in range(2))
    batch = SessionBatch(sessions, cuda_graph=recorded)
    for controls, message in (
        ([CONTROL, torch.zeros(3, 3)], "control: expected"),
        ([CONTROL], "controls: expected 2, one per session, got 1"),
        (5, "controls: expected a sequence, one per session, got int"),
        (None, "control: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            batch.step(controls)
    assert [session.steps for session in sessions] == [1, 2]
    assert_same(batch.step([CONTROL] * 2), SessionBatch(plain).step([CONTROL] * 2))


@recorded_or_not
def test_a_closed_session_ends_the_batch_and_not_the_others(pose_model, recorded):
    """Its pages belong to another session by then, in which nothing may be written to them."""
    plain, sessions = (open_sessions(pose_model, (1, 2)) for _ in range(2))
    batch = SessionBatch(sessions, cuda_graph=recorded)
    batch.step([CONTROL] * 2), SessionBatch(plain).step([CONTROL] * 2)
    sessions[0].close()
    for _ in range(2):
        with pytest.raises(SessionClosed, match=r"closed by close\(\)"):
            batch.step([CONTROL] * 2)
    assert [session.steps for session in sessions] == [2, 3]
    rest = SessionBatch(sessions[1:], cuda_graph=recorded)
    assert_same(rest.step([CONTROL]), SessionBatch(plain[1:]).step([CONTROL]))


@recorded_or_not
def test_an_error_inside_closes_them_all_and_gives_the_pages_back(pose_model, monkeypatch, recorded):
    sessions = open_sessions(pose_model, (1, 2))
    pool, batch = sessions[0]._pool, SessionBatch(sessions, cuda_graph=recorded)
    monkeypatch.setattr(step, "to_device", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        batch.step([CONTROL] * 2)
    assert all(session.closed for session in sessions)
    assert pool.free == pool.available == pool.pages
    with pytest.raises(SessionClosed, match="by RuntimeError in a step together with others"):
        batch.step([CONTROL] * 2)


@recorded_or_not
def test_stolen_pages_are_noticed_before_anything_changes(pose_model, recorded):
    plain, sessions = (open_sessions(pose_model, (1, 2)) for _ in range(2))
    pool, batch, expected = sessions[0]._pool, SessionBatch(sessions, cuda_graph=recorded), SessionBatch(plain)
    batch.step([CONTROL] * 2), expected.step([CONTROL] * 2)
    taken = pool.allocate(pool.free)
    with pytest.raises(PoolExhausted):
        batch.step([CONTROL] * 2)
    with pytest.raises(PoolExhausted):
        SessionBatch(sessions, cuda_graph=True)
    pool.release(taken)
    assert_same(batch.step([CONTROL] * 2), expected.step([CONTROL] * 2))


def test_a_recording_reads_nothing_back(pose_model, monkeypatch):
    """The recorder refuses it, and the sessions are as they were."""
    plain, recorded = (open_sessions(pose_model, (1, 2)) for _ in range(2))
    attend, refused = PagedCache.attend, r"cuda_graph: recording a step failed, .*reads a value back"
    with monkeypatch.context() as broken:
        broken.setattr(PagedCache, "attend", lambda self, at, q, *rest: attend(self, at, q * q.max().item(), *rest))
        with pytest.raises(RuntimeError, match=refused):
            SessionBatch(recorded, cuda_graph=True)
    assert_same(SessionBatch(recorded).step([CONTROL] * 2), SessionBatch(plain).step([CONTROL] * 2))


def test_recording_anew_that_fails_changes_nothing(pose_model, monkeypatch):
    plain, recorded = (open_sessions(pose_model, (1, 2)) for _ in range(2))
    batch = SessionBatch(recorded, cuda_graph=True)
    for session in (plain[0], recorded[0]):
        session.reset()
        session.step(CONTROL)
    with monkeypatch.context() as broken:
        broken.setattr(step, "record", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                batch.step([CONTROL] * 2)
    assert [session.steps for session in recorded] == [1, 2]
    assert_same(batch.step([CONTROL] * 2), SessionBatch(plain).step([CONTROL] * 2))


def test_rows_that_do_not_fit_together_are_refused(pose_model):
    pool = pool_for(pose_model, 2)
    (one,) = random_session(pose_model, pool=pool)._run.rows
    (other,) = random_session(pose_model)._run.rows
    for rows, message in (
        ([], "rows: expected at least one, got none"),
        ([one, one], "rows: expected each of them once, got one of them twice"),
        ([one, other], "rows: expected rows of one pool, got rows of several"),
    ):
        with pytest.raises(ValueError, match=message):
            PagedCache(rows)
    q = torch.zeros(1, 1, one.tokens, 2, 16)
    with pytest.raises(ValueError, match="layer: expected 0"):
        PagedCache([one]).attend(99, q, q, q, None, None)
    with pytest.raises(ValueError, match="q: expected shape"):
        PagedCache([one]).attend(0, q[:, :, 1:], q, q, None, None)
    with pytest.raises(RuntimeError, match="advance: expected 1 frames after"):
        PagedCache([one]).advance(1)
