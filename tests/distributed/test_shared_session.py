# SPDX-License-Identifier: Apache-2.0
"""One stream that rank 0 leads, on threads as ranks."""

import copy

import pytest
import torch

from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.shared_session import SharedSession
from aapt_fast.errors import RanksDiffer, SessionClosed
from aapt_fast.profiling.inputs import random_controls, random_image
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import STREAMS, random_model
from aapt_fast.testing.thread_ranks import on_ranks


@pytest.fixture(scope="module")
def model():
    return random_model(STREAMS["pose"])


def on_two(model, lead, *, follow=SharedSession.follow, opened=None, **options):
    """The result of `lead` with the session of rank 0, while rank 1 follows; for both ranks."""
    copies = [copy.deepcopy(model) for _ in range(2)]
    image = random_image(model)

    def work(transport):
        own = shard(copies[transport.rank], transport, whole_decoder=False)
        options_here = {"transport": transport, **options}
        session = opened(own, options_here) if opened else SharedSession(own, image, seed=7, history=4, **options_here)
        with session:
            return lead(session) if transport.rank == 0 else follow(session)

    return on_ranks(2, work)[0]


def test_rank_0_alone_decides(model):
    controls = random_controls(model, 5, seed=3)

    def use(session):
        first = [session.step(control) for control in controls[:3]]
        with pytest.raises(ValueError, match="control"):
            session.step(torch.zeros(2))
        session.rewind(1)
        with session.fork() as fork:
            branch = fork.step(controls[3])
        again = session.step(controls[1])
        session.reset(seed=8)
        return torch.cat([*first, branch, again, session.step(controls[4])])

    with StreamSession(model, random_image(model), seed=7, history=4) as alone:
        expected = use(alone)
    video = on_two(model, use)
    assert (video.int() - expected.int()).abs().max() <= 1  # a value between two numbers may be rounded otherwise


def test_a_closed_session_says_so_and_waits_for_nobody(model):
    def use(session):
        session.close()
        with pytest.raises(SessionClosed):
            session.step(random_controls(model, 1)[0])
        with pytest.raises(SessionClosed):
            session.fork()
        session.close()
        return True

    assert on_two(model, use)


def test_files_of_all_ranks_go_on(model, tmp_path):
    controls = random_controls(model, 3, seed=3)

    def saved(session):
        session.step(controls[0])
        session.save(tmp_path / "walk.safetensors")
        return session.step(controls[1])

    expected = on_two(model, saved)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["walk.rank-0-of-2.safetensors", "walk.rank-1-of-2.safetensors"]
    load = lambda own, options: SharedSession.load(tmp_path / "walk.safetensors", own, **options)  # noqa: E731
    assert torch.equal(on_two(model, lambda session: session.step(controls[1]), opened=load), expected)


class Damaged(SharedSession):
    """A session of which one number differs on rank 1 from step 2 on."""

    def _compare(self):
        if self.transport.rank == 1:
            self._run.frame = self._run.frame + 1
        super()._compare()


def test_ranks_with_other_frames_are_found(model):
    def lead(session):
        with pytest.raises(RanksDiffer, match=r"step 2 are not those of rank 0 on ranks \[1\]"):
            for control in random_controls(model, 2, seed=3):
                session.step(control)
        return session.closed

    def follow(session):
        with pytest.raises(RanksDiffer):
            session.follow()

    image = random_image(model)
    opened = lambda own, options: Damaged(own, image, check_every=2, **options)  # noqa: E731
    assert on_two(model, lead, follow=follow, opened=opened)


def test_ranks_that_were_given_different_things_all_hear_of_it(model):
    copies = [copy.deepcopy(model) for _ in range(2)]
    said = on_ranks(2, lambda transport: message_of(copies[transport.rank], transport, ("sp", "tp")[transport.rank]))
    assert said == ["scheme: expected the same on every rank, got sp on rank 0, tp on rank 1"] * 2


def test_heads_that_ranks_do_not_divide_are_refused_everywhere(model):
    copies = [copy.deepcopy(model) for _ in range(3)]
    said = on_ranks(3, lambda transport: message_of(copies[transport.rank], transport, "sp"))
    assert said == ["ranks: expected a number that divides 2 heads: 1, 2, got 3"] * 3
    assert not copies[0].generator.blocks[0]._forward_pre_hooks


def message_of(model, transport, scheme):
    with pytest.raises(ValueError) as raised:
        shard(model, transport, scheme)
    return str(raised.value)
