# SPDX-License-Identifier: Apache-2.0
"""The bidirectional form of the generator, and what its conversion to the autoregressive one keeps and adds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from aapt_fast.models.aapt.config import ControlConfig, GeneratorConfig
from aapt_fast.models.aapt.convert import bidirectional, to_autoregressive
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.aapt.sampling import sample_frame
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near

MAPS = ControlConfig(kind="maps", channels=3)
PLAIN, PLAIN_TEXT = bidirectional(NANO), bidirectional(NANO_TEXT)
CONFIGS = {"nano": PLAIN, "nano-text": PLAIN_TEXT}
FRAMES = 5
TINY_VAE = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def plain(request) -> Generator:
    return perturbed(request.param)


def perturbed(config: GeneratorConfig) -> Generator:
    """A model without zero-initialised layers: everything that it computes reaches its output."""
    model = Generator(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def converted(model: Generator, control: ControlConfig | None = MAPS, **options) -> Generator:
    return to_autoregressive(model, control, **{"window": 2, "control_width": 8 if control else 0, **options})


def noise_of(config: GeneratorConfig, frames: int = FRAMES) -> Tensor:
    return torch.randn(2, config.latent_channels, frames, *config.grid)


def control_of(config: GeneratorConfig, frames: int = FRAMES) -> Tensor | None:
    return torch.randn(2, config.control.step_channels, frames, *config.grid) if config.control else None


def text_of(model: Generator, t: Tensor):
    return model.encode_text(torch.randn(2, 5, model.config.text_width), t) if model.config.text_width else None


# ---- the bidirectional form ----


@torch.no_grad()
def test_every_frame_of_a_bidirectional_model_sees_all_others_in_both_directions(plain):
    noise, t = noise_of(plain.config), torch.tensor([0.4, 0.9])
    text = text_of(plain, t)
    before = plain(noise, None, None, t, plain.whole_clip_cache(text=text))
    for frame in range(FRAMES):
        changed = noise.clone()
        changed[:, :, frame] += 1
        difference = plain(changed, None, None, t, plain.whole_clip_cache(text=text)) - before
        assert difference.abs().amax((0, 1, 3, 4)).min() > 1e-5


@torch.no_grad()
def test_the_prompt_reaches_every_frame_of_a_bidirectional_model():
    model, noise, t = perturbed(PLAIN_TEXT), noise_of(PLAIN_TEXT), torch.tensor([0.4, 0.9])
    prompt = torch.randn(1, 5, PLAIN_TEXT.text_width)
    outputs = []
    for words in (prompt, prompt.expand(2, -1, -1), prompt + 1):
        text = model.encode_text(words, torch.full((len(words),), 0.5))
        outputs.append(model(noise, None, None, t, model.whole_clip_cache(text=text)))
    assert_near(outputs[1], outputs[0], 1e-6, "one prompt for all rows")
    assert (outputs[2] - outputs[0]).abs().amax((0, 1, 3, 4)).min() > 1e-3
    with pytest.raises(ValueError, match="text: expected an entry for layer 1, got 1 entries"):
        model(noise, None, None, t, model.whole_clip_cache(text=text[:1]))


def test_gradients_reach_every_parameter_of_a_bidirectional_model(plain):
    t = torch.tensor([0.4, 0.9])
    plain(
        noise_of(plain.config), None, None, t, plain.whole_clip_cache(text=text_of(plain, t))
    ).square().sum().backward()
    unreached = {name for name, p in plain.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert unreached <= {"blocks.1.text.q_norm"}  # nobody asks with the last layer's text


def test_keys_and_inner_shapes_are_those_of_the_autoregressive_model():
    for plain, autoregressive in ((PLAIN, dataclasses.replace(NANO, control_width=0)), (PLAIN_TEXT, NANO_TEXT)):
        one, other = Generator(plain).state_dict(), Generator(autoregressive).state_dict()
        assert list(one) == list(other)
        differing = {name for name in one if one[name].shape != other[name].shape}
        assert differing <= {"patch_embed.weight", "head.conv_in.weight", "skip"}


@torch.no_grad()
def test_euler_steps_sample_a_whole_clip():
    model, noise = perturbed(PLAIN), noise_of(PLAIN)
    caches = [model.whole_clip_cache() for _ in range(3)]
    clip = sample_frame(model, noise, None, None, caches)
    assert clip.shape == noise.shape and clip.isfinite().all()
    assert all(cache.next_frame == 1 + FRAMES for cache in caches)


def test_configurations_survive_json_and_old_ones_are_autoregressive():
    for config in (PLAIN, PLAIN_TEXT):
        assert GeneratorConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    old = dataclasses.asdict(NANO)
    del old["autoregressive"]
    assert GeneratorConfig.from_json(old) == NANO and NANO.autoregressive


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(window=2), "window: expected 0: a bidirectional model sees the whole clip, got 2"),
        (dict(control=MAPS), "control: expected None: a bidirectional model has no control, got ControlConfig"),
    ],
)
def test_bidirectional_models_have_neither_window_nor_control(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_a_bidirectional_model_takes_no_recycled_frame_and_an_autoregressive_one_needs_it():
    noise, t = noise_of(PLAIN), torch.ones(2)
    model = Generator(PLAIN)
    with pytest.raises(ValueError, match="recycled: expected None: this model is bidirectional, got a tensor"):
        model(noise, noise, None, t, model.whole_clip_cache())
    with pytest.raises(ValueError, match="model: expected an autoregressive generator; others take a whole_clip_cache"):
        model.new_cache()
    model = Generator(NANO_TEXT)
    with pytest.raises(ValueError, match="recycled: expected the frame before each, got None"):
        model(noise_of(NANO_TEXT), None, None, t, model.new_cache())


def test_files_hold_bidirectional_models_and_sessions_refuse_them(tmp_path: Path):
    generator = Generator(PLAIN).eval()
    path = tmp_path / "plain.safetensors"
    StreamModel(generator, MiniVAE(TINY_VAE).eval(), name="plain").save_pretrained(path, torch.float32)
    model = StreamModel.from_pretrained(path)
    assert model.generator.config == PLAIN
    for name, value in generator.state_dict().items():
        assert torch.equal(model.generator.state_dict()[name], value), name
    expected = "model: expected an autoregressive generator; to_autoregressive makes one, got a bidirectional one"
    with pytest.raises(ValueError, match=expected):
        StreamSession(model, -torch.ones(3, 32, 32))
    streams = StreamModel(to_autoregressive(model.generator, window=2), model.vae)
    with StreamSession(streams, -torch.ones(3, 32, 32)) as session:
        assert session.step().shape == (4, 32, 32, 3)


def test_files_from_before_there_were_bidirectional_models_load(tmp_path: Path):
    path = tmp_path / "old.safetensors"
    StreamModel(Generator(NANO), MiniVAE(TINY_VAE)).save_pretrained(path, torch.float32)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    configs = json.loads(metadata["config"])
    assert configs["generator"].pop("autoregressive") is True
    save_file(load_file(path), path, {**metadata, "config": json.dumps(configs)})
    assert StreamModel.from_pretrained(path).generator.config == NANO


# ---- the conversion ----


@pytest.mark.parametrize("init", ["random", "zero"])
@pytest.mark.parametrize("control", [None, MAPS], ids=["no control", "control"])
def test_old_weights_are_kept_bit_for_bit_and_the_source_is_untouched(plain, init, control):
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    model = converted(plain, control, init=init)
    channels, after = plain.config.latent_channels, model.state_dict()
    inputs = 2 * channels + (8 if control else 0)
    patch = plain.config.patch**2
    for name, value in before.items():
        assert torch.equal(plain.state_dict()[name], value), name
        if name == "patch_embed.weight":
            assert after[name].shape == (plain.config.width, inputs * patch)
            assert torch.equal(after[name][:, : channels * patch], value)
            assert_new(after[name][:, channels * patch :], init)
        elif name == "head.conv_in.weight":
            assert after[name].shape[1] == inputs
            assert torch.equal(after[name][:, :channels], value)
            assert_new(after[name][:, channels:], init)
        elif name == "skip":
            assert after[name].tolist() == [*value.tolist(), 1.0 if init == "random" else 0.0]
        else:
            assert torch.equal(after[name], value), name
        assert after[name].data_ptr() != plain.state_dict()[name].data_ptr()
    new = set(after) - set(before)
    assert all(name.startswith("control_stem.") for name in new) and bool(new) == bool(control)


def assert_new(weight: Tensor, init: str) -> None:
    assert weight.numel() > 0
    if init == "zero":
        assert (weight == 0).all()
    else:
        assert weight.std().item() == pytest.approx(0.02, rel=0.1) and weight.mean().abs() < 0.002


@torch.no_grad()
def test_with_zeros_the_converted_model_is_the_old_one_on_a_single_frame(plain):
    """One frame sees itself and the text, in both patterns."""
    model = converted(plain, init="zero")
    noise, t = noise_of(plain.config, 1), torch.tensor([0.4, 0.9])
    text = text_of(plain, t)
    expected = plain(noise, None, None, t, plain.whole_clip_cache(text=text))
    control = control_of(model.config, 1)
    actual = model(noise, torch.randn_like(noise), control, t, model.new_cache(text=text))
    assert (expected - noise).abs().max() > 0.1
    assert_near(actual, expected, 1e-6, "frame")  # the wider sums may be rounded in another order


@torch.no_grad()
def test_with_zeros_the_converted_model_is_the_old_one_under_the_old_attention(plain):
    model = converted(plain, init="zero")
    noise, t = noise_of(plain.config), torch.tensor([0.4, 0.9])
    text = text_of(plain, t)
    inputs = (noise, torch.randn_like(noise), control_of(model.config), t)
    expected = plain(noise, None, None, t, plain.whole_clip_cache(text=text))
    assert_near(model(*inputs, model.whole_clip_cache(text=text)), expected, 1e-6, "clip")
    causal = model(*inputs, model.new_cache(text=text)) - expected
    assert causal.abs().amax((0, 1, 3, 4)).min() > 1e-4  # even the last frame, whose past has not seen it


@torch.no_grad()
def test_the_converted_model_is_causal_and_its_streams_have_no_end():
    model = converted(perturbed(PLAIN))
    frames = 12
    noise, recycled, control = noise_of(PLAIN, frames), noise_of(PLAIN, frames), control_of(model.config, frames)
    t = torch.tensor([0.4, 0.9])
    whole = model(noise, recycled, control, t, model.new_cache())
    noise[:, :, 7] += 1
    difference = (model(noise, recycled, control, t, model.new_cache()) - whole).abs().amax((0, 1, 3, 4))
    assert difference[:7].max() == 0 and difference[7] > 1e-3


@torch.no_grad()
def test_new_channels_come_behind_the_noised_frame_in_the_order_recycled_control():
    """Without a stem the columns are the inputs' own: switch off one group after the other."""
    model = converted(perturbed(dataclasses.replace(PLAIN, head_width=0)), control_width=0)
    noise, recycled, control = noise_of(PLAIN, 1), noise_of(PLAIN, 1), control_of(model.config, 1)
    t, channels, patch = torch.tensor([0.4, 0.9]), PLAIN.latent_channels, PLAIN.patch**2
    groups = {
        "noised": slice(0, channels * patch),
        "recycled": slice(channels * patch, 2 * channels * patch),
        "control": slice(2 * channels * patch, None),
    }
    assert model.patch_embed.weight[:, groups["control"]].shape[1] == MAPS.step_channels * patch
    weight = model.patch_embed.weight.clone()
    model.skip.zero_()
    for silent, columns in groups.items():
        model.patch_embed.weight.copy_(weight)
        model.patch_embed.weight[:, columns] = 0
        inputs = {"noised": noise, "recycled": recycled, "control": control}
        before = model(**inputs, t=t, cache=model.new_cache())
        for name in groups:
            changed = {**inputs, name: inputs[name] + torch.randn_like(inputs[name])}
            difference = (model(**changed, t=t, cache=model.new_cache()) - before).abs().max()
            assert (difference == 0) == (name == silent), (silent, name)


