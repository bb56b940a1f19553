# SPDX-License-Identifier: Apache-2.0
"""Sessions whose prompt changes on the way: the past stays, the next steps see the new one."""

from __future__ import annotations

import pytest
import torch

from aapt_fast import PagePool, SessionBatch, StreamModel, StreamSession, WindowRule
from aapt_fast.errors import PoolExhausted, SessionClosed
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.testing.streams import play, random_model, random_prompt, random_session
from aapt_fast.testing.wan import TINY, random_wan

pytestmark = pytest.mark.usefixtures("recorded_on_the_cpu")


@pytest.fixture(scope="module")
def wan() -> StreamModel:
    return StreamModel(random_wan(TINY), random_model(NANO).vae, grid=(4, 6))


def open_wan(model: StreamModel, prompt: torch.Tensor, **options) -> StreamSession:
    sampler = FewStepSampler(steps=(1000, 500), window=WindowRule(1, 2, 1))
    return StreamSession(model, prompt=prompt, sampler=sampler, **options)


def prompts(model: StreamModel, *lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, model.config.text_width, generator=generator) for length in lengths]


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("kind", ["aapt", "wan"])
def test_the_same_prompt_changes_nothing_and_another_one_the_next_steps(kind, recorded, wan):
    model = random_model(NANO_TEXT) if kind == "aapt" else wan
    one, other = prompts(model, 5, 5)

    def opened(prompt: torch.Tensor, **options) -> StreamSession:
        if kind == "wan":
            return open_wan(model, prompt, **options)
        return random_session(model, prompt=prompt, **options)

    plain = opened(one)
    expected = play(plain, [None] * 6)[1]
    same, changed = (opened(one, cuda_graph=recorded) for _ in range(2))
    first = [play(session, [None] * 3)[1] for session in (same, changed)]
    same.set_prompt(one)
    changed.set_prompt(other)
    then = [play(session, [None] * 3)[1] for session in (same, changed)]
    assert torch.equal(torch.cat([first[0], then[0]]), expected) and torch.equal(first[1], first[0])
    assert not torch.equal(then[1], then[0])
    changed.reset()  # to the prompt of the last change
    again = opened(other)
    assert torch.equal(play(changed, [None] * 2)[1], play(again, [None] * 2)[1])


def test_the_next_step_is_that_of_a_session_with_this_past_and_that_prompt():
    """Keys of past frames, pages of the new text: what a growing cache of the whole would hold."""
    model = random_model(NANO_TEXT)
    one, other = prompts(model, 5, 3)
    session = random_session(model, prompt=one)
    play(session, [None] * 2)
    fork = session.fork()
    session.set_prompt(other)
    row, own = session._run.rows[0], random_session(model, prompt=other)._run.rows[0]
    assert row.text.valid == own.text.valid == [3]
    for (mine, _), (theirs, _) in zip(row.pool.by_layer, own.pool.by_layer, strict=True):
        assert torch.equal(mine[row.text.ids, :3], theirs[own.text.ids, :3])
    assert row._past.keys() == fork._run.rows[0]._past.keys()
    session.step()
    fork.set_prompt(other)
    fork.step()
    assert torch.equal(session.frame, fork.frame)


def test_files_batches_and_the_way_back(tmp_path):
    model = random_model(NANO_TEXT)
    one, other = prompts(model, 5, 5)
    pool = PagePool.for_sessions(model, 3, text_length=5, history=2)
    sessions = [random_session(model, prompt=one, pool=pool, history=2, replayable=True) for _ in range(2)]
    batch = SessionBatch(sessions)
    batch.step(), batch.step()
    sessions[0].set_prompt(other)
    batch.step()
    single = random_session(model, prompt=one)
    play(single, [None] * 2)
    single.set_prompt(other)
    single.step()
    torch.testing.assert_close(sessions[0].frame, single.frame)
    with pytest.raises(ValueError, match=r"^to_step: expected 2\.\.3, got 1$"):
        sessions[0].rewind(1)
    sessions[0].rewind(2)
    sessions[0].save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="session: expected one opened with replayable=True"):
        sessions[0].export_replay(tmp_path / "y.safetensors")
    loaded = StreamSession.load(tmp_path / "x.safetensors", model)
    assert torch.equal(loaded.step(), sessions[0].step())
    for session in sessions:
        session.close()
    assert pool.available == pool.pages


def test_a_prompt_that_does_not_fit_changes_nothing():
    model = random_model(NANO_TEXT)
    short, long = prompts(model, 5, 100)  # a page, two pages
    session, plain = (random_session(model, prompt=short) for _ in range(2))
    play(session, [None] * 2), play(plain, [None] * 2)
    with pytest.raises(PoolExhausted):
        session.set_prompt(long)
    for bad, error in ((torch.randn(3, 7), ValueError), (7, TypeError), ("words", ValueError)):
        with pytest.raises(error, match=r"^prompt: expected"):
            session.set_prompt(bad)
    assert torch.equal(session.step(), plain.step())
    session.close()
    with pytest.raises(SessionClosed):
        session.set_prompt(short)
    with pytest.raises(ValueError, match="prompt: expected none: this model has no text stream"):
        random_session(random_model(NANO)).set_prompt(random_prompt(model))
