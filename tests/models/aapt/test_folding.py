# SPDX-License-Identifier: Apache-2.0
"""A folded generator is the generator at its timestep, in less."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt import folding
from aapt_fast.models.aapt.folding import fold_timestep
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import GENERATORS, NANO, NANO_TEXT
from aapt_fast.models.aapt.sampling import sample_frame
from aapt_fast.models.files.model_file import load_model, save_model
from aapt_fast.testing.compare import assert_near, relative_l2
from aapt_fast.testing.streams import STREAMS, play, random_controls, random_model, random_session

FRAMES = 5
NAMES = ("nano", "nano-text", "mini-person")


def model_of(name: str) -> Generator:
    """mini-person as trained, the others with random weights: every vector of the modulation counts."""
    if name == "mini-person":
        return load_model(name).generator.requires_grad_(False)
    return perturbed(Generator(GENERATORS[name]))


@torch.no_grad()
def perturbed(model: Generator) -> Generator:
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def clip(model: Generator, t: float = 1.0) -> dict[str, Tensor | None]:
    config, shape = model.config, (1, model.config.latent_channels, FRAMES, *model.config.grid)
    control = torch.randn(1, config.control.step_channels, *shape[2:]) if config.control else None
    return {
        "noised": torch.randn(shape),
        "recycled": torch.randn(shape),
        "control": control,
        "t": torch.tensor([t]),
        "prompt": torch.randn(1, 5, config.text_width) if config.text_width else None,
    }


@torch.no_grad()
def frames_of(model: Generator, inputs: dict[str, Tensor | None]) -> Tensor:
    """The clip, frame after frame through a cache; a half precision model under autocast."""
    dtype = model.patch_embed.weight.dtype
    inputs = dict(inputs)
    prompt = inputs.pop("prompt")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        cache = model.new_cache(text=None if prompt is None else model.encode_text(prompt.to(dtype), inputs["t"]))
        steps = []
        for frame in range(FRAMES):
            part = {
                name: x[:, :, frame : frame + 1] if x is not None and x.ndim == 5 else x for name, x in inputs.items()
            }
            steps.append(model(**part, cache=cache))
    return torch.cat(steps, 2)


@pytest.mark.parametrize("t", [1.0, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_the_folded_model_computes_the_same(name, t):
    model = model_of(name)
    inputs = clip(model, t)
    assert relative_l2(frames_of(fold_timestep(model, t), inputs), frames_of(model, inputs)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_loses_no_more_than_without_folding(name):
    model = model_of(name)
    inputs, folded = clip(model), fold_timestep(model).bfloat16()
    exact = frames_of(model, inputs)
    error, before = (relative_l2(frames_of(each, inputs), exact) for each in (folded, copy.deepcopy(model).bfloat16()))
    assert 0 < error < 1.5 * before


def test_hidden_states_and_text_are_those_of_the_timestep():
    model = model_of("nano-text")
    folded, inputs = fold_timestep(model), clip(model)
    prompt = inputs.pop("prompt")
    with torch.no_grad():
        text, expected = (each.encode_text(prompt, inputs["t"]) for each in (folded, model))
        for pair, expected_pair in zip(text, expected, strict=True):
            assert_near(pair[0], expected_pair[0], 2e-6, "keys")
            assert_near(pair[1], expected_pair[1], 2e-6, "values")
        states = [each.hidden_states(**inputs, cache=each.new_cache(), depths=(1, 2)) for each in (folded, model)]
    for state, expected_state in zip(*states, strict=True):
        assert_near(state, expected_state, 2e-6, "tokens")


def _without_one(linear, scale, shift):
    return linear.weight * scale, MODULATED(linear, scale, shift)[1]


def _without_shift(linear, scale, shift):
    return MODULATED(linear, scale, torch.zeros_like(shift))


def _shift_after_scale(linear, scale, shift):
    return MODULATED(linear, scale, shift * (1 + scale))


def _swapped(linear, scale, shift):
    return MODULATED(linear, shift, scale)


def _gate_without_bias(linear, gate):
    return GATED(linear, gate)[0], linear.bias


def _gate_on_columns(linear, gate):
    columns = gate.repeat(linear.in_features // len(gate))
    return linear.weight * columns.float(), linear.bias * gate.float()


MODULATED, GATED = folding._modulated, folding._gated
MISTAKES = {
    "scale instead of 1 + scale": ("_modulated", _without_one),
    "no shift": ("_modulated", _without_shift),
    "shift after scale": ("_modulated", _shift_after_scale),
    "scale and shift swapped": ("_modulated", _swapped),
    "gate without the bias": ("_gated", _gate_without_bias),
    "gate on columns": ("_gated", _gate_on_columns),
    "first gate for both": ("GATE2", folding.GATE1),
    "first scale for both": ("SCALE2", folding.SCALE1),
}


@pytest.mark.parametrize(("name", "mistake"), MISTAKES.values(), ids=MISTAKES)
def test_a_planted_mistake_shows(name, mistake, monkeypatch):
    monkeypatch.setattr(folding, name, mistake)
    model = model_of("nano-text")
    inputs = clip(model)
    assert relative_l2(frames_of(fold_timestep(model).float(), inputs), frames_of(model, inputs)) > 1e-4


def test_the_original_is_left_alone():
    model = model_of("nano-text")
    before = copy.deepcopy(model.state_dict())
    folded = fold_timestep(model)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert model.config == NANO_TEXT and folded.config == dataclasses.replace(NANO_TEXT, folded_t=1.0)


def test_what_a_folded_model_keeps():
    model = model_of("nano").double().eval()
    folded = fold_timestep(model)
    names = set(folded.state_dict())
    assert not any("modulation" in name or "timestep" in name for name in names)
    assert "blocks.0.video.qkv.bias" in names
    assert {p.dtype for p in folded.parameters()} == {torch.float64} and not any(p.is_meta for p in folded.parameters())
    assert not folded.training and not any(p.requires_grad for p in folded.parameters())


def test_another_timestep_is_refused():
    folded = fold_timestep(model_of("nano"))
    inputs = clip(folded, 0.9)
    del inputs["prompt"]
    with pytest.raises(ValueError, match=r"t: expected 1.0, the timestep that is folded .*, got \[0.8999"):
        folded(**inputs, cache=folded.new_cache())
    inputs["t"] = torch.tensor([torch.nan])
    with pytest.raises(ValueError, match=r"t: expected 1.0, .*, got \[nan\]"):
        folded(**inputs, cache=folded.new_cache())
    part = [inputs[name][:, :, :1] for name in ("noised", "recycled", "control")]
    with pytest.raises(ValueError, match=r"t: expected 1.0"), torch.no_grad():
        sample_frame(folded, *part, [folded.new_cache(), folded.new_cache()])


def test_what_cannot_be_folded():
    model = model_of("nano")
    with pytest.raises(ValueError, match=r"generator: expected one that is not folded, got one folded at t = 1.0"):
        fold_timestep(fold_timestep(model))
    with pytest.raises(ValueError, match=r"folded_t: expected None or a timestep in 0..1, got 1.5"):
        fold_timestep(model, 1.5)
    with pytest.raises(TypeError, match="generator: expected Generator, got StreamModel"):
        fold_timestep(random_model(NANO))


@pytest.mark.parametrize("config", STREAMS.values(), ids=STREAMS)
def test_a_session_shows_the_same(config):
    model = random_model(config)
    controls = random_controls(model, FRAMES)
    folded = model.folded()
    (frames, video), (expected, expected_video) = (play(random_session(m, nfe=1), controls) for m in (folded, model))
    assert relative_l2(frames, expected) < 1e-5  # the recycled frame carries rounding on from step to step
    assert (video.int() - expected_video.int()).abs().max() <= 1

    session = random_session(folded)
    play(session, controls[:2])
    with session.fork() as fork:
        assert torch.equal(play(fork, controls[2:])[0], play(session, controls[2:])[0])


def test_sessions_with_more_evaluations_take_the_model_that_is_not_folded():
    folded = random_model(NANO).folded()
    with pytest.raises(ValueError, match=r"nfe: expected 1: the generator is folded at t = 1.0, got 4"):
        random_session(folded, nfe=4)
    with pytest.raises(ValueError, match="generator: expected one that is not folded"):
        folded.folded()


def test_a_folded_model_goes_through_a_file(tmp_path):
    model = random_model(NANO).folded()
    save_model(tmp_path / "folded.safetensors", model, torch.float32)
    loaded = load_model(tmp_path / "folded.safetensors")
    assert loaded.config.folded_t == 1.0
    expected = model.generator.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.generator.state_dict().items())

    unfolded = random_model(NANO)
    unfolded.generator.config = model.config  # the keys of one, the configuration of the other
    save_model(tmp_path / "mixed.safetensors", unfolded)
    with pytest.raises(CheckpointError, match=r"expected key generator.blocks.0.video.qkv.bias, got none"):
        load_model(tmp_path / "mixed.safetensors")
