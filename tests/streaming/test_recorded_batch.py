# SPDX-License-Identifier: Apache-2.0
"""A batch of recorded sessions, played back by `testing.recorder`, gives what `step_together` gives, bit by bit.

The exception is a step in which a session is at its first frame: all take it alone, so it is that of single steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from aapt_fast import RecordedBatch, session_pages, step_together
from aapt_fast.errors import PoolExhausted, SessionClosed
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming import recorded_batch, recording, samplers
from aapt_fast.streaming.cache_batch import CacheBatch
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.recorder import record_on_cpu
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


@pytest.fixture(autouse=True)
def recorded_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setitem(recording.RECORDERS, "cpu", record_on_cpu)


@pytest.fixture(params=STREAMS.values(), ids=STREAMS)
def model(request) -> StreamModel:
    return random_model(request.param)


@pytest.fixture
def pose_model() -> StreamModel:
    return random_model(NANO)


def pool_for(model: StreamModel, sessions: int, nfe: int = 1):
    return shuffled_pool(model, sessions * session_pages(model.config, nfe, 9))


def open_sessions(model: StreamModel, lead: Sequence[int], recorded: bool, nfe: int = 1) -> list[StreamSession]:
    """Sessions in one pool with seeds and prompts of their own, which have taken `lead` steps."""
    torch.manual_seed(3)
    pool, sessions = pool_for(model, len(lead), nfe), []
    for row, before in enumerate(lead):
        text = random_prompt(model)
        prompt = None if text is None else text[: 2 + row]
        session = random_session(model, nfe=nfe, seed=40 + row, prompt=prompt, pool=pool, cuda_graph=recorded)
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


@pytest.mark.parametrize("nfe", [1, 2])
def test_equals_step_together_bit_by_bit(model, nfe):
    """Other seeds, prompts of other lengths, windows that fill or are full, sinks in the window and away from it."""
    lead = (1, 2, 3, 6)
    plain, recorded = (open_sessions(model, lead, way, nfe) for way in (False, True))
    batch = RecordedBatch(recorded)
    assert batch.sessions == tuple(recorded)
    for controls in controls_of(model, len(lead), 5):
        videos = batch.step(controls)
        assert all(video.shape == (4, *model.video_size, 3) and video.dtype == torch.uint8 for video in videos)
        assert_same(videos, step_together(plain, controls))
        assert_same(frames_of(recorded), frames_of(plain))
    assert [session.steps for session in recorded] == [before + 5 for before in lead]
    assert all(session.latency.count == session.steps for session in recorded)


@pytest.mark.parametrize("lead", [(0, 0), (0, 1, 5)], ids=str)
def test_first_frames_are_those_of_single_steps(model, lead):
    plain, recorded = (open_sessions(model, lead, way) for way in (False, True))
    batch = RecordedBatch(recorded)
    for number, controls in enumerate(controls_of(model, len(lead), 5)):
        videos = [session.step(control) for session, control in zip(plain, controls, strict=True)]
        made = batch.step(controls)
        if number == 0:
            assert_same(made, videos)
            assert_same(frames_of(recorded), frames_of(plain))
        for frame, expected in zip(frames_of(recorded), frames_of(plain), strict=True):
            assert_near(frame, expected, TOLERANCE)


def test_half_precision(pose_model):
    model = StreamModel(copy.deepcopy(pose_model.generator).to(torch.bfloat16), pose_model.vae)
    plain, recorded = (open_sessions(model, (1, 4), way) for way in (False, True))
    batch = RecordedBatch(recorded)
    for controls in controls_of(model, 2, 4):
        assert_same(batch.step(controls), step_together(plain, controls))


def test_steps_alone_and_in_another_batch_between(model):
    plain, recorded = (open_sessions(model, (1, 2, 4), way) for way in (False, True))
    batches = [RecordedBatch(recorded), RecordedBatch(recorded[::-1])]
    for number, controls in enumerate(controls_of(model, 3, 9)):
        if number % 3 == 2:
            for row in (2, 0, 1):
                recorded[row].step(controls[row])
                plain[row].step(controls[row])
        else:
            turn = -1 if number % 3 else 1
            assert_same(batches[number % 3].step(controls[::turn]), step_together(plain[::turn], controls[::turn]))
        assert_same(frames_of(recorded), frames_of(plain))


@pytest.mark.parametrize("at", [1, 5])
def test_forks_go_on_together(model, at):
    """Made while a batch is ready for its next step, and after a step of it, which then takes another one."""
    plain, recorded = (random_session(model, pool=pool_for(model, 3), cuda_graph=way) for way in (False, True))
    for control in random_controls(model, at):
        plain.step(control), recorded.step(control)
    alone = RecordedBatch([recorded])
    forks, plain_forks = [recorded.fork()], [plain.fork()]
    for (control,) in controls_of(model, 1, 2):
        assert_same(alone.step([control]), step_together([plain], [control]))
        if len(forks) == 1:
            forks.append(recorded.fork()), plain_forks.append(plain.fork())
    batch = RecordedBatch([recorded, *forks])
    for controls in controls_of(model, 3, 4):
        assert_same(batch.step(controls), step_together([plain, *plain_forks], controls))
    for session in (*forks, *plain_forks):
        session.close()
    for (control,) in controls_of(model, 1, 2):
        assert_same(alone.step([control]), step_together([plain], [control]))


def test_a_reset_is_noticed(model):
    """With a prompt of another length, which needs other tables; and in the batch that was made before."""
    plain, recorded = (open_sessions(model, (2, 4), way) for way in (False, True))
    batch, controls = RecordedBatch(recorded), controls_of(model, 2, 7)
    for number, of_step in enumerate(controls):
        if number == 2:
            torch.manual_seed(5)
            prompt = random_prompt(model)
            for session in (plain[0], recorded[0]):
                session.reset(seed=9, prompt=prompt)
        videos = batch.step(of_step)
        if number == 2:
            expected = [session.step(control) for session, control in zip(plain, of_step, strict=True)]
        else:
            expected = step_together(plain, of_step)
        assert_same(videos, expected)
        assert_same(frames_of(recorded), frames_of(plain))


def test_a_session_in_a_pool_of_its_own(model):
    controls = random_controls(model, 6)
    session = random_session(model, cuda_graph=True)
    batch, expected = RecordedBatch([session]), play(random_session(model), controls)[1].split(4)
    for _ in range(2):
        for control, video in zip(controls, expected, strict=True):
            assert_same(batch.step([control]), [video])
        session.reset()


def test_replays_run_no_python(model):
    recorded = open_sessions(model, (1, 2), True)
    batch, calls = RecordedBatch(recorded), []
    model.generator.register_forward_hook(lambda *_: calls.append(1))
    for controls in controls_of(model, 2, 5):
        batch.step(controls)
    assert not calls


def test_frames_that_were_given_out_stay_as_they_were(pose_model):
    recorded = open_sessions(pose_model, (1, 2), True)
    batch = RecordedBatch(recorded)
    videos, frames = batch.step([CONTROL] * 2), frames_of(recorded)
    kept = [tensor.clone() for tensor in (*videos, *frames)]
    batch.step([CONTROL] * 2)
    assert_same([*videos, *frames], kept)


def test_autocast_around(pose_model):
    plain, recorded = (open_sessions(pose_model, (1, 2), way) for way in (False, True))
    with torch.autocast("cpu", torch.bfloat16):
        batch = RecordedBatch(recorded)
    for controls in controls_of(pose_model, 2, 2):
        with torch.autocast("cpu", torch.bfloat16):
            videos = batch.step(controls)
        assert_same(videos, step_together(plain, controls))
        assert not any(video.is_inference() for video in videos)


def test_pages_are_those_of_single_steps(pose_model):
    recorded = open_sessions(pose_model, (0, 0), True)
    pool, free, batch = recorded[0]._pool, [], RecordedBatch(recorded)
    for _ in range(12):
        batch.step([CONTROL] * 2)
        free.append(pool.free)
    assert len(set(free[4:])) == 1
    for session in recorded:
        session.close()
    assert pool.free == pool.available == pool.pages


# ---- bad input, errors ----


def test_sessions_that_cannot_be_batched_are_refused(pose_model):
    pool = pool_for(pose_model, 4, 2)

    def recorded(**options) -> StreamSession:
        return random_session(pose_model, cuda_graph=True, pool=pool, **options)

    good, closed, twice = recorded(), recorded(), recorded(nfe=2)
    closed.close()
    other_model = random_session(random_model(NANO_TEXT), cuda_graph=True)
    kind = "sessions: expected sessions of an AAPT generator with cuda_graph=True, got one with a FrameSampler"
    for others, error, message in (
        ([], ValueError, "sessions: expected at least one, got none"),
        (good, TypeError, "sessions: expected a sequence, one per session, got StreamSession"),
        ([good, "x"], TypeError, "sessions: expected StreamSession, got str"),
        ([good, good], ValueError, "sessions: expected each once, got one of them twice"),
        ([good, closed], SessionClosed, r"closed by close\(\)"),
        ([good, random_session(pose_model, cuda_graph=True)], ValueError, "sessions: expected sessions in one pool"),
        ([good, twice], ValueError, "1 evaluations per step, got 2"),
        ([good, other_model], ValueError, "sessions: expected sessions of the same model object"),
        ([good, random_session(pose_model)], ValueError, kind),
    ):
        with pytest.raises(error, match=message):
            RecordedBatch(others)
    with pytest.raises(ValueError, match=r"RecordedBatch takes recorded ones\), got one with a RecordedFrameSampler"):
        step_together([good], [CONTROL])
    assert_same([good.step(CONTROL)], [random_session(pose_model).step(CONTROL)])


def test_a_bad_control_changes_nothing(pose_model):
    plain, recorded = (open_sessions(pose_model, (1, 2), way) for way in (False, True))
    batch = RecordedBatch(recorded)
    for controls, message in (
        ([CONTROL, torch.zeros(3, 3)], "control: expected"),
        ([CONTROL], "controls: expected 2, one per session, got 1"),
        (5, "controls: expected a sequence, one per session, got int"),
        (None, "control: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            batch.step(controls)
    assert [session.steps for session in recorded] == [1, 2]
    assert_same(batch.step([CONTROL] * 2), step_together(plain, [CONTROL] * 2))


def test_a_closed_session_ends_the_batch_and_not_the_others(pose_model):
    """Its pages belong to somebody else by then, who must not find anything written to them."""
    plain, recorded = (open_sessions(pose_model, (1, 2), way) for way in (False, True))
    batch = RecordedBatch(recorded)
    batch.step([CONTROL] * 2), step_together(plain, [CONTROL] * 2)
    recorded[0].close()
    for _ in range(2):
        with pytest.raises(SessionClosed, match=r"closed by close\(\)"):
            batch.step([CONTROL] * 2)
    assert [session.steps for session in recorded] == [2, 3]
    assert_same(RecordedBatch(recorded[1:]).step([CONTROL]), step_together(plain[1:], [CONTROL]))


@pytest.mark.parametrize("first", [True, False])
def test_an_error_inside_closes_them_all_and_gives_the_pages_back(pose_model, monkeypatch, first):
    recorded = open_sessions(pose_model, (1, 0 if first else 2), True)
    pool, batch = recorded[0]._pool, RecordedBatch(recorded)
    monkeypatch.setattr(samplers, "philox_normal", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        batch.step([CONTROL] * 2)
    assert all(session.closed for session in recorded)
    assert pool.free == pool.available == pool.pages
    with pytest.raises(SessionClosed, match="by RuntimeError in a step together with others"):
        batch.step([CONTROL] * 2)


def test_stolen_pages_are_noticed_before_anything_changes(pose_model):
    plain, recorded = (open_sessions(pose_model, (1, 2), way) for way in (False, True))
    pool, batch = recorded[0]._pool, RecordedBatch(recorded)
    batch.step([CONTROL] * 2), step_together(plain, [CONTROL] * 2)
    taken = pool.allocate(pool.free)
    for take in (lambda: batch.step([CONTROL] * 2), lambda: RecordedBatch(recorded)):
        with pytest.raises(PoolExhausted):
            take()
    pool.release(taken)
    assert_same(batch.step([CONTROL] * 2), step_together(plain, [CONTROL] * 2))


def test_a_recording_reads_nothing_back(pose_model, monkeypatch):
    """The recorder refuses it, and the sessions are as they were."""
    plain, recorded = (open_sessions(pose_model, (1, 2), way) for way in (False, True))
    attend, refused = CacheBatch.attend, r"cuda_graph: recording a step failed, .*reads a value back"
    with monkeypatch.context() as broken:
        broken.setattr(CacheBatch, "attend", lambda self, at, q, *rest: attend(self, at, q * q.max().item(), *rest))
        with pytest.raises(RuntimeError, match=refused):
            RecordedBatch(recorded)
    assert_same(RecordedBatch(recorded).step([CONTROL] * 2), step_together(plain, [CONTROL] * 2))


def test_recording_anew_that_fails_changes_nothing(pose_model, monkeypatch):
    plain, recorded = (open_sessions(pose_model, (1, 2), way) for way in (False, True))
    batch = RecordedBatch(recorded)
    for session in (plain[0], recorded[0]):
        session.reset()
        session.step(CONTROL)
    with monkeypatch.context() as broken:
        broken.setattr(recorded_batch, "record", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                batch.step([CONTROL] * 2)
    assert [session.steps for session in recorded] == [1, 2]
    assert_same(batch.step([CONTROL] * 2), step_together(plain, [CONTROL] * 2))
