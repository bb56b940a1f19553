# SPDX-License-Identifier: Apache-2.0
"""Many streams in one engine: who goes first, who has a place, what viewers see. Time is a number of these tests."""

from __future__ import annotations

import threading

import pytest
import torch

from aapt_fast import FirstFrame
from aapt_fast.errors import EngineFull, SessionClosed
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.profiling.inputs import random_image, random_prompt
from aapt_fast.streaming.engine import StreamEngine
from aapt_fast.streaming.engine_stream import EngineStream, Shown
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import play, random_controls, random_model

PERIOD = 4 / 24


class Clock:
    """Seconds that stand still until `engine` has done everything that is due."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def settle(self, engine: StreamEngine) -> None:
        """Wait until nothing is due."""
        while engine._run(engine._due).result():
            pass

    def advance(self, engine: StreamEngine, seconds: float) -> None:
        """Move on, and wait until nothing is due."""
        self.now += seconds
        self.settle(engine)


class Steps:
    """A player that gives the controls of a list."""

    def __init__(self, controls: list[torch.Tensor]) -> None:
        self._controls = iter(controls)

    def next(self, frames: int) -> torch.Tensor:
        return next(self._controls)


@pytest.fixture(scope="module")
def model():
    return random_model(NANO)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_engine(model, clock):
    engines = []

    def make(streams: int = 2, **options) -> StreamEngine:
        engines.append(StreamEngine(options.pop("model", model), streams, clock=clock, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "aapt_fast-engine"]


def watched(stream: EngineStream) -> list[Shown]:
    """Everything that the stream shows from now on."""
    shown: list[Shown] = []
    stream.watch(shown.append)
    return shown


def expected_video(model, controls, seed=0) -> torch.Tensor:
    return play(StreamSession(model, random_image(model), seed=seed), controls)[1]


def video_of(shown: list[Shown]) -> torch.Tensor:
    return torch.cat([each.video for each in shown])


def test_streams_keep_real_time_and_show_what_sessions_show(model, clock, make_engine):
    engine, controls = make_engine(2), random_controls(model, 8)
    streams = [engine.open(random_image(model), source=Steps(controls), seed=seed, paused=True) for seed in range(2)]
    shown = [watched(stream) for stream in streams]
    for stream in streams:
        stream.resume().result()
    clock.settle(engine)
    for _ in range(5):
        clock.advance(engine, PERIOD)
    for seed in range(2):
        assert [each.step for each in shown[seed]] == [1, 2, 3, 4, 5, 6]
        assert torch.equal(video_of(shown[seed]), expected_video(model, controls[:6], seed))
        assert [each.begun for each in shown[seed]] == pytest.approx([100 + PERIOD * step for step in range(6)])
    clock.advance(engine, PERIOD / 2)
    assert len(shown[0]) == 6  # nothing is due between two deadlines


def test_streams_that_are_due_together_are_one_batch(model, clock, make_engine):
    engine, controls = make_engine(3, batch=True), random_controls(model, 4)
    streams = [engine.open(random_image(model), source=Steps(controls), seed=seed, paused=True) for seed in range(3)]
    shown = [watched(stream) for stream in streams]
    for stream in streams:
        stream.resume().result()
    clock.settle(engine)
    for _ in range(2):
        clock.advance(engine, PERIOD)
    assert any(len(key) == 3 for key in engine._batches)
    for seed in range(3):
        assert [each.step for each in shown[seed]] == [1, 2, 3]
        torch.testing.assert_close(video_of(shown[seed]), expected_video(model, controls[:3], seed), atol=1, rtol=0)
    streams[1].close().result()
    assert not any(len(key) == 3 for key in engine._batches)


def test_the_earliest_deadline_goes_first_and_a_late_stream_takes_no_steps_in_a_row(model, clock, make_engine):
    engine, order = make_engine(2), []
    first = engine.open(random_image(model), source=Steps(random_controls(model, 20)))
    clock.settle(engine)
    clock.now += PERIOD / 2
    second = engine.open(random_image(model), source=Steps(random_controls(model, 20)))
    clock.settle(engine)
    for stream in (first, second):
        stream.watch(lambda shown, name=stream.number: order.append(name))
    clock.advance(engine, 10 * PERIOD)  # a step of both took so long
    assert order == [first.number, second.number] and (first.late, second.late) == (1, 1)
    assert first.due >= clock.now and second.due >= clock.now
    clock.advance(engine, PERIOD)
    assert order == [first.number, second.number] * 2 and (first.late, second.late) == (1, 1)


def test_the_latest_control_wins_and_is_named(model, clock, make_engine):
    engine, controls = make_engine(1), random_controls(model, 4)
    stream = engine.open(FirstFrame(random_image(model)))
    shown = watched(stream)
    clock.advance(engine, PERIOD)
    assert not shown  # it waits for its first control
    assert stream.control(controls[0]) == 1
    clock.settle(engine)
    stream.control(controls[1]), stream.control(controls[2])
    clock.advance(engine, PERIOD)
    clock.advance(engine, PERIOD)
    assert [each.control for each in shown] == [1, 3, 3]
    with pytest.raises(ValueError, match="control: expected shape"):
        stream.control(controls[0][0, :5])
    clock.advance(engine, PERIOD)
    assert [each.control for each in shown] == [1, 3, 3, 3]
    taken = [controls[0], controls[2], controls[2], controls[2]]
    session = StreamSession(model, FirstFrame(random_image(model)))
    assert torch.equal(video_of(shown), play(session, taken)[1])


def test_pause_single_steps_rewind_and_fork(model, clock, make_engine):
    engine, controls = make_engine(2, history=4), random_controls(model, 3)
    stream = engine.open(random_image(model))
    shown = watched(stream)
    stream.control(controls[0])
    clock.settle(engine)
    stream.pause().result()
    clock.advance(engine, PERIOD)
    assert len(shown) == 1
    stream.control(controls[1])
    stream.step_once().result()
    clock.settle(engine)
    assert [each.step for each in shown] == [1, 2] and stream.paused
    branch = stream.fork().result()
    other = watched(branch)
    branch.rewind(1).result()
    branch.control(controls[2])
    for each in (stream, branch):
        each.resume().result()
    clock.advance(engine, PERIOD)
    assert [each.step for each in shown] == [1, 2, 3] and other[0].step == 2
    assert torch.equal(video_of(shown), expected_video(model, [controls[0], controls[1], controls[1]]))
    assert torch.equal(other[0].video, expected_video(model, [controls[0], controls[2]])[4:])
    with pytest.raises(ValueError, match="step_once: expected a stream that is paused"):
        stream.step_once().result()


def test_a_full_engine_refuses_and_parks_the_longest_idle_stream(model, clock, make_engine, tmp_path):
    engine, controls = make_engine(2, parked=1, folder=tmp_path), random_controls(model, 6)
    streams = [engine.open(random_image(model), source=Steps(controls)) for _ in range(2)]
    shown = watched(streams[0])
    clock.settle(engine)
    with pytest.raises(EngineFull, match="expected a free place, but 2 of 2 places are taken, and no paused stream"):
        engine.open(random_image(model))
    for stream in streams:
        stream.pause().result()
        clock.now += 1
    third = engine.open(random_image(model), source=Steps(controls))
    assert streams[0].parked and not streams[1].parked and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(EngineFull):
        streams[0].resume().result()  # its place is taken, and no other may be parked
    third.close().result()
    streams[0].resume().result()
    clock.settle(engine)
    assert not list(tmp_path.iterdir()) and [each.step for each in shown] == [2]
    assert torch.equal(shown[0].video, expected_video(model, controls[:2])[4:])
    streams[1].park().result()
    streams[1].close().result()
    assert not list(tmp_path.iterdir()) and engine._sessions._pool.available == engine._sessions._pool.pages // 2


def test_one_bad_stream_ends_alone(model, clock, make_engine):
    engine, controls = make_engine(3), random_controls(model, 3)
    ends = engine.open(random_image(model), source=Steps(controls[:1]))
    bad = engine.open(random_image(model), source=Steps([controls[0], controls[0][0, :5]]))
    good = engine.open(random_image(model), source=Steps(controls))
    shown = watched(good)
    good.watch(lambda shown: 1 / 0)
    clock.settle(engine)
    for _ in range(2):
        clock.advance(engine, PERIOD)
    assert len(good._viewers) == 1 and [each.step for each in shown][-1] == 3
    assert ends.ended == "its source has ended" and bad.ended.startswith(
        "its step failed: ValueError: control: expected"
    )
    for call in (lambda: ends.control(controls[0]), lambda: bad.rewind(0).result(), lambda: bad.resume().result()):
        with pytest.raises(SessionClosed, match=r"stream \d: its"):
            call()
    assert engine._count(False) == 1


def test_viewers_may_command_and_leave(model, clock, make_engine):
    engine = make_engine(1)
    stream = engine.open(random_image(model), source=Steps(random_controls(model, 4)), paused=True)
    leave = stream.watch(lambda shown: stream.pause().result())
    shown = watched(stream)
    stream.resume().result()
    clock.settle(engine)
    clock.advance(engine, PERIOD)
    assert len(shown) == 1 and stream.paused
    leave(), leave()
    stream.resume().result()
    clock.settle(engine)
    clock.advance(engine, PERIOD)
    assert len(shown) == 3


def test_a_stream_without_control_and_a_reset(clock, make_engine):
    model = random_model(NANO_TEXT)
    engine = make_engine(1, model=model, text_length=5)
    stream = engine.open(random_image(model), prompt=random_prompt(model))
    shown = watched(stream)
    clock.advance(engine, PERIOD)
    stream.reset(seed=3).result()
    clock.advance(engine, PERIOD)
    session = StreamSession(model, random_image(model), prompt=random_prompt(model), seed=3)
    assert torch.equal(shown[-1].video, session.step())


def test_close_ends_streams_and_refuses_more(model, make_engine):
    engine = make_engine(1)
    stream = engine.open(random_image(model), source=Steps([]))
    engine.close(), engine.close()
    assert stream.ended is not None and repr(engine).startswith("StreamEngine(a model, 0 of 1 places taken")
    for call in (lambda: engine.open(random_image(model)), stream.pause):
        with pytest.raises(SessionClosed, match="engine: it was closed"):
            call()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"streams": 0}, ValueError),
        ({"streams": 1.5}, TypeError),
        ({"parked": -1}, ValueError),
        ({"model": "x"}, TypeError),
    ],
)
def test_bad_arguments(model, options, error):
    name = next(iter(options))
    with pytest.raises(error, match=f"^{name}: expected"):
        StreamEngine(**{"model": model, "streams": 1, **options})


def test_a_fork_follows_a_source_of_its_own(model, clock, make_engine):
    engine, controls = make_engine(2, history=4), random_controls(model, 4)
    stream = engine.open(random_image(model), source=Steps(controls))
    clock.settle(engine)
    branch = stream.fork(Steps([controls[3]])).result()
    shown, other = watched(stream), watched(branch)
    clock.advance(engine, PERIOD)
    assert [each.step for each in (shown[0], other[0])] == [2, 2]
    assert torch.equal(other[0].video, expected_video(model, [controls[0], controls[3]])[4:])
    stream.follow(Steps([controls[2]])).result()
    clock.advance(engine, PERIOD)
    assert torch.equal(shown[1].video, expected_video(model, controls[:3])[8:])


def test_a_replay_is_opened_and_waits_for_its_controls(model, clock, make_engine, tmp_path):
    engine, controls = make_engine(2, replayable=True, history=4), random_controls(model, 3)
    stream = engine.open(random_image(model), source=Steps(controls), seed=5)
    clock.settle(engine)
    clock.advance(engine, PERIOD)
    stream.export_replay(tmp_path / "x.safetensors").result()
    again, taken = engine.open_replay(tmp_path / "x.safetensors")
    shown = watched(again)
    clock.advance(engine, PERIOD)
    assert not shown
    again.follow(Steps(list(taken))).result()
    clock.settle(engine)
    clock.advance(engine, PERIOD)
    assert torch.equal(video_of(shown), expected_video(model, controls[:2], 5))
    assert (again.steps, again.oldest_step) == (2, 0)
    with pytest.raises(ValueError, match="session: expected one opened with replayable=True"):
        make_engine(1).open(random_image(model)).export_replay(tmp_path / "y.safetensors").result()
    with pytest.raises(TypeError, match=r"^replayable: expected bool"):
        make_engine(1, replayable=1)


def test_the_end_of_a_stream_is_told_and_commands_happen_at_once(model, clock, make_engine):
    engine, told = make_engine(1, history=2), []
    stream = engine.open(random_image(model), source=Steps(random_controls(model, 5)))
    stream.tell_of_end(told.append)
    for _ in range(4):
        clock.advance(engine, PERIOD)
    assert stream.oldest_step == stream.steps - 2

    def back_and_pause() -> int:
        stream.rewind(stream.steps - 1).result()
        stream.pause().result()
        return stream.steps

    assert engine.command(back_and_pause).result() == stream.steps and stream.paused
    stream.close().result(), stream.close().result()
    assert told == ["it was closed"]


@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_the_prompt_of_a_stream_changes(clock, make_engine, policy):
    model = random_model(NANO_TEXT)
    engine, other = make_engine(1, model=model, text_length=5), random_prompt(model) * 2
    stream = engine.open(random_image(model), prompt=random_prompt(model))
    shown = watched(stream)
    clock.advance(engine, PERIOD)
    stream.set_prompt(other, policy).result()
    clock.advance(engine, PERIOD)
    session = StreamSession(model, random_image(model), prompt=random_prompt(model))
    for _ in range(stream.steps - 1):
        session.step()
    session.set_prompt(other, policy)
    assert torch.equal(shown[-1].video, session.step())
