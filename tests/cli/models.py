# SPDX-License-Identifier: Apache-2.0
"""A model that is small enough to run a command in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig

TINY_VAE = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))


def write_nano_model(folder: Path) -> Path:
    """Write a nano model with a gallery of one picture, 32x32, to a new folder; returns the file of the model."""
    folder.mkdir()
    StreamModel(Generator(NANO), MiniVAE(TINY_VAE), name="nano").save_pretrained(folder / "nano.safetensors")
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / "00.png")
    entry = {"image": "00.png", "identity": 0, "pose": [0.0] * 17}
    (folder / "gallery.json").write_text(json.dumps({"world": "person", "first_frames": [entry]}))
    return folder / "nano.safetensors"