@pytest.mark.parametrize("init", ["random", "zero"])
def test_gradients_reach_the_new_channels(init):
    model = converted(perturbed(PLAIN), init=init)
    noise, t = noise_of(PLAIN), torch.tensor([0.4, 0.9])
    model(noise, torch.randn_like(noise), control_of(model.config), t, model.new_cache()).square().mean().backward()
    old, patch = PLAIN.latent_channels, PLAIN.patch**2
    assert (model.patch_embed.weight.grad[:, old * patch :].abs().amax(0) > 0).all()
    assert (model.head.conv_in.weight.grad[:, old:].abs().amax((0, 2, 3)) > 0).all()
    assert model.skip.grad[1] != 0
    stem = [p.grad.abs().max() for p in model.control_stem.parameters()]
    assert all((gradient > 0) == (init == "random") for gradient in stem)  # behind zeros it waits for one step


@torch.no_grad()
@pytest.mark.parametrize("interval", [None, 0.25, 2.0])
def test_frames_sit_at_the_fixed_interval(interval):
    plain = perturbed(dataclasses.replace(PLAIN, temporal_interval=0.5))
    torch.manual_seed(1)
    model = converted(plain, temporal_interval=interval)
    assert model.config.temporal_interval == (interval or 0.5)
    cos, _ = model.rope(*PLAIN.grid)(7)
    first = torch.tensor(7 * model.config.temporal_interval, dtype=torch.float64).cos()
    assert_near(cos[:, 0], first.float().expand(len(cos)), 1e-6, "the first temporal pair turns by 1 per position")
    torch.manual_seed(1)
    other = converted(plain, temporal_interval=0.5)
    noise, recycled, control = noise_of(PLAIN), noise_of(PLAIN), control_of(model.config)
    t = torch.tensor([0.4, 0.9])
    outputs = [each(noise, recycled, control, t, each.new_cache()) for each in (model, other)]
    assert torch.equal(*outputs) == (interval is None)


