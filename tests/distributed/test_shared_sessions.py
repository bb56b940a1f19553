# SPDX-License-Identifier: Apache-2.0
"""An engine on rank 0 whose sessions are on two ranks, on threads as ranks."""

import copy

import pytest
import torch

from aapt_fast.distributed import shared_sessions
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.shared_sessions import SharedSessions
from aapt_fast.errors import PoolExhausted, RankFailed
from aapt_fast.profiling.inputs import random_controls, random_image
from aapt_fast.streaming.batch import SessionBatch
from aapt_fast.streaming.engine import StreamEngine
from aapt_fast.testing.streams import STREAMS, random_model
from aapt_fast.testing.thread_ranks import on_ranks


@pytest.fixture(scope="module")
def model():
    return random_model(STREAMS["pose"])


def with_engine(model, lead, folder, scheme="tp", **options):
    """The result of `lead` with an engine on rank 0; rank 1 follows it to its end."""
    copies = [copy.deepcopy(model) for _ in range(2)]

    def work(transport):
        sessions = SharedSessions(shard(copies[transport.rank], transport, scheme), transport)
        if transport.rank > 0:
            sessions.follow()
            return sessions
        with StreamEngine(sessions.model, 2, sessions=sessions, folder=folder, **options) as engine:
            return lead(engine, sessions)

    result, follower = on_ranks(2, work)
    assert follower.closed
    return result


def steps(stream, controls):
    """The videos of steps that are taken one by one, as the engine's thread takes them."""
    session = stream._live()
    return torch.cat([session.step(control) for control in controls])


def test_streams_park_fork_and_come_back_from_a_replay(model, tmp_path):
    controls, image = random_controls(model, 4, seed=3), random_image(model)

    def use(engine, _=None):
        stream = engine.open(image, seed=7, paused=True)
        found = [engine.command(lambda: steps(stream, controls[:2])).result()]
        stream.park().result()
        found.append(engine.command(lambda: steps(stream, controls[2:3])).result())
        twin = stream.fork().result()
        found.append(engine.command(lambda: steps(twin, controls[3:])).result())
        twin.close().result()
        fresh = engine.open(image, seed=8, paused=True)
        found.append(engine.command(lambda: steps(fresh, controls[:2])).result())
        fresh.export_replay(tmp_path / "replay.safetensors").result()
        fresh.close().result()
        again, taken = engine.open_replay(tmp_path / "replay.safetensors", paused=True)
        found.append(engine.command(lambda: steps(again, taken)).result())
        return torch.cat(found)

    options = {"parked": 1, "replayable": True, "history": 2}
    with StreamEngine(model, 2, folder=tmp_path, **options) as engine:
        expected = use(engine)
    video = with_engine(model, use, tmp_path, **options)
    assert video.shape == expected.shape and (video.int() - expected.int()).abs().max() <= 1
    assert torch.equal(video[-8:], video[-16:-8])  # the replay
    assert not list(tmp_path.glob("*rank*"))  # what was parked is gone, on every rank


def test_errors_reach_the_caller_and_both_ranks_go_on(model, tmp_path):
    controls, image = random_controls(model, 1, seed=3), random_image(model)

    def use(engine, _):
        with pytest.raises(ValueError, match="image"):
            engine.open(torch.zeros(3, 5, 5))
        stream = engine.open(image, paused=True)
        with pytest.raises(ValueError, match="control"):
            engine.command(lambda: steps(stream, [torch.zeros(2)])).result()
        return engine.command(lambda: steps(stream, controls)).result()

    assert len(with_engine(model, use, tmp_path)) == 4


def test_a_session_that_one_rank_cannot_open_is_open_on_none(model, tmp_path, monkeypatch):
    opened = shared_sessions.SharedSession

    def refuses_seed_5(*arguments, **options):
        if options["transport"].rank == 1 and options["seed"] == 5:
            raise PoolExhausted("no page is left")
        return opened(*arguments, **options)

    monkeypatch.setattr(shared_sessions, "SharedSession", refuses_seed_5)

    def use(engine, sessions):
        with pytest.raises(RankFailed, match="rank 1: PoolExhausted: no page is left"):
            engine.open(random_image(model), seed=5, paused=True)
        pool = sessions._pool
        assert pool.available == pool.pages
        return engine.open(random_image(model), paused=True).steps

    assert with_engine(model, use, tmp_path, "sp") == 0


def test_shared_sessions_are_in_no_batch(model, tmp_path):
    def use(engine, sessions):
        stream = engine.open(random_image(model), paused=True)
        with pytest.raises(ValueError, match="sessions: expected sessions of one device each, got one that several"):
            SessionBatch([stream._live()])
        with pytest.raises(ValueError, match="batch: expected False for sessions that several ranks share, got True"):
            StreamEngine(engine.model, 1, sessions=sessions, batch=True)

    with_engine(model, use, tmp_path)
