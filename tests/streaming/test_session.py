# SPDX-License-Identifier: Apache-2.0
"""A session is the model, step by step, under what its user gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aapt_fast import EulerSampler
from aapt_fast.errors import PoolExhausted
from aapt_fast.models.aapt import generator
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.presets import NANO_TEXT
from aapt_fast.models.aapt.sampling import sample_frame, timesteps
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import gate_residual_norm, philox_normal
from aapt_fast.streaming.controls import clip_controls, step_entries
from aapt_fast.streaming.pages import PagePool, session_pages
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.streams import (
    STREAMS,
    play,
    random_controls,
    random_image,
    random_model,
    random_prompt,
    random_session,
    shuffled_pool,
)
from aapt_fast.training.rollout import rollout

STEPS = 6  # frame 1 leaves the window of 2 after step 3
IMAGE, CONTROL = -torch.ones(3, 32, 32), torch.zeros(19, 3)


def whole_clip_inputs(model: StreamModel, image: torch.Tensor, frames: torch.Tensor, controls: list) -> tuple:
    """noised, recycled, control, t of the one forward call that makes these frames at once."""
    count = frames.shape[2]
    seeds = torch.full((count,), 7)
    noise = philox_normal(seeds, torch.arange(1, count + 1), tuple(image[0, :, 0].shape)).transpose(0, 1)[None]
    recycled = torch.cat([image, frames[:, :, :-1]], 2)
    control = None
    if model.control is not None:
        entries = [step_entries(c, model.control, model.config.grid) for c in controls]
        if model.control.with_previous:
            before = step_entries(random_controls(model, 1, seed=5)[0][0], model.control, model.config.grid)
            entries = [torch.cat(pair) for pair in zip(entries, [before, *entries], strict=False)]
        control = torch.stack(entries, 1)[None]
    return noise, recycled, control, torch.ones(1)


@torch.no_grad()
def whole_clip(model: StreamModel, inputs: tuple) -> torch.Tensor:
    prompt = random_prompt(model)
    text = None if prompt is None else model.generator.encode_text(prompt[None], inputs[3])
    return model.generator(*inputs, model.generator.new_cache(text=text))


@torch.no_grad()
def test_stream_equals_the_whole_clip(model):
    session, controls = random_session(model), random_controls(model, STEPS)
    image, first = session.frame, session.first_frame
    frames, video = play(session, controls)
    assert_near(frames, whole_clip(model, whole_clip_inputs(model, image, frames, controls)), 1e-5)
    assert frames.dtype == torch.float32 and frames.std() > 0.1

    decoded = model.vae.decode(torch.cat([image, frames], 2))[0].permute(1, 2, 3, 0)
    streamed = torch.cat([first[None], video])
    assert streamed.dtype == torch.uint8 and streamed.shape == (1 + 4 * STEPS, *model.video_size, 3)
    assert_near(streamed / 127.5 - 1, decoded, 0.5001 / 127.5)
    assert decoded.std() > 0.1 and decoded.abs().lt(1).float().mean() > 0.5


@pytest.mark.parametrize("nfe", [1, 4])
@torch.no_grad()
def test_stream_equals_rollout(pose_model, nfe):
    points = torch.rand(1, 1 + 4 * STEPS, 19, 3)
    session = random_session(pose_model, sampler=EulerSampler(nfe), image_control=points[0, 0])
    controls = clip_controls(points, pose_model.control, pose_model.config.grid)
    expected = rollout(pose_model.generator, session.frame, controls, torch.tensor([7]), nfe)
    frames, _ = play(session, [points[0, 1 + 4 * step : 5 + 4 * step] for step in range(STEPS)])
    assert_near(frames, expected, 1e-5)
    assert session.steps == STEPS


@torch.no_grad()
def test_each_evaluation_has_its_own_cache_and_text():
    model = random_model(NANO_TEXT)
    generator, prompt, levels = model.generator, random_prompt(model), timesteps(3, model.config.shift)
    caches = [generator.new_cache(text=generator.encode_text(prompt[None], t[None])) for t in levels[:-1]]
    session = random_session(model, sampler=EulerSampler(3))
    for step in range(1, STEPS + 1):
        noise = philox_normal(torch.tensor([7]), torch.tensor([step]), (16, 4, 6))[:, :, None]
        expected = sample_frame(generator, noise, session.frame, None, caches)
        session.step()
        assert_near(session.frame, expected, 1e-5)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_future_controls_change_past_frames_by_nothing(pose_model, at):
    controls = random_controls(pose_model, STEPS)
    others = controls[:at] + random_controls(pose_model, STEPS, seed=6)[at:]
    session = random_session(pose_model)
    image = session.frame
    frames, video = play(session, controls)
    other_frames, other_video = play(random_session(pose_model), others)
    assert torch.equal(video[: 4 * at], other_video[: 4 * at])
    assert (frames[:, :, at] - other_frames[:, :, at]).abs().max() > 1e-3

    inputs = whole_clip_inputs(pose_model, image, frames, controls)
    other_inputs = whole_clip_inputs(pose_model, image, frames, others)
    change = (whole_clip(pose_model, inputs) - whole_clip(pose_model, other_inputs)).abs()
    assert change[:, :, :at].max() == 0.0 and change[:, :, at].max() > 1e-3


def test_the_place_of_pages_changes_nothing(model):
    controls = random_controls(model, STEPS)
    expected = play(random_session(model, sampler=EulerSampler(2)), controls)
    for _ in range(2):
        pool = shuffled_pool(model, 2 * session_pages(model.generator, model.grid, EulerSampler(2), 5))
        actual = play(random_session(model, sampler=EulerSampler(2), pool=pool), controls)
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("chunk", [2, 3, STEPS])
@torch.no_grad()
def test_the_chunk_length_of_the_decoder_changes_nothing(pose_model, chunk):
    session = random_session(pose_model)
    image = session.frame
    frames, video = play(session, random_controls(pose_model, STEPS))
    decoder = pose_model.vae.stream()
    assert torch.equal(pose_model.decode(decoder, image)[0], session.first_frame)
    chunks = torch.cat([decoder.decode(part) for part in frames.split(chunk, 2)], 2)[0].permute(1, 2, 3, 0)
    assert_near(video / 127.5 - 1, chunks, 0.5001 / 127.5)


@pytest.mark.parametrize("config", STREAMS.values(), ids=STREAMS)
def test_half_precision_follows_float32(config):
    exact, half = random_model(config), random_model(config, torch.bfloat16)
    controls = random_controls(exact, 4)
    expected, frames = (play(random_session(model, sampler=EulerSampler(2)), controls)[0] for model in (exact, half))
    assert frames.dtype == torch.float32
    assert 0 < (frames - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16])
def test_the_token_stream_is_in_float32(weights, monkeypatch):
    seen = set()

    def spy(x, y, *modulation):
        normed = gate_residual_norm(x, y, *modulation)
        seen.update({*(each.dtype for each in normed), *(each.dtype for each in modulation if each is not None)})
        return normed

    monkeypatch.setattr(generator, "gate_residual_norm", spy)
    model = random_model(NANO_TEXT, weights)
    session = random_session(model)
    session.step()
    assert torch.float32 in seen and session.frame.dtype == torch.float32


def test_the_prompt_counts():
    model = random_model(NANO_TEXT, text_encoder=lambda words: random_prompt(model, seed=len(words)))
    prompts = ("four", random_prompt(model), "three", None)
    words, same, other, none = (play(random_session(model, prompt=prompt), [None] * 2)[0] for prompt in prompts)
    assert torch.equal(words, same)
    assert (words - other).abs().max() > 1e-3 and (words - none).abs().max() > 1e-3


def test_a_session_keeps_nothing_of_the_callers_memory():
    """A control, image or prompt that is overwritten after the call has been copied before."""
    maps = ControlConfig(kind="maps", channels=3, with_previous=True)
    model = random_model(dataclasses.replace(NANO_TEXT, control=maps))
    controls, image, prompt = random_controls(model, 3), random_image(model), random_prompt(model)
    expected = play(StreamSession(model, image, prompt=prompt), controls)[0]
    image_buffer, prompt_buffer, control_buffer = image.clone(), prompt.clone(), torch.empty_like(controls[0])
    session = StreamSession(model, image_buffer, prompt=prompt_buffer)
    image_buffer.zero_()
    prompt_buffer.zero_()
    session.reset()
    for step, control in enumerate(controls):
        session.step(control_buffer.copy_(control))
        assert torch.equal(session.frame[:, :, 0], expected[:, :, step])


def test_seeds_make_different_streams(pose_model):
    controls = random_controls(pose_model, 2)
    frames = [play(random_session(pose_model, seed=seed), controls)[0] for seed in (0, 1, 2**32, -(2**63))]
    for index, one in enumerate(frames):
        assert all((one - other).abs().max() > 0.01 for other in frames[:index])


BAD_STARTS = {
    "image size": ({"image": torch.zeros(3, 32, 40)}, ValueError, r"image: expected shape \[3, 32, 32\]"),
    "prompt": ({"prompt": torch.zeros(3, 12)}, ValueError, "prompt: expected none: this model has no text stream"),
    "seed": ({"seed": 2**63}, ValueError, "seed: expected a signed 64-bit integer"),
    "seed type": ({"seed": "7"}, TypeError, "seed: expected an integer, got str"),
    "seed of truth": ({"seed": True}, TypeError, "seed: expected an integer, got bool"),
    "pool type": ({"pool": 3}, TypeError, "pool: expected PagePool, got int"),
    "sampler": ({"sampler": 4}, TypeError, "sampler: expected Sampler, got int"),
    "image_control": (
        {"image_control": torch.zeros(18, 3)},
        ValueError,
        r"^image_control: expected shape \[19, 3\], got",
    ),
    "image_control of a step": (
        {"image_control": torch.zeros(4, 19, 3)},
        ValueError,
        r"^image_control: expected shape \[19, 3\], got \[4, 19, 3\]",
    ),
    "pool": ({"pool": PagePool(2, 9, 2, 8)}, ValueError, "pool: expected layers, heads, head_dim"),
    "exhausted pool": ({"pool": PagePool(2, 3, 2, 16)}, PoolExhausted, "asked for 4 pages, 3 of 3 are available"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_STARTS.values(), ids=BAD_STARTS)
def test_bad_starts(pose_model, options, error, message):
    with pytest.raises(error, match=message):
        StreamSession(pose_model, **{"image": IMAGE, **options})


BAD_CONTROLS = {
    "none": (
        None,
        TypeError,
        r"control: expected \[4, 19, 3\] \(x, y and depth of each joint\), as .* makes it, got None",
    ),
    "shape": (torch.zeros(18, 3), ValueError, r"control: expected shape \[19, 3\], got \[18, 3\]"),
    "nan": (CONTROL * torch.nan, ValueError, "control: expected finite values"),
}


@pytest.mark.parametrize(("control", "error", "message"), BAD_CONTROLS.values(), ids=BAD_CONTROLS)
def test_after_a_bad_control_the_session_goes_on(pose_model, control, error, message):
    controls = random_controls(pose_model, 3)
    expected = play(random_session(pose_model), controls)[0]
    session = random_session(pose_model)
    play(session, controls[:2])
    with pytest.raises(error, match=message):
        session.step(control)
    assert session.steps == session.latency.count == 2
    assert torch.equal(play(session, controls[2:])[0], expected[:, :, 2:])


def test_a_model_without_control_takes_none():
    model = random_model(NANO_TEXT)
    with pytest.raises(ValueError, match="image_control: expected None"):
        StreamSession(model, random_image(model), image_control=CONTROL)
    with pytest.raises(ValueError, match="control: expected None: this model has no control"):
        random_session(model).step(CONTROL)


def test_a_pool_of_another_model_with_equal_pages_is_as_good(pose_model):
    other, controls = random_model(STREAMS["pose"]), random_controls(pose_model, 3)
    in_theirs = random_session(pose_model, pool=PagePool.for_sessions(other, 1))
    for have, want in zip(play(in_theirs, controls), play(random_session(pose_model), controls), strict=True):
        assert torch.equal(have, want)
