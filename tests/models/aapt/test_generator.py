# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator, TextKV
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.aapt.sampling import shift_time
from aapt_fast.ops import FrameRope, reference
from aapt_fast.testing.compare import assert_near

FRAMES = 12  # window 2: the sink's distance saturates from frame 4 on
CONFIGS = {"nano": NANO, "nano-text": NANO_TEXT}


def perturbed(config: GeneratorConfig) -> Generator:
    """A model without zero-initialised layers: everything that it computes reaches its output."""
    model = Generator(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def clip(config: GeneratorConfig, frames: int = FRAMES, batch: int = 2) -> dict[str, Tensor | None]:
    """Random noised [B, C, F, h, w], recycled, control (None if the model has none) and t [B]."""
    shape = (batch, config.latent_channels, frames, *config.grid)
    channels = config.control.step_channels if config.control else 0
    control = torch.randn(batch, channels, frames, *config.grid) if channels else None
    return dict(noised=torch.randn(shape), recycled=torch.randn(shape), control=control, t=torch.rand(batch) + 0.01)


def text_of(model: Generator, t: Tensor, length: int = 5) -> TextKV | None:
    if not model.config.text_width:
        return None
    return model.encode_text(torch.randn(len(t), length, model.config.text_width), t)


def part(inputs: dict[str, Tensor | None], span: slice) -> dict[str, Tensor | None]:
    """The frames `span` of a clip."""
    return {name: x[:, :, span] if x is not None and x.ndim == 5 else x for name, x in inputs.items()}


def dense_heads(stream, x, modulation, tables):
    """Raw tokens -> heads of normalised, rotated q and k, and of v, each [B, H, N, D]."""
    m = modulation + stream.modulation
    normed = reference.rms_norm(x, 1e-6) * (1 + m[:, 1:2]) + m[:, 0:1]
    q, k, v = (normed @ stream.qkv.weight.T).unflatten(-1, (3, -1, len(stream.q_norm))).unbind(-3)
    q = reference.normalise_and_rotate(q, stream.q_norm, *tables, 1e-6)
    k = reference.normalise_and_rotate(k, stream.k_norm, *tables, 1e-6)
    return [each.transpose(1, 2) for each in (q, k, v)]


def dense_rest(stream, x, attended, modulation):
    """Output projection and MLP, each gated and added."""
    m = (modulation + stream.modulation)[:, :, None]
    x = x + m[:, 2] * stream.out(attended.transpose(1, 2).flatten(2))
    normed = reference.rms_norm(x, 1e-6) * (1 + m[:, 4]) + m[:, 3]
    return x + m[:, 5] * stream.down(F.gelu(stream.up(normed), approximate="tanh"))


def dense_forward(model: Generator, noised, recycled, t, text) -> Tensor:
    """The text model as one dense attention over [text | all frames] with a mask; every past frame is visible.

    Written from the paper: text sees text, video sees text and the video up to its own frame.
    """
    config, frames = model.config, noised.shape[2]
    pictures = torch.cat([noised, recycled], 1).transpose(1, 2)  # [B, F, 2 C, h, w]
    tokens = F.pixel_unshuffle(pictures, config.patch).flatten(3).transpose(2, 3).flatten(1, 2)
    video, text = model.patch_embed(tokens), model.text_in(text)
    grid = [length // config.patch for length in config.grid]
    tables = FrameRope(tuple(grid), config.head_dim, theta=config.rope_theta)(range(1, frames + 1))
    frame_of = torch.arange(frames).repeat_interleave(grid[0] * grid[1])
    frame_of = torch.cat([torch.zeros(text.shape[1]), frame_of + 1])  # text comes before every frame
    mask = frame_of[None, :] <= frame_of[:, None]
    modulation = model.timestep(t)
    for layer, block in enumerate(model.blocks):
        of_text = dense_heads(block.text, text, modulation, (None, None))
        of_video = dense_heads(block.video, video, modulation, tables)
        joined = [torch.cat(pair, dim=2) for pair in zip(of_text, of_video, strict=True)]
        attended = F.scaled_dot_product_attention(*joined, attn_mask=mask)
        attended_text, attended_video = attended.split([text.shape[1], video.shape[1]], dim=2)
        if layer < config.layers - 1:
            text = dense_rest(block.text, text, attended_text, modulation)
        video = dense_rest(block.video, video, attended_video, modulation)
    m = model.modulation_out + modulation[:, :2]
    patches = model.unpatch(reference.rms_norm(video, 1e-6) * (1 + m[:, 1:]) + m[:, :1])
    patches = patches.view(len(t), frames, *grid, -1).permute(0, 1, 4, 2, 3)
    return noised - t.view(-1, 1, 1, 1, 1) * F.pixel_shuffle(patches, config.patch).transpose(1, 2)


@torch.no_grad()
def test_equals_one_dense_masked_attention():
    model, inputs = perturbed(NANO_TEXT), clip(NANO_TEXT, NANO_TEXT.window + 2)
    prompt, t = torch.randn(2, 5, 12), inputs["t"]
    out = model(**inputs, cache=model.new_cache(text=model.encode_text(prompt, t)))
    expected = dense_forward(model, inputs["noised"], inputs["recycled"], t, prompt)
    assert (expected - inputs["noised"]).abs().max() > 0.1  # the network says something
    assert_near(out, expected, 1e-5, "frames")


@torch.no_grad()
@pytest.mark.parametrize("portions", [[1] * FRAMES, [5, 1, 4, 2]], ids=["frame by frame", "in portions"])
@pytest.mark.parametrize("name", CONFIGS)
def test_streaming_equals_the_whole_clip(name, portions):
    model, inputs = perturbed(CONFIGS[name]), clip(CONFIGS[name])
    text = text_of(model, inputs["t"])
    whole = model(**inputs, cache=model.new_cache(text=text))
    cache, pieces, start = model.new_cache(text=text), [], 0
    for length in portions:
        pieces.append(model(**part(inputs, slice(start, start + length)), cache=cache))
        start += length
    assert cache.next_frame == FRAMES + 1
    assert_near(torch.cat(pieces, 2), whole, 1e-5, "frames")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("nano", "noised"),
        ("nano", "recycled"),
        ("nano", "control"),
        ("nano-text", "noised"),
        ("nano-text", "recycled"),
    ],
)
def test_the_future_does_not_reach_the_past(name, changed):
    model, inputs = perturbed(CONFIGS[name]), clip(CONFIGS[name])
    text = text_of(model, inputs["t"])
    before = model(**inputs, cache=model.new_cache(text=text))
    inputs[changed] = inputs[changed].clone()
    inputs[changed][:, :, 7] += 1
    difference = (model(**inputs, cache=model.new_cache(text=text)) - before).abs().amax((0, 1, 3, 4))
    assert difference[:7].max() == 0.0
    assert difference[7] > 1e-3
    assert difference[8] > 1e-5 and difference[9] > 1e-5  # frames whose window holds it