def test_device_dtype_and_mode_are_kept():
    for training in (True, False):
        model = to_autoregressive(Generator(PLAIN).bfloat16().train(training), window=2)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and model.training == training
    with torch.device("meta"):
        assert to_autoregressive(Generator(PLAIN), window=2).patch_embed.weight.is_meta


def test_the_seed_decides_the_new_weights():
    plain, made = Generator(PLAIN), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(converted(plain).patch_embed.weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_the_bidirectional_twin_converts_back_to_the_same_configuration():
    for config in (NANO, NANO_TEXT):
        back = to_autoregressive(
            Generator(bidirectional(config)), config.control, window=config.window, control_width=config.control_width
        )
        assert back.config == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(window=0), "window: expected at least 1 past frame, got 0"),
        (dict(init="ones"), "init: expected random or zero, got ones"),
        (dict(temporal_interval=0.0), r"temporal_interval: expected a positive distance, got 0\.0"),
        (dict(control_width=8), "control_width: expected 0 without a control, got 8"),
    ],
)
def test_impossible_conversions_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        to_autoregressive(Generator(PLAIN), **{"window": 2, **change})


def test_models_that_cannot_be_converted_are_refused():
    with pytest.raises(ValueError, match="model: expected a bidirectional generator, got one that is already autoregr"):
        to_autoregressive(Generator(NANO), window=2)
    with pytest.raises(TypeError, match="model: expected Generator, got Linear"):
        to_autoregressive(torch.nn.Linear(2, 2), window=2)
    model = Generator(PLAIN)  # an image-to-video model with a mask and a picture in further channels
    model.patch_embed = torch.nn.Linear(33 * PLAIN.patch**2, PLAIN.width)
    with pytest.raises(ValueError, match=r"model\.patch_embed\.weight: expected shape \[32, 64\], got \[32, 132\]"):
        to_autoregressive(model, window=2)
