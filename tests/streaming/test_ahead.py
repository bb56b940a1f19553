# SPDX-License-Identifier: Apache-2.0
"""Loops that compute the next frames ahead: the same video, whatever happens between two steps."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest
import torch

from aapt_fast.errors import SessionClosed
from aapt_fast.models.sampling import Sampler
from aapt_fast.ops.calls import observe_ops
from aapt_fast.testing.streams import STREAMS, play, random_controls, random_model, random_session


@pytest.fixture(autouse=True)
def one_torch_thread():
    """In float32 torch's matrix products may round differently with another number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Player:
    """Poses that depend on how often `play` was called, and how many frames were taken."""

    def __init__(self, steps: int = 10**6) -> None:
        self.taken, self.played, self.steps = 0, 0, steps

    def next(self, frames: int) -> torch.Tensor:
        if self.taken == self.steps * frames:
            raise StopIteration
        self.taken += frames
        generator = torch.Generator().manual_seed(100 * self.played + self.taken)
        return torch.rand(frames, 19, 3, generator=generator)


def expected_video(model, steps: int) -> torch.Tensor:
    player = Player()
    return play(random_session(model), [player.next(4) for _ in range(steps)])[1]


@pytest.mark.parametrize("kind", list(STREAMS))
def test_the_video_is_that_of_steps_alone(kind):
    """Past the wrap of the window, for every kind of stream that a CPU runs."""
    model = random_model(STREAMS[kind])
    controls = random_controls(model, 9)
    expected = play(random_session(model), controls)[1]
    video = list(random_session(model).frames(controls if model.control is not None else None, 9, ahead=True))
    assert torch.equal(torch.cat(video), expected)


def test_a_player_is_obeyed_one_step_later(pose_model):
    player, twin, video = Player(), Player(), []
    session = random_session(pose_model)
    for frames in session.frames(player, 4, ahead=True):
        video.append(frames)
        assert session.steps == len(video)
        if len(video) == 2:
            player.played += 1
    assert player.taken == 16  # no control was taken for a step that no video shows
    controls = [twin.next(4) for _ in range(3)]
    twin.played += 1
    assert torch.equal(torch.cat(video), play(random_session(pose_model), [*controls, twin.next(4)])[1])


@pytest.mark.parametrize("source", [Player, lambda: iter(random_controls(random_model(STREAMS["pose"]), 9))])
def test_a_control_that_a_loop_has_not_used_comes_first_in_the_next_one(pose_model, source):
    mine, twin, session, video = source(), source(), random_session(pose_model), []
    for count, ahead in ((2, True), (1, True), (2, False), (3, True)):
        for frames in session.frames(mine, ahead=ahead):
            video.append(frames)
            count -= 1
            if not count:
                break
    expected = list(itertools.islice(random_session(pose_model).frames(twin), 8))
    assert torch.equal(torch.cat(video), torch.cat(expected))


def test_whatever_else_is_done_with_the_session_takes_back_what_is_ahead(pose_model):
    """A step, a fork, a batch and a reset inside of the loop see the state after the last video."""
    controls = random_controls(pose_model, 8)
    plain = random_session(pose_model)
    expected = play(plain, controls[:3])[1]
    session, video = random_session(pose_model), []
    loop = session.frames(iter(controls[:2] + controls[3:]), ahead=True)
    video += [next(loop), next(loop), session.step(controls[2])]
    assert torch.equal(torch.cat(video), expected)
    fork, twin = session.fork(), plain.fork()
    assert torch.equal(next(loop), plain.step(controls[3]))
    assert torch.equal(fork.step(controls[5]), twin.step(controls[5]))
    session.reset()
    again = random_session(pose_model)
    assert torch.equal(next(loop), again.step(controls[4])) and session.steps == 1


def test_pages_that_are_ahead_are_free_after_the_loop(pose_model):
    session = random_session(pose_model)
    loop = session.frames(Player(), ahead=True)
    next(loop)
    ahead = session._pool.free
    loop.close()
    assert session._pool.free > ahead and next(loop, None) is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("aapt_fast-")]


@pytest.mark.parametrize("ahead", [True, False])
def test_the_end_of_a_player_ends_the_video(pose_model, ahead):
    video = list(random_session(pose_model).frames(Player(steps=3), ahead=ahead))
    assert torch.equal(torch.cat(video), expected_video(pose_model, 3))


def test_a_bad_control_is_raised_where_its_step_is_wanted_and_changes_nothing(pose_model):
    good = random_controls(pose_model, 4)
    session = random_session(pose_model)
    loop, video = session.frames(iter([good[0], good[1][0, :5], good[2]]), ahead=True), []
    video.append(next(loop))
    with pytest.raises(ValueError, match="control: expected shape"):
        next(loop)
    assert session.steps == 1 and not session.closed and next(loop, None) is None
    video.append(session.step(good[1]))
    assert torch.equal(torch.cat(video), play(random_session(pose_model), good[:2])[1])


def test_an_error_of_the_generator_closes_the_session(pose_model):
    class Fails(Sampler):
        def sample(self, generator, noise, recycled, control, context, caches, first):
            raise ZeroDivisionError

    session = random_session(pose_model, sampler=Fails())
    with pytest.raises(ZeroDivisionError):
        next(session.frames(Player(), ahead=True))
    with pytest.raises(SessionClosed, match="closed by ZeroDivisionError in step 1"):
        session.step(random_controls(pose_model, 1)[0])


def test_ctrl_c_while_a_control_is_taken_ends_the_loop_at_once(pose_model):
    """The decoder of the step before ends first: nothing is released under its hands."""
    controls = random_controls(pose_model, 2)

    def source():
        yield controls[0]
        raise KeyboardInterrupt

    session, decoded = random_session(pose_model), []
    session.on_stage = lambda stage: stage == "decode" and decoded.append(time.sleep(0.2) or session.closed)
    with pytest.raises(KeyboardInterrupt):
        next(session.frames(source(), ahead=True))
    assert decoded == [False] and session.closed


def test_close_in_the_loop_ends_it(pose_model):
    session = random_session(pose_model)
    loop = session.frames(Player(), ahead=True)
    next(loop)
    session.close()
    with pytest.raises(SessionClosed):
        next(loop)


def test_an_event_loop_serves_others_during_a_step(pose_model):
    """Another task runs between the begin and the end of each step, which waits for it."""
    session, ran = random_session(pose_model), threading.Event()
    session.on_stage = lambda stage: ran.wait(20) or pytest.fail("the event loop was blocked")

    async def others() -> None:
        while True:
            ran.set()
            await asyncio.sleep(0.001)

    async def videos(ahead: bool) -> list[torch.Tensor]:
        task = asyncio.ensure_future(others())
        video = [frames async for frames in session.frames(Player(), 3, ahead=ahead)]
        task.cancel()
        return video

    expected = expected_video(pose_model, 3)
    assert torch.equal(torch.cat(asyncio.run(videos(False))), expected)
    session.reset()
    assert torch.equal(torch.cat(asyncio.run(videos(True))), expected)


def test_ops_are_observed_and_the_callers_threads_stay_its_own(pose_model):
    torch.set_num_threads(3)
    with observe_ops() as calls:
        next(random_session(pose_model).frames(Player(), ahead=True))
    assert {"paged_attention", "kv_write", "causal_conv3d"} <= calls.counts.keys()
    others = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 3 and others == [3]


def test_ahead_is_a_choice_of_yes_or_no_on_a_cpu(pose_model):
    with pytest.raises(TypeError, match="ahead: expected bool, got int"):
        random_session(pose_model).frames(Player(), ahead=1)
