# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from aapt_fast.cli import checks, main
from aapt_fast.models.aapt.config import ControlConfig, GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import (
    AAPT_8B,
    GENERATORS,
    MINI_PERSON,
    NANO,
    PERSON_CONTROL,
    PERSON_LIMBS,
    generator_preset,
)
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.profiling.systems import find_system
from aapt_fast.worlds.person.skeleton import JOINTS, LIMBS

HOW_TO = Path(__file__).parents[3] / "docs" / "how-to" / "add-a-preset.md"


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(config: GeneratorConfig) -> Generator:
    with torch.device("meta"):
        return Generator(config)


def test_limbs_are_those_of_the_world():
    assert PERSON_LIMBS == LIMBS
    assert PERSON_CONTROL.joints == len(JOINTS)
    assert PERSON_CONTROL.step_channels == 5 * 15 * 4 * 2


def test_aapt_8b_has_the_parameters_that_its_configuration_implies():
    d, head, hidden, patch, channels = 3072, 128, 4 * 3072, 2 * 2, 16
    keys_only = 3 * d * d + 2 * head + 6 * d  # qkv, the norms of q and k, modulation
    stream = keys_only + (d * d + d) + (d * hidden + hidden) + (hidden * d + d)  # output, MLP
    blocks = 35 * 2 * stream + stream + keys_only  # the last text stream only feeds attention
    embeddings = (2 * channels * patch * d + d) + (5120 * d + d)  # noised and recycled patches, text
    timestep = (256 * d + d) + (d * d + d) + (d * 6 * d + 6 * d)
    final = 2 * d + (d * channels * patch + channels * patch)
    expected = blocks + embeddings + timestep + final
    assert expected == 8_154_648_640
    assert parameters(on_meta(AAPT_8B)) == expected


def test_aapt_8b_has_the_paper_s_shape():
    assert (AAPT_8B.layers, AAPT_8B.heads, AAPT_8B.head_dim, AAPT_8B.tokens) == (36, 24, 128, 1196)
    assert (AAPT_8B.window, AAPT_8B.shift, AAPT_8B.prediction) == (30, 24.0, "velocity")


def test_the_bundled_model_fits_into_20_megabytes_of_float16():
    with torch.device("meta"):
        vae = MiniVAE()
    assert 2 * (parameters(on_meta(MINI_PERSON)) + parameters(vae)) < 20e6


@pytest.mark.parametrize("name", GENERATORS)
def test_preset_survives_json(name):
    config = generator_preset(name)
    assert GeneratorConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_vae_configuration_survives_json():
    config = MiniVAEConfig(latent_channels=8, encoder_widths=(8, 12, 16))
    assert MiniVAEConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_preset_is_an_entry_and_a_name(monkeypatch, capsys):
    """The entry of docs/how-to/add-a-preset.md has a name, streams, and is measured by the command."""
    (entry,) = re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    monkeypatch.setitem(GENERATORS, "my-model", NANO)  # so that it goes again after the test
    monkeypatch.setattr(checks, "PRESETS", (*checks.PRESETS, "my-model"))
    exec(compile(entry, str(HOW_TO), "exec"), {})
    config = generator_preset("my-model")
    assert config != NANO and find_system("my-model").config == config
    command = ["bench", "frame", "--preset", "my-model", "--device", "cpu", "--steps", "5", "--target", "1000"]
    assert main(command) == 0
    assert "frame/my-model" in capsys.readouterr().out


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"expected aapt-8b \| mini-person \| nano \| nano-text, got aapt-9b"):
        generator_preset("aapt-9b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(heads=3), "width: expected a multiple of heads = 3, got 32"),
        (dict(width=30, heads=2), "width / heads: expected an even head dimension, got 15"),
        (dict(prediction="noise"), "prediction: expected velocity or frame, got noise"),
        (dict(window=0), "window: expected at least 1 past frame, got 0"),
        (dict(grid=(5, 4)), "grid height: expected a multiple of patch = 2, got 5"),
        (dict(grid=(4, 7)), "grid width: expected a multiple of patch = 2, got 7"),
    ],
)
def test_impossible_generators_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**{**dict(width=32, heads=2, layers=1, grid=(4, 4), window=2), **change})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="text", channels=3), "control.kind: expected maps or pose, got text"),
        (dict(kind="maps"), "control.channels: expected at least 1, got 0"),
        (dict(kind="maps", channels=3, entries=0), "control.entries: expected at least 1, got 0"),
        (dict(kind="pose", joints=3), "control.limbs: expected at least one pair of joints"),
        (dict(kind="pose", joints=3, limbs=((0, 3),)), "control.limbs: expected joints below 3"),
    ],
)
def test_impossible_controls_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ControlConfig(**fields)


def test_a_control_stem_needs_a_control():
    with pytest.raises(ValueError, match="control_width: expected 0 without a control, got 8"):
        Generator(GeneratorConfig(width=32, heads=2, layers=1, grid=(4, 4), window=2, control_width=8))


def test_unknown_fields_of_a_configuration_are_refused():
    with pytest.raises(TypeError, match="depth"):
        GeneratorConfig.from_json({**dataclasses.asdict(generator_preset("nano")), "depth": 3})
