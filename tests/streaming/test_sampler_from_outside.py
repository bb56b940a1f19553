# SPDX-License-Identifier: Apache-2.0
"""The page docs/how-to/add-a-sampler.md: its sampler and its window rule, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import aapt_fast
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.ops import philox_normal
from aapt_fast.streaming import graph
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.recorder import record_on_cpu
from aapt_fast.testing.streams import play, random_controls, random_image, random_model, random_session
from aapt_fast.testing.wan import TINY, random_wan

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-sampler.md"
STEPS = 9


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page makes, all of which runs, one block after the other."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


class Nothing(aapt_fast.Sampler):
    """A sampler whose author forgot `sample`."""


class Misshapen(aapt_fast.Sampler):
    """A sampler whose frames are half as high as those of the model."""

    def sample(self, generator, noise, recycled, control, context, caches, first):
        return generator(noise[0], recycled, control, noise.new_ones(noise.shape[1]), caches[0])[..., :2, :]


class Lost(aapt_fast.Sampler):
    """A sampler that returns no frames."""

    def sample(self, generator, noise, recycled, control, context, caches, first):
        generator(noise[0], recycled, control, noise.new_ones(noise.shape[1]), caches[0])


def test_a_sampler_without_sample_is_refused_at_opening():
    model = random_model(NANO)
    for sampler in (Nothing(), aapt_fast.Sampler()):
        named = f"sampler: expected .* Sampler with a method sample, got {type(sampler).__name__}$"
        with pytest.raises(TypeError, match=named):
            random_session(model, sampler=sampler)
        with pytest.raises(TypeError, match=named):
            aapt_fast.PagePool.for_sessions(model, 1, sampler=sampler)


def test_frames_of_another_kind_name_the_sampler():
    model = random_model(NANO)
    [control] = random_controls(model, 1)
    expected = r"frames of Misshapen.sample: expected shape \[1, 16, 1, 4, 4\], got \[1, 16, 1, 2, 4\]"
    with pytest.raises(ValueError, match=expected):
        random_session(model, sampler=Misshapen()).step(control)
    with pytest.raises(TypeError, match=r"frames of Lost.sample: expected Tensor, got NoneType"):
        random_session(model, sampler=Lost()).step(control)


def test_the_page_takes_a_step_of_the_bundled_model(page):
    assert page["frames"].shape == (4, 96, 96, 3) and page["session"].steps == 1
    assert isinstance(page["sampler"].window, page["SparsePast"])


@torch.no_grad()
def test_the_sampler_streams_what_it_says(page):
    model, sampler = random_model(NANO), page["RenoisingSampler"](level=0.3)
    controls = random_controls(model, STEPS)
    frames = play(random_session(model, sampler=sampler), controls)[0]

    session, seen = random_session(model, sampler=sampler), []
    recycled, caches = session.frame, [model.generator.new_cache() for _ in range(2)]
    step_inputs = session._step
    for step, control in enumerate(controls):
        shape = (model.config.latent_channels, *model.grid)
        numbers = torch.tensor([2 * step + 1, 2 * step + 2])
        noise = philox_normal(torch.full((2,), session.seed), numbers, shape)[:, None, :, None]
        session.step(control)
        maps = step_inputs._control.clone()  # the control that the session has shown to the generator
        clean = model.generator(noise[0], recycled, maps, torch.ones(1), caches[0])
        noised = 0.7 * clean + 0.3 * noise[1]
        recycled = model.generator(noised, recycled, maps, torch.full((1,), 0.3), caches[1])
        seen.append(recycled)
    assert_near(frames, torch.cat(seen, 2), 1e-5)


def test_forks_batches_and_recordings_work_with_it(page, monkeypatch):
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
    model, sampler = random_model(NANO), page["RenoisingSampler"]()
    controls = random_controls(model, STEPS)
    expected = play(random_session(model, sampler=sampler), controls)[0]
    recorded = play(random_session(model, sampler=sampler, cuda_graph=True), controls)[0]
    assert torch.equal(recorded, expected)

    pool = aapt_fast.PagePool.for_sessions(model, 2, sampler=sampler)
    session = random_session(model, sampler=sampler, pool=pool)
    for control in controls[:4]:
        session.step(control)
    fork = session.fork()
    batch = aapt_fast.SessionBatch([session, fork])
    for step, control in enumerate(controls[4:], 4):
        batch.step([control, control])
        for member in (session, fork):
            assert_near(member.frame, expected[:, :, step : step + 1], 1e-5)


@torch.no_grad()
def test_the_window_rule_streams_what_it_says(page):
    rule = page["SparsePast"](frames=1, window=4)
    assert [frame for frame, _ in rule.seen(11)] == [3, 5, 7, 8, 9, 10, 11]
    gone: set[int] = set()
    for newest in range(1, 40):
        seen = {frame for frame, _ in rule.seen(newest)}
        assert len(seen) <= rule.capacity and not seen & gone
        gone |= set(range(1, newest + 1)) - seen

    model = aapt_fast.StreamModel(random_wan(TINY), random_model(NANO).vae, grid=(4, 6))
    sampler, prompt = aapt_fast.FewStepSampler(steps=(1000,), window=rule), torch.randn(5, TINY.text_width)
    session = aapt_fast.StreamSession(model, random_image(model), prompt=prompt, seed=3, sampler=sampler)
    context = model.generator.encode_context(model.embed(prompt))
    cache = model.generator.new_cache(*model.grid, rule)
    sampler.remember(model.generator, session.frame, context, [cache])
    for step in range(1, 15):
        session.step()
        noise = philox_normal(torch.tensor([3]), torch.tensor([step]), (16, *model.grid))[None, :, :, None]
        made = sampler.sample(model.generator, noise, None, None, context, [cache], False)
        assert_near(session.frame, made, 1e-4)
