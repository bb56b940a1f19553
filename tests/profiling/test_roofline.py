# SPDX-License-Identifier: Apache-2.0
"""The roofline's numbers, held to others that were worked out by hand or published."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import AAPT_8B
from aapt_fast.models.vae.aapt import AAPTVAE, LIGHT, ORIGINAL, AAPTVAEConfig
from aapt_fast.models.vae.layers import CausalConv3d
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.profiling.decoders import Layer, decoder_layers
from aapt_fast.profiling.roofline import H100, H200, Step, paper_check, predict, prediction, shares, tile_efficiency

T = 1e12
AT_720 = dataclasses.replace(AAPT_8B, grid=(90, 160), window=15)
PAPER_PROMPT = 256


def test_work_at_736x416_with_30_past_frames():
    step = Step(AAPT_8B, 0, ())
    assert AAPT_8B.tokens == 26 * 46 == 1196 and step.keys == 32 * 1196
    assert step.linear_flops == pytest.approx(2 * 1196 * (36 * 12 * 3072**2 + 4 * (32 + 16) * 3072))
    assert step.linear_flops / T == pytest.approx(9.8, abs=0.05)
    assert step.attention_flops(step.keys) / T == pytest.approx(20.2, abs=0.05)


def test_work_at_1280x720_with_15_past_frames():
    step = Step(AT_720, PAPER_PROMPT, ())
    assert AT_720.tokens == 3600 and step.keys == 61200
    assert step.linear_flops / T == pytest.approx(29.4, abs=0.05)
    assert step.generator_flops / T == pytest.approx(127.2, abs=0.05)


def test_weights_are_those_that_multiply_a_video_token():
    """All but the text stream's, the modulation's and the vectors."""
    with torch.device("meta"):
        model = Generator(AAPT_8B)
    matrices = {name: p.numel() for name, p in model.named_parameters() if name.endswith("weight") and p.ndim == 2}
    video = sum(
        n for name, n in matrices.items() if ".text." not in name and not name.startswith(("text_in", "timestep"))
    )
    assert Step(AAPT_8B, 0, ()).weights == video


@pytest.mark.parametrize(
    ("layers", "tflop"),
    [
        (decoder_layers(LIGHT, 52, 92), 6.86),
        (decoder_layers(LIGHT, 90, 160), 20.93),
        (decoder_layers(ORIGINAL, 52, 92), 28.89),
        (decoder_layers(WanVAEConfig(), 52, 92), 10.38),
        (decoder_layers(WanVAEConfig(), 90, 160), 31.45),
    ],
    ids=["light 736x416", "light 1280x720", "original 736x416", "Wan 736x416", "Wan 1280x720"],
)
def test_work_of_decoders(layers, tflop):
    assert sum(layer.flops for layer in layers) / T == pytest.approx(tflop, abs=0.006)


def test_work_of_one_convolution():
    layer = Layer(96, 48, (3, 3, 3), (4, 10, 20))
    assert layer.flops == 2 * 27 * 96 * 48 * 800
    assert layer.elements == 800 * (96 + 48) + 27 * 96 * 48 + 2 * 200 * 96
    assert Layer(8, 8, (1, 1, 1), (2, 3, 5), attention=True).flops == 2 * (2 * 2 * 15 * 15 * 8)


def counted(vae: nn.Module, latents: torch.Tensor) -> float:
    """FLOP of the second step of a stream, from what its layers really compute."""
    total = 0.0

    def convolution(layer, arguments, output):
        nonlocal total
        total += 2.0 * output.numel() * layer.weight.numel() / layer.out_channels

    hooks = [m.register_forward_hook(convolution) for m in vae.modules() if isinstance(m, CausalConv3d | nn.Conv2d)]
    with FlopCounterMode(display=False) as counter:
        stream = vae.stream()
        stream.decode(latents)
        before, products_before = total, products(counter)
        stream.decode(latents)
        after = total - before + products(counter) - products_before
    for hook in hooks:
        hook.remove()
    return after


def products(counter: FlopCounterMode) -> float:
    """FLOP of matrix products: convolutions are counted by the hooks, as the counter does not know the package's op."""
    return float(sum(n for op, n in counter.get_flop_counts().get("Global", {}).items() if "mm" in str(op)))


