# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.files.load_generator import load_generator
from aapt_fast.models.files.load_vae import load_vae
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.training.optimiser import descend

LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "model": lambda path: StreamModel.from_pretrained(path).generator,
    "vae of a model": lambda path: StreamModel.from_pretrained(path).vae,
    "generator": load_generator,
    "vae": load_vae,
}


@pytest.mark.parametrize("name", LOADERS)
def test_weights_loaded_in_inference_mode_can_be_trained(name: str, tmp_path: Path) -> None:
    path = tmp_path / "nano.safetensors"
    vae = MiniVAE(MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4)))
    StreamModel(Generator(NANO), vae, name="nano").save_pretrained(path)
    with torch.inference_mode():
        module = LOADERS[name](path)
        assert torch.is_inference_mode_enabled()
    assert not any(each.is_inference() for each in (*module.parameters(), *module.buffers()))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.requires_grad_(True)
    if isinstance(module, Generator):
        frames, control = torch.randn(2, 1, 16, 2, 4, 4), torch.randn(1, NANO.control.step_channels, 2, 4, 4)
        loss = module(*frames, control, torch.ones(1), module.new_cache()).square().mean()
    else:
        loss = module.reconstruct(module.encode(torch.randn(1, 3, 5, 32, 32))).square().mean()
    loss.backward()
    descend(module, torch.optim.AdamW(module.parameters(), lr=0.1), 1.0)
    assert any(not torch.equal(value, before[key]) for key, value in module.state_dict().items())
