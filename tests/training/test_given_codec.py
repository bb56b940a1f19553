# SPDX-License-Identifier: Apache-2.0
"""Recipes that take a codec as it is, and the file that the stage codec leaves for others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import aapt_fast
from aapt_fast.models.files.model_file import write_vae
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.training import recipes, stages
from aapt_fast.training.data import held_out_clips
from aapt_fast.training.metrics import psnr
from aapt_fast.training.recipes import ANYONE, PERSON, Recipe


def write(path: Path, channels: int = 16, seed: int = 0) -> Path:
    """A file with a small random codec."""
    torch.manual_seed(seed)
    config = MiniVAEConfig(channels, (4, 4, 4), (1, 1, 1), (4, 4, 4), (1, 1, 1))
    write_vae(path, MiniVAE(config), "codec", "float32")
    return path


def given(path: Path) -> Recipe:
    return dataclasses.replace(PERSON, codec=None, vae=str(path))


def test_the_codec_of_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "vae.safetensors")
    stages.train(given(file), tmp_path / "run", ("codec",))
    expected = aapt_fast.load_vae(file).state_dict()
    taken = torch.load(tmp_path / "run" / "codec" / "vae.pt", weights_only=True)
    assert taken.keys() == expected.keys() and all(torch.equal(taken[name], expected[name]) for name in taken)
    left = aapt_fast.load_vae(tmp_path / "run" / "codec" / "vae.safetensors")
    assert torch.equal(left.linear_decoder.weight, expected["linear_decoder.weight"].half().float())
    stages.train(given(file), tmp_path / "run", ("codec",))  # the same again


def test_a_folder_with_another_codec_is_refused(tmp_path: Path) -> None:
    stages.train(given(write(tmp_path / "one.safetensors")), tmp_path / "run", ("codec",))
    other = write(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(ValueError, match=r"out: expected a new folder, or one with the codec of .*other"):
        stages.train(given(other), tmp_path / "run", ("codec",))


def test_a_codec_of_other_channels_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    file = write(tmp_path / "vae.safetensors", channels=6)
    with pytest.raises(ValueError, match="codec: expected a codec of 16 channels, those of the generator, got 6"):
        stages.train(given(file), tmp_path / "run", ("codec",))
    assert not (tmp_path / "run").exists()


def test_recipes_with_two_codecs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="codec: expected None, as it is that of mini-vae, got settings"):
        dataclasses.replace(PERSON, vae="mini-vae")
    with pytest.raises(ValueError, match="vae: expected None, as the codec is that of mini-person, got mini-vae"):
        dataclasses.replace(ANYONE, vae="mini-vae")


@torch.no_grad()
def test_the_bundled_codec_codes_persons_and_rooms() -> None:
    """Better than its linear part by some dB, and as well as its card says, roughly."""
    vae = aapt_fast.load_vae("mini-vae")
    assert isinstance(vae, MiniVAE) and (vae.spatial_factor, vae.latent_channels) == (16, 48)
    for config, least in ((recipes.HELD_OUT_LARGE_PERSON, 31), (recipes.HELD_OUT_ROOMS, 24)):
        video, _ = held_out_clips(dataclasses.replace(config, clips=1, frames=5))
        latents = vae.encode(video)
        assert 0.5 < latents.std() < 2
        linear = vae.reconstruct(vae.encode(video, linear_only=True), linear_only=True)[:, :, 3:]
        coded, plain = psnr(vae.decode(latents), video).mean(), psnr(linear, video).mean()
        assert coded > max(least, plain + 1)


def test_a_codec_alone_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(aapt_fast.CheckpointError, match="expected readable configurations"):
        aapt_fast.StreamModel.from_pretrained(write(tmp_path / "vae.safetensors"))