def test_the_decoders_that_exist_do_what_is_counted():
    config = WanVAEConfig(base_dim=8, num_res_blocks=1)
    # on the meta device, where no fused path leaves a layer's own call out
    vae, latents = WanVAE(config).to("meta"), torch.zeros(1, 16, 1, 4, 6, device="meta")
    assert sum(layer.flops for layer in decoder_layers(config, 4, 6)) == counted(vae, latents)
    light = AAPTVAEConfig(encoder_widths=(8,) * 4, decoder_widths=(4, 4, 8, 8), norm_num_groups=4)
    expected = counted(AAPTVAE(light).to("meta"), latents)
    assert sum(layer.flops for layer in decoder_layers(light, 4, 6)) == expected
    small = MiniVAEConfig(decoder_widths=(4, 6, 8), decoder_blocks=(1, 2, 3))
    expected = counted(MiniVAE(small), torch.zeros(1, 16, 1, 4, 6))
    assert sum(layer.flops for layer in decoder_layers(small, 4, 6)) == expected


@pytest.mark.parametrize(
    ("config", "layers", "floor", "target"),
    [
        (AAPT_8B, decoder_layers(LIGHT, 52, 92), 47, 60),
        (AAPT_8B, decoder_layers(WanVAEConfig(), 52, 92), 51, 66),
        (AT_720, decoder_layers(LIGHT, 90, 160), 188, 231),
        (AT_720, decoder_layers(WanVAEConfig(), 90, 160), 201, 251),
    ],
    ids=["736x416 light", "736x416 Wan", "1280x720 light", "1280x720 Wan"],
)
def test_floor_and_target_on_one_h100(config, layers, floor, target):
    found = predict(Step(config, PAPER_PROMPT, layers), H100)
    assert found["floor_ms"] == pytest.approx(floor, abs=0.6)
    assert found["target_ms"] == pytest.approx(target, abs=0.6)


def test_a_floor_by_hand():
    linear, attention, *_ = shares(Step(AAPT_8B, 0, ()), H100)
    assert linear.floor_ms == pytest.approx(1e3 * 9.7533e12 / 790e12, rel=1e-4)  # more than 8.2 GB / 3 TB/s = 2.7 ms
    assert attention.floor_ms == pytest.approx(1e3 * 20.2486e12 / 790e12, rel=1e-4)
    assert linear.bytes / 1e9 == pytest.approx(8.15, abs=0.01)
    assert attention.bytes / 1e9 == pytest.approx(2 * 38272 * 3072 * 2 * 36 / 1e9)
    assert attention.target_ms == pytest.approx(attention.floor_ms * 790 / 690 / (1196 / 1280) / 0.97)


def test_a_narrow_step_is_limited_by_its_bytes():
    one_token = dataclasses.replace(AAPT_8B, grid=(2, 2), window=1)
    linear = shares(Step(one_token, 0, ()), H200)[0]
    assert linear.floor_ms == pytest.approx(1e3 * linear.bytes / 4.3e12) and linear.target_ms >= linear.floor_ms


@pytest.mark.parametrize(
    ("tokens", "outputs", "expected"),
    [
        (132 * 128, 128, 1.0),  # one full wave
        (1, 128, 1 / (132 * 128)),  # one tile of 128x128 for one row, 131 multiprocessors idle
        (1196, 3328, 26 * 5 / 132 * 1196 / 1200),  # tiles of 128 outputs x 240 tokens: 130 of 132, 1196 of 5 x 240
    ],
)
def test_tiles_and_waves(tokens, outputs, expected):
    assert tile_efficiency(tokens, outputs, 132) == pytest.approx(expected, rel=0.006)


def test_what_the_paper_published():
    one, eight = paper_check(AAPT_8B, PAPER_PROMPT)
    assert (one["resolution"], one["gpus"], eight["resolution"], eight["gpus"]) == ("736x416", 1, "1280x720", 8)
    assert one["paper_tflops_per_gpu"] == pytest.approx((9.75 + 20.38 + 6.86) / 0.16, abs=0.2)
    assert one["floor_ms"] == pytest.approx(47, abs=0.6) and one["target_ms"] == pytest.approx(60, abs=0.6)
    assert eight["generator_tflop"] == pytest.approx(127.2, abs=0.05)
    assert eight["floor_ms"] == pytest.approx(188 / 8, abs=0.2) and eight["target_ms"] == pytest.approx(32, abs=0.6)


def test_a_prediction_says_that_it_is_one():
    found = prediction(Step(AAPT_8B, 128, decoder_layers(LIGHT, 52, 92)), "light", 0.05)
    assert "prediction" in found["label"] and "not a measurement" in found["label"]
    assert {name: each["would_meet"] for name, each in found["devices"].items()} == {"h100": False, "h200": False}
    assert prediction(Step(AAPT_8B, 128, ()), "none", 0.16)["devices"]["h100"]["would_meet"]