@torch.no_grad()
def test_the_first_frame_is_seen_for_ever_and_others_fall_out_of_the_window():
    """With one layer nothing travels from frame to frame but through attention."""
    model = perturbed(dataclasses.replace(NANO_TEXT, layers=1))
    inputs = clip(NANO_TEXT)
    before = model(**inputs, cache=model.new_cache())
    for frame, seen_by in ((0, range(FRAMES)), (3, range(3, 6))):
        changed = {**inputs, "noised": inputs["noised"].clone()}
        changed["noised"][:, :, frame] += 1
        difference = (model(**changed, cache=model.new_cache()) - before).abs().amax((0, 1, 3, 4))
        assert [index for index in range(FRAMES) if difference[index] > 0] == list(seen_by)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_clips_of_a_batch_do_not_meet(name):
    model, inputs = perturbed(CONFIGS[name]), clip(CONFIGS[name], frames=4)
    text = text_of(model, inputs["t"])
    together = model(**inputs, cache=model.new_cache(text=text))
    alone = {key: x[1:] if x is not None else None for key, x in inputs.items()}
    own_text = [(k[1:], v[1:]) for k, v in text] if text else None
    assert_near(model(**alone, cache=model.new_cache(text=own_text)), together[1:], 1e-5, "second clip")


@torch.no_grad()
def test_text_is_computed_once_for_all_frames_and_clips():
    """The keys and values of a prompt depend on prompt and t alone, so one computation serves everything."""
    model, inputs = perturbed(NANO_TEXT), clip(NANO_TEXT)
    inputs["t"] = torch.full((2,), 0.7)
    prompt = torch.randn(1, 5, 12)
    once = model.encode_text(prompt, inputs["t"][:1])
    shared = model(**inputs, cache=model.new_cache(text=once))
    cache, again = model.new_cache(), []
    for frame in range(FRAMES):
        cache.text = model.encode_text(prompt.expand(2, -1, -1), inputs["t"])
        again.append(model(**part(inputs, slice(frame, frame + 1)), cache=cache))
    assert_near(torch.cat(again, 2), shared, 1e-5, "frames")


@torch.no_grad()
@pytest.mark.parametrize("change", ["another word", "another t", "no prompt"])
def test_another_prompt_gives_other_frames(change):
    model, inputs = perturbed(NANO_TEXT), clip(NANO_TEXT, frames=3)
    prompt, t = torch.randn(2, 5, 12), inputs["t"]
    before = model(**inputs, cache=model.new_cache(text=model.encode_text(prompt, t)))
    prompt[:, 4] += 1 if change == "another word" else 0
    text = model.encode_text(prompt, t * 0.5 if change == "another t" else t)
    after = model(**inputs, cache=model.new_cache(text=None if change == "no prompt" else text))
    assert (after - before).abs().amax((0, 1, 3, 4)).min() > 1e-3


