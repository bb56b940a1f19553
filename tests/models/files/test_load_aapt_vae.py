# SPDX-License-Identifier: Apache-2.0
"""`load_vae` for checkpoints of SeedVR's VAE: tiny random ones, in its names and older ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.convert import convert_files
from aapt_fast.models.files.recognise import VAE, recognise
from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.infer_aapt_config import OLD_NAMES

ORIGINAL = AAPTVAEConfig(encoder_widths=(32, 32, 32, 64), decoder_widths=(32, 32, 32, 64), decoder_blocks=3)
LIGHT = AAPTVAEConfig(
    encoder_widths=(32, 64), decoder_widths=(32, 32), encoder_blocks=1, temporal_downsample=(True,), latent_channels=5
)


def random_vae(config: AAPTVAEConfig) -> AAPTVAE:
    torch.manual_seed(2)
    return AAPTVAE(config).eval().requires_grad_(False)


def state_of(vae: AAPTVAE) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in vae.state_dict().items()}


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that layers of attention had before."""
    renamed = {}
    for name, tensor in state.items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{old}.") if ".attentions." in name else name
        renamed[name] = tensor
    assert renamed.keys() != state.keys()
    return renamed


def as_pth(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "ema_vae.pth")
    return folder / "ema_vae.pth"


def as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "vae.safetensors")
    return folder / "vae.safetensors"


@pytest.mark.parametrize(
    ("config", "change", "write"),
    [(ORIGINAL, dict, as_pth), (ORIGINAL, older, as_safetensors), (LIGHT, dict, as_safetensors)],
    ids=["pth", "older names", "light"],
)
def test_a_checkpoint_gives_the_same_vae(config, change, write, tmp_path):
    vae = random_vae(config)
    path = write(change(state_of(vae)), tmp_path)
    loaded = aapt_fast.load_vae(path)
    assert isinstance(loaded, AAPTVAE) and loaded.config == config and not loaded.training
    latents = torch.randn(1, config.latent_channels, 2, 2, 1)
    assert torch.equal(loaded.decode(latents), vae.decode(latents))
    if path.suffix == ".safetensors":
        found = recognise(path)
        assert found.kind == VAE and "SeedVR" in found.advice


def test_what_tensors_do_not_show_comes_from_the_configuration(tmp_path):
    path = as_safetensors(state_of(random_vae(LIGHT)), tmp_path)
    given = {"norm_num_groups": 16, "scaling_factor": 0.5}
    config = aapt_fast.load_vae(path, config=given).config
    assert (config.norm_num_groups, config.scaling_factor) == (16, 0.5)
    with pytest.raises(CheckpointError, match="latent_channels: expected 5 as in the tensors, got 16 in config"):
        aapt_fast.load_vae(path, config={"latent_channels": 16})
    with pytest.raises(ValueError, match=r"config: expected entries among .*, got latents_mean"):
        aapt_fast.load_vae(path, config={"latents_mean": [0.0] * 5})
    with pytest.raises(CheckpointError, match="expected multiples of norm_num_groups = 7"):
        aapt_fast.load_vae(path, config={"norm_num_groups": 7})


def without(name: str):
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


DAMAGE = {
    "missing": (without("decoder.mid_block.resnets.0.conv1.bias"), "expected key decoder.mid_block.resnets.0.conv1.bi"),
    "shape": (
        lambda state: state | {"decoder.conv_out.weight": torch.zeros(3, 32, 3, 3, 1)},
        r"decoder.conv_out.weight: expected shape \[3, 32, 3, 3, 3\]",
    ),
    "extra": (lambda state: state | {"quant_conv.weight": torch.zeros(2)}, "expected no key quant_conv.weight"),
    "nan": (lambda state: state | {"decoder.conv_in.bias": torch.full((32,), torch.nan)}, "decoder.conv_in.bias: expe"),
    "blocks": (without("decoder.up_blocks.0.resnets.1.conv2.bias"), "with as many blocks at every level"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case, tmp_path):
    change, message = DAMAGE[case]
    path = as_safetensors(change(state_of(random_vae(LIGHT))), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        aapt_fast.load_vae(path)


def test_a_converted_checkpoint_is_the_same(tmp_path):
    (tmp_path / "source").mkdir()
    path = as_pth(state_of(random_vae(LIGHT)), tmp_path / "source")
    convert_files(path, tmp_path / "out")
    (result,) = (tmp_path / "out").glob("*.safetensors")
    assert load_file(result).keys() == state_of(random_vae(LIGHT)).keys()
    assert aapt_fast.load_vae(tmp_path / "out").config == LIGHT
