# SPDX-License-Identifier: Apache-2.0
"""Evaluations while a generator trains: short rollouts of held-out clips."""

from __future__ import annotations

from pathlib import Path

import torch

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.training.clips import require_control
from aapt_fast.training.data import ClipSetConfig, held_out_clips
from aapt_fast.training.metrics import psnr, sharpness
from aapt_fast.training.rollout import rollout
from aapt_fast.training.sheet import save_comparison


class HeldOutRollout:
    """One-evaluation rollouts of held-out clips, with PSNR at a few video frames.

    Every call writes the sample sheet `sheet`, unless that is None: rows of truth and generated video. The names of the
    numbers begin with `prefix`. All runs on the device of `vae`.
    """

    def __init__(
        self, vae: MiniVAE, model: GeneratorConfig, config: ClipSetConfig, sheet: Path | None, prefix: str = ""
    ) -> None:
        self._vae, self._sheet, self._prefix = vae, sheet, prefix
        truth, controls = held_out_clips(config)
        self._truth = truth.to(vae.latent_std.device)
        self._controls = clip_controls(controls, require_control(model), model.grid).to(self._truth.device)
        self._image = vae.encode(self._truth[:, :, :1]).detach()

    @torch.no_grad()
    def __call__(self, generator: Generator) -> dict[str, float]:
        seeds = torch.arange(len(self._truth), device=self._truth.device)
        frames = rollout(generator, self._image, self._controls, seeds)
        video = self._vae.decode(torch.cat([self._image, frames], dim=2))
        if self._sheet is not None:
            save_comparison(self._sheet, self._truth, video)
        curve = psnr(video, self._truth).mean(0)
        sharp = sharpness(video, self._truth)[:, len(curve) * 2 // 3 :].mean()
        marks = [mark for mark in (4, 12, 40, 60, 120, 240) if mark < len(curve)]
        numbers = {f"psnr_{mark}": float(curve[mark]) for mark in marks} | {"sharpness": float(sharp)}
        return {f"{self._prefix}{name}": value for name, value in numbers.items()}