@torch.no_grad()
def test_velocity_is_the_same_network_seen_from_the_noise():
    """x0 = x_t - t v; at t = 1 that is the paper's one-evaluation generator, eps - v."""
    velocity_model = perturbed(NANO_TEXT)
    raw_model = Generator(dataclasses.replace(NANO_TEXT, prediction="frame"))
    raw_model.load_state_dict(velocity_model.state_dict(), strict=False)
    raw_model.skip.zero_()
    inputs = clip(NANO_TEXT, frames=3)
    for t in (torch.tensor([0.2, 0.9]), torch.ones(2)):
        inputs["t"] = t
        v = raw_model(**inputs, cache=raw_model.new_cache())
        expected = inputs["noised"] - t.view(-1, 1, 1, 1, 1) * v
        assert_near(velocity_model(**inputs, cache=velocity_model.new_cache()), expected, 1e-6, "frames")


@torch.no_grad()
def test_a_new_frame_model_repeats_the_recycled_frame_and_a_new_velocity_model_the_noise():
    inputs = clip(NANO)
    model = Generator(NANO)
    model.head.conv_out.weight.zero_()
    assert_near(model(**inputs, cache=model.new_cache()), inputs["recycled"], 1e-6, "frames")
    inputs = clip(NANO_TEXT)
    model = Generator(NANO_TEXT)
    assert_near(model(**inputs, cache=model.new_cache()), inputs["noised"], 1e-6, "frames")


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_another_resolution_runs_on_stretched_positions(name):
    config = dataclasses.replace(CONFIGS[name], grid=(8, CONFIGS[name].grid[1]))
    model = perturbed(CONFIGS[name])
    inputs = clip(config, frames=5)
    out = model(**inputs, cache=model.new_cache(*config.grid))
    assert out.shape == inputs["noised"].shape and out.isfinite().all()
    columns = config.grid[1] // 2
    native, high = (torch.stack(model.rope(height, config.grid[1])(3)) for height in (4, 8))
    native, high = native.unflatten(1, (2, columns)), high.unflatten(1, (4, columns))
    assert_near(high[:, ::2], native, 1e-6, "every second row sits where a native row does")
    assert (high[:, 1] - high[:, 0]).abs().max() > 1e-2


@torch.no_grad()
def test_t_modulates_every_frame():
    model, inputs = perturbed(NANO), clip(NANO, frames=4)
    before = model(**inputs, cache=model.new_cache())
    inputs["t"] = inputs["t"] + 0.1
    after = model(**inputs, cache=model.new_cache())
    assert (after - before).abs().amax((0, 1, 3, 4)).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "unused"),
    [("nano", set()), ("nano-text", {"blocks.1.text.q_norm"})],  # nobody asks with the last layer's text
    ids=CONFIGS,
)
def test_gradients_reach_every_parameter(name, unused):
    model, inputs = perturbed(CONFIGS[name]), clip(CONFIGS[name], frames=5)
    text = text_of(model, inputs["t"])
    model(**inputs, cache=model.new_cache(text=text)).square().mean().backward()
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert set(dict(model.named_parameters())) - reached == unused
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nano", lambda x: dict(noised=x["noised"][:, :8]), r"noised: expected shape \[B, 16, F, h, w\]"),
        ("nano", lambda x: dict(recycled=x["recycled"][:, :, :1]), r"recycled: expected shape \[2, 16, 2, 4, 4\]"),
        ("nano", lambda x: dict(t=torch.ones(3)), r"t: expected shape \[2\], got \[3\]"),
        ("nano", lambda x: dict(control=None), "control: expected 600 channels, got None"),
        ("nano", lambda x: dict(control=x["control"][:, :300]), r"control: expected shape \[2, 600, 2, 4, 4\]"),
        ("nano", lambda x: dict(control=x["control"][:, :, :1]), r"control: expected shape \[2, 600, 2, 4, 4\]"),
        ("nano-text", lambda x: dict(control=x["noised"]), "control: expected None: this model has no control"),
        (
            "nano-text",
            lambda x: dict(noised=x["noised"][..., :5], recycled=x["recycled"][..., :5]),
            "noised width: expected a multiple of 2, got 5",
        ),
    ],
)
def test_bad_inputs_are_refused(name, change, message):
    model, inputs = Generator(CONFIGS[name]), clip(CONFIGS[name], frames=2)
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **change(inputs)}, cache=model.new_cache())


def test_bad_prompts_are_refused():
    with pytest.raises(ValueError, match="prompt: expected none: this model has no text stream"):
        Generator(NANO).encode_text(torch.zeros(1, 5, 12), torch.ones(1))
    with pytest.raises(ValueError, match=r"text: expected shape \[B, L, 12\], got \[1, 5, 11\]"):
        Generator(NANO_TEXT).encode_text(torch.zeros(1, 5, 11), torch.ones(1))


def test_shift_time():
    u = torch.tensor([0.0, 0.5, 0.9, 1.0])
    assert_near(shift_time(u, 1.0), u, 1e-7, "unshifted")
    assert_near(shift_time(u, 24.0), torch.tensor([0.0, 24 / 25, 216 / 217, 1.0]), 1e-6, "shifted")
