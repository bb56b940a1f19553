# SPDX-License-Identifier: Apache-2.0
"""Before stage 1: flow matching of a bidirectional model on whole clips. Reads top to bottom.

    aapt-fast train person --stage pretrain --stage diffusion --out runs/person

AAPT starts from a large pre-trained video diffusion model. This makes a small one: every clip has one timestep t, all
its frames are noised alike and attend to each other both ways, and there is neither control nor first frame to go by.
models/aapt/convert.py turns the result into the model that stage 1 starts from. Its benefit for the person model has
not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.training.diffusion import Evaluation, flow_matching_loss
from aapt_fast.training.place import ALONE, Place
from aapt_fast.training.precision import mixed_precision
from aapt_fast.training.run import UNWATCHED, Watch
from aapt_fast.training.schedule import add_noise, sample_timesteps
from aapt_fast.training.trainer import Trainer


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pre-training; rates are those of Muon (matrices) and AdamW (the rest)."""

    model: GeneratorConfig  # bidirectional
    steps: int = 4000
    batch: int = 6
    clip_frames: int = 10
    matrix_rate: float = 0.02
    rate: float = 1.5e-3
    weight_decay: float = 0.01
    smallest_t: float = 0.3  # of the weight 1 / t^2 that turns a frame error into a velocity error
    evaluate_every: int = 500
    seed: int = 0


def train_bidirectional(
    folder: Path,
    config: PretrainConfig,
    latents: Tensor,
    channel_weights: Tensor,
    evaluate: Evaluation,
    watch: Watch = UNWATCHED,
    place: Place = ALONE,
) -> Generator:
    """Train on spans of the clips `latents` [clips, C, frames, h, w], at `place`; returns the averaged weights.

    `channel_weights` [C] weigh the latent channels in the loss. `evaluate` is called on the averaged weights.
    Raises ValueError for an autoregressive model and for clips that are too short.
    """
    require(not config.model.autoregressive, "model", "a bidirectional generator", "an autoregressive one")
    clips, frames = latents.shape[0], latents.shape[2]
    require(1 <= config.clip_frames <= frames, "clip_frames", f"1..{frames}, the frames of a clip", config.clip_frames)
    torch.manual_seed(config.seed)
    model = Generator(config.model)
    share = place.share(config.batch)
    place.put(model)
    channel_weights = channel_weights.to(place.device)
    trainer = Trainer(folder, config, model, lambda: evaluate(model), watch, share=share)

    for _ in trainer.steps():
        # a batch of clips, each at its own t
        first = int(torch.randint(frames - config.clip_frames + 1, ()))
        picks = torch.randint(clips, (config.batch,))
        clean = latents[picks][:, :, first : first + config.clip_frames]
        t = sample_timesteps(config.batch, config.model.shift, share_at_one=0.0)
        noise = torch.randn_like(clean)
        clean, noise, t = share.own(clean), share.own(noise), share.own(t)
        noised = add_noise(clean, noise, t)

        # one training step
        with mixed_precision(place.device):
            predicted = model(noised, None, None, t, model.whole_clip_cache())
        loss = flow_matching_loss(predicted, clean, t, channel_weights, config.smallest_t)
        trainer.run.track(loss=loss)
        trainer.update(loss)
    return model


class HeldOutError:
    """The evaluation during pre-training: the error of denoised clips at a few levels of noise, always the same.

    Args:
        latents: clips [clips, C, frames, h, w] that training does not see.
        levels: the values of t.
    """

    def __init__(self, latents: Tensor, levels: tuple[float, ...] = (0.25, 0.5, 0.75)) -> None:
        self._latents, self._levels = latents, levels
        self._noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def __call__(self, model: Generator) -> dict[str, float]:
        errors = {}
        for level in self._levels:
            latents = self._latents.to(model.weight.device)
            noised = (1 - level) * latents + level * self._noise.to(latents.device)
            t = torch.full((len(noised),), level, device=latents.device)
            predicted = model(noised, None, None, t, model.whole_clip_cache(*noised.shape[-2:]))
            errors[f"error_{level:g}"] = float((predicted - latents).square().mean())
        return errors
