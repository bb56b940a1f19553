# SPDX-License-Identifier: Apache-2.0
"""`set_prompt(policy="recompute")`: the caches are those of a run that had the new prompt from the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from aapt_fast import EulerSampler, FewStepSampler, PagePool, Sampler, StreamModel, StreamSession, WindowRule
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.profiling.inputs import random_image
from aapt_fast.testing.streams import play, random_controls, random_model, random_prompt, random_session
from aapt_fast.testing.wan import TINY, random_wan

pytestmark = pytest.mark.usefixtures("recorded_on_the_cpu")
MAPS = dataclasses.replace(NANO_TEXT, control=ControlConfig(kind="maps", channels=3, with_previous=True))
RULES = {
    "aapt": None,
    "aapt, maps": None,
    "wan": WindowRule(2, 2, 3),
    "wan, image": WindowRule(2, 2, 3),
    "wan, moved": WindowRule(1, 2, 1, "saturated"),
}
KINDS = pytest.mark.parametrize("kind", RULES)


def model_of(kind: str, layers: int = 2) -> StreamModel:
    """A model whose window holds two frames; with one layer, keys do not depend on the frames before."""
    if kind.startswith("aapt"):
        config = MAPS if "maps" in kind else NANO_TEXT
        return random_model(dataclasses.replace(config, layers=layers))
    generator = random_wan(dataclasses.replace(TINY, layers=layers))
    return StreamModel(generator, random_model(NANO).vae, grid=(4, 6))


def sampler_of(kind: str, nfe: int = 2) -> Sampler:
    return EulerSampler(nfe) if "aapt" in kind else FewStepSampler(steps=(1000, 500), window=RULES[kind])


def two_prompts(model: StreamModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, model.config.text_width, generator=generator) for _ in range(2)]


def opened(kind: str, model: StreamModel, prompt: Tensor, sampler: Sampler | None = None, **options) -> StreamSession:
    options |= {"prompt": prompt, "sampler": sampler or sampler_of(kind)}
    if "aapt" in kind:
        return random_session(model, **options)
    return StreamSession(model, random_image(model) if "image" in kind else None, seed=7, **options)


@dataclass(frozen=True)
class Forced(EulerSampler):
    """Shows given frames, one per step, whatever it has computed."""

    shown: list[Tensor] = field(default_factory=list, repr=False)

    def sample(self, *arguments) -> Tensor:
        super().sample(*arguments)
        return self.shown.pop(0)


@dataclass(frozen=True)
class ForcedBlocks(FewStepSampler):
    """Likewise, for blocks: takes the given frames into the cache."""

    shown: list[Tensor] = field(default_factory=list, repr=False)

    def sample(self, generator, noise, recycled, control, context, caches, first) -> Tensor:
        self.remember(generator, self.shown[0], context, caches)
        return self.shown.pop(0)


def with_frames(kind: str, model: StreamModel, prompt: Tensor, nfe: int, frames: list[Tensor]) -> StreamSession:
    """A session that has had this prompt from its start, and shows these frames."""
    if "aapt" in kind:
        sampler: Sampler = Forced(nfe, shown=list(frames))
    else:
        sampler = ForcedBlocks(steps=(1000, 500), window=RULES[kind], shown=list(frames))
    return opened(kind, model, prompt, sampler)


def switched(session: StreamSession, controls: Sequence, prompt: Tensor) -> list[Tensor]:
    """Take a step per control, then recompute under a prompt; returns the frames of each step."""
    frames = []
    for control in controls:
        session.step(control)
        frames.append(session.frame)
    session.set_prompt(prompt, policy="recompute")
    return frames


def keys_and_values(session: StreamSession) -> list[dict[int, tuple[Tensor, Tensor]]]:
    """Per cache, by frame that the next step sees, the contents of its pages."""
    found = []
    for row in session._run.rows:
        newest = row.next_frame + row.rule.frames - 1
        seen = [frame for frame, _ in row.rule.seen(newest) if frame < row.next_frame]
        outside = row._outside(newest)  # their keys move in every step
        valid = torch.arange(row.tokens)
        k, v = ({f: pool[:, row._past[f]].flatten(1, 2)[:, valid] for f in seen} for pool in (row.pool.k, row.pool.v))
        found.append({frame: (v[frame] if frame in outside else k[frame], v[frame]) for frame in seen})
    return found


def assert_same_caches(one: StreamSession, other: StreamSession) -> None:
    for mine, theirs in zip(keys_and_values(one), keys_and_values(other), strict=True):
        assert mine.keys() == theirs.keys() and len(mine) > 1
        for frame, tensors in theirs.items():
            assert all(torch.equal(a, b) for a, b in zip(mine[frame], tensors, strict=True)), frame
    for mine, theirs in zip(one._run.rows, other._run.rows, strict=True):
        assert torch.equal(mine.unrotated, theirs.unrotated) and mine.next_frame == theirs.next_frame


@pytest.mark.parametrize(("depth", "steps"), [(2, 2), (1, 7)], ids=["filling", "moved on"])
@KINDS
def test_the_caches_are_those_of_a_run_with_the_new_prompt(kind, depth, steps):
    """While the window fills; and of one layer and evaluation, whose keys no earlier frame has a say in, far beyond."""
    model, sampler = model_of(kind, depth), sampler_of(kind, depth)
    before, after = two_prompts(model)
    controls = random_controls(model, steps + 3)
    session = opened(kind, model, before, sampler)
    frames = switched(session, controls[:steps], after)
    expected = with_frames(kind, model, after, depth, frames)
    play(expected, controls[:steps])
    assert_same_caches(session, expected)
    expected._step.sampler = session.sampler  # from here on it shows its own
    for control in controls[steps:]:
        assert torch.equal(session.step(control), expected.step(control))


@KINDS
def test_it_differs_from_keeping_and_the_same_prompt_changes_nothing(kind):
    model = model_of(kind)
    before, after = two_prompts(model)
    kept, recomputed, same, plain = (opened(kind, model, before) for _ in range(4))
    controls = random_controls(model, 3)
    for session in (kept, recomputed, same, plain):
        play(session, controls[:2])
    kept.set_prompt(after)
    recomputed.set_prompt(after, policy="recompute")
    same.set_prompt(before, policy="recompute")
    assert torch.equal(same.step(controls[2]), plain.step(controls[2])) and torch.equal(same.frame, plain.frame)
    recomputed.step(controls[2]), kept.step(controls[2])
    assert not torch.equal(recomputed.frame, kept.frame)


@pytest.mark.parametrize(
    ("kind", "recorded"),
    [("aapt", True), ("aapt, maps", False), ("wan", False), ("wan, image", False), ("wan, moved", True)],
    ids=lambda value: {True: "recorded", False: "plain"}.get(value, value),
)
def test_forks_files_and_the_way_back(kind, recorded, tmp_path):
    """In a pool that has no page to spare, behind a window that has moved on."""
    model, sampler = model_of(kind), sampler_of(kind)
    before, after = two_prompts(model)
    controls = random_controls(model, 10)
    pool = PagePool.for_sessions(model, 2, sampler=sampler, text_length=5, history=2)
    session = opened(kind, model, before, pool=pool, history=2, cuda_graph=recorded)
    play(session, controls[:6])
    session.save(tmp_path / "before.safetensors")
    fork = session.fork()
    untouched = [{frame: [x.clone() for x in kv] for frame, kv in row.items()} for row in keys_and_values(fork)]
    session.set_prompt(after, policy="recompute")
    for row, copies in zip(keys_and_values(fork), untouched, strict=True):
        assert all(torch.equal(a, b) for frame in row for a, b in zip(row[frame], copies[frame], strict=True))
    loaded = StreamSession.load(tmp_path / "before.safetensors", model, sampler=sampler)
    for other in (fork, loaded):
        other.set_prompt(after, policy="recompute")
        assert_same_caches(other, session)
    with pytest.raises(ValueError, match=r"^to_step: expected 6\.\.6, got 5$"):
        session.rewind(5)
    session.save(tmp_path / "after.safetensors")
    expected = play(session, controls[6:9])[1]
    assert torch.equal(play(fork, controls[6:9])[1], expected)
    again = StreamSession.load(tmp_path / "after.safetensors", model, sampler=sampler)
    assert torch.equal(play(again, controls[6:9])[1], expected)
    session.rewind(7)
    session.set_prompt(before, policy="recompute")
    fork.close()
    assert_same_caches(session, _went_back(kind, model, tmp_path / "after.safetensors", controls[6], before))
    session.close()
    assert pool.available == pool.pages


def _went_back(kind: str, model: StreamModel, path, control, prompt: Tensor) -> StreamSession:
    session = StreamSession.load(path, model, sampler=sampler_of(kind))
    session.step(control)
    session.set_prompt(prompt, policy="recompute")
    return session


def test_only_steps_that_are_seen_are_kept():
    model = model_of("aapt")
    session = opened("aapt", model, two_prompts(model)[0])
    play(session, [None] * 8)
    assert sorted(session._run.past.made) == [0, 1, 6, 7, 8]  # the sink, two in the window, and those before them
    assert random_session(random_model(NANO))._run.past is None  # without a text stream


@dataclass(frozen=True)
class FromOutside(EulerSampler):
    """A sampler that does not say how past frames are evaluated again."""

    recompute = Sampler.recompute


def test_what_cannot_be_recomputed_is_refused():
    model = model_of("aapt")
    before, after = two_prompts(model)
    session, plain = (opened("aapt", model, before, FromOutside()) for _ in range(2))
    play(session, [None] * 2), play(plain, [None] * 2)
    message = r"^policy: expected 'keep': FromOutside does not override Sampler\.recompute, got 'recompute'$"
    with pytest.raises(ValueError, match=message):
        session.set_prompt(after, policy="recompute")
    with pytest.raises(ValueError, match=r"^policy: expected 'keep' or 'recompute', got 'drop'$"):
        session.set_prompt(after, policy="drop")
    assert torch.equal(session.step(), plain.step())
    with pytest.raises(ValueError, match="prompt: expected none: this model has no text stream"):
        random_session(random_model(NANO)).set_prompt(random_prompt(model), policy="recompute")
