# SPDX-License-Identifier: Apache-2.0
"""Comparison of generated videos with several true futures, where chance has a part: one of them, or their average?

The same first video frame and the same controls are continued by chance in several ways, and by every model with
several seeds. A model that averages over futures is closer to their mean than to any of them, and its seeds agree; a
model that chooses is as close to the nearest future as another true future is, and its seeds differ as much as the
futures do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.training.data import ClipSetConfig, futures, make_clip, to_float
from aapt_fast.training.metrics import diversity, nearest_future, sharpness
from aapt_fast.training.report import Measurements
from aapt_fast.training.rollout import generate_video

FUTURES = 8  # true futures beside each clip
SAMPLES = 4  # videos of a model, each with its own seed
FRAMES = 48  # video frames; later no two futures are alike, and the nearest is far
ANOTHER = "another true future"
AVERAGE = "average of the true futures"


def measure_futures(
    measured: Measurements, models: Mapping[str, tuple[StreamModel, int]], config: ClipSetConfig, clips: Sequence[int]
) -> None:
    """Add clips of a set with chance to measured.futures, for the `models`: (model, evaluations per step) by name.

    Two baselines come with them: a true future that is none of the others, and the average of all others.
    """
    short = dataclasses.replace(config, frames=1 + FRAMES)
    videos = torch.stack([to_float(futures(short, clip, FUTURES + SAMPLES)) for clip in clips])
    controls = torch.stack([make_clip(short, clip).controls for clip in clips])
    could_be, others = videos[:, :FUTURES], videos[:, FUTURES:]
    _add(measured, ANOTHER, others, could_be)
    _add(measured, AVERAGE, could_be.mean(1, keepdim=True).expand(-1, SAMPLES, -1, -1, -1, -1), could_be)
    image = videos[:, 0, :, :1]
    for name, (model, nfe) in models.items():
        seeds = [torch.tensor([10_000 * (sample + 1) + clip for clip in clips]) for sample in range(SAMPLES)]
        samples = [generate_video(model, image, controls, each, nfe) for each in seeds]
        _add(measured, name, torch.stack(samples, dim=1), could_be)


def _add(measured: Measurements, name: str, samples: Tensor, could_be: Tensor) -> None:
    """Samples [B, S, 3, T, H, W] of `name` beside the futures [B, K, 3, T, H, W]; the given first frame is left out."""
    apart = [(*nearest_future(sample, could_be), sharpness(sample, could_be[:, 0])) for sample in samples.unbind(1)]
    for metric, values in zip(("nearest", "mean", "sharpness"), zip(*apart, strict=True), strict=True):
        measured.add_futures(name, metric, torch.stack(values).mean(0)[:, 1:])
    measured.add_futures(name, "diversity", diversity(samples, could_be))
