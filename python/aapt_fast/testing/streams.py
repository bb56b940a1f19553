# SPDX-License-Identifier: Apache-2.0
"""Small streams with random weights, images, prompts and controls, the same ones each time."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aapt_fast.models.aapt.config import ControlConfig, GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.streaming.pages import PagePool
from aapt_fast.streaming.session import StreamSession

STREAMS = {
    "pose": NANO,
    "text": NANO_TEXT,
    "text and maps": dataclasses.replace(NANO_TEXT, control=ControlConfig(kind="maps", channels=3), prediction="frame"),
}
"""Configurations that together use every kind of input; their window is 2."""

SMALL_VAE = MiniVAEConfig(
    encoder_widths=(4, 4, 4), encoder_blocks=(1, 1, 1), decoder_widths=(4, 6, 8), decoder_blocks=(1, 1, 1)
)


def random_model(config: GeneratorConfig, dtype: torch.dtype = torch.float32, **options: Any) -> StreamModel:
    """Random weights everywhere: no path hides behind a layer that starts at zero, and the stream stays bounded."""
    torch.manual_seed(1)
    generator, vae = Generator(config), MiniVAE(SMALL_VAE)
    with torch.no_grad():
        for parameter in [*generator.parameters(), *vae.parameters()]:
            parameter.add_(0.05 * torch.randn_like(parameter))
        if config.prediction == "frame":
            generator.skip.copy_(torch.tensor([0.3, 0.4]))
    return StreamModel(generator.to(dtype), vae, **options)


def random_session(model: StreamModel, **options: Any) -> StreamSession:
    """A session with seed 7 and a random image, prompt and control of the image, unless `options` says otherwise."""
    if model.control is not None and model.control.with_previous:
        (control,) = random_controls(model, 1, seed=5)
        assert control is not None
        options.setdefault("image_control", control[0])
    return StreamSession(model, random_image(model), **{"prompt": random_prompt(model), "seed": 7, **options})


def play(session: StreamSession, controls: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Take a step per control; frames [1, C, n, h, w] and video [4 n, H, W, 3]."""
    frames, video = [], []
    for control in controls:
        video.append(session.step(control))
        frames.append(session.frame)
    return torch.cat(frames, 2), torch.cat(video)


def shuffled_pool(model: StreamModel, pages: int) -> PagePool:
    """A pool full of NaN, which hands out its pages in a random order."""
    pool = PagePool.for_model(model, pages)
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.nan)
    ids = pool.allocate(pages)
    random.shuffle(ids)
    pool.release(ids)
    return pool
