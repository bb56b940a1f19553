# SPDX-License-Identifier: Apache-2.0
"""Stage 1, diffusion adaptation: flow matching with teacher forcing (AAPT section 2.2). Reads top to bottom.

    aapt-fast train person --stage diffusion --out runs/person

Every clip has one timestep t; all its frames are trained at once under the block-causal rule of the cache. The recycled
frame is the true previous one, the target is the next. Clips are longer than the window and the sink's saturated
distance together, so every distance of an endless stream occurs in training.

No random gap between sink and window is sampled, because streams have none: once the first frame has left the window,
its keys are rotated as if it sat directly before the window (ops/cache.py). So every later frame, after a second or
after hours, sees exactly the relative positions that frame window + 2 sees. What a long stream does change is the
pictures themselves; that is for stage 3, whose rollouts are longer than clips.

The model starts from random weights or, as in the paper, from a pre-trained bidirectional model
(training/pretrain.py) that models/aapt/convert.py has made autoregressive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.training.clips import Clips, disturb_recycled
from aapt_fast.training.place import ALONE, Place
from aapt_fast.training.precision import mixed_precision
from aapt_fast.training.run import UNWATCHED, Watch
from aapt_fast.training.schedule import add_noise, sample_timesteps
from aapt_fast.training.trainer import Trainer

Evaluation = Callable[[Generator], dict[str, float]]


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of stage 1; rates are those of Muon (matrices) and AdamW (the rest)."""

    model: GeneratorConfig
    steps: int = 8000
    batch: int = 6
    clip_frames: int = 10  # frames trained at once
    share_at_start: float = 0.5  # batches cut from the start of the clips, where the recycled frame is an image's
    matrix_rate: float = 0.02
    rate: float = 1.5e-3
    weight_decay: float = 0.01
    share_at_one: float = 0.5  # clips trained at exactly t = 1, where one evaluation makes a frame
    smallest_t: float = 0.3  # of the weight 1 / t^2 that turns a frame error into a velocity error
    recycled_noise: float = 0.0  # most noise added to recycled frames after the first; the paper adds none
    evaluate_every: int = 500
    compile: bool = True  # fuse the network with torch.compile; same arithmetic, about 1.4x the speed
    seed: int = 0


def train_diffusion(
    folder: Path,
    config: DiffusionConfig,
    clips: Clips,
    channel_weights: Tensor,
    evaluate: Evaluation,
    start: Generator | None = None,
    watch: Watch = UNWATCHED,
    place: Place = ALONE,
) -> Generator:
    """Train on `clips`, which every rank has, at `place`; returns the averaged weights.

    `channel_weights` [C] weigh the latent channels in the loss. `evaluate` is called on the averaged weights. `start`,
    a model of configuration config.model, gives the first weights of a new run (None: random ones); a run that has
    begun resumes from its own. Raises ValueError for clips that are too short and for a start of another configuration;
    shift and grids may differ, no weight depends on them.
    """
    if start is not None:
        fits = dataclasses.replace(start.config, shift=config.model.shift, grids=config.model.grids) == config.model
        require(fits, "start", f"a generator of {config.model}", start.config)
    clips.require_frames(config.clip_frames, config.model.window + 2)
    torch.manual_seed(config.seed)
    model = Generator(config.model)
    if start is not None:
        model.load_state_dict(start.state_dict())
    share = place.share(config.batch)
    place.put(model)
    channel_weights = channel_weights.to(place.device)
    trainer = Trainer(folder, config, model, lambda: evaluate(model), watch, share=share)

    def predict(noised: Tensor, recycled: Tensor, control: Tensor, t: Tensor) -> Tensor:
        return model(noised, recycled, control, t, model.new_cache())

    if config.compile and place.compiles:
        predict = torch.compile(predict)

    for _ in trainer.steps():
        # a batch of clips, each at its own t
        batch = disturb_recycled(
            clips.sample(config.batch, config.clip_frames, config.share_at_start), config.recycled_noise
        )
        t = sample_timesteps(config.batch, config.model.shift, config.share_at_one)
        noise = torch.randn_like(batch.clean)
        batch, noise, t = batch.each(share.own), share.own(noise), share.own(t)
        noised = add_noise(batch.clean, noise, t)

        # one training step
        with mixed_precision(place.device):
            predicted = predict(noised, batch.recycled, batch.control, t)
        loss = flow_matching_loss(predicted, batch.clean, t, channel_weights, config.smallest_t)
        trainer.run.track(loss=loss)
        trainer.update(loss)
    return model


def flow_matching_loss(
    predicted: Tensor, clean: Tensor, t: Tensor, channel_weights: Tensor, smallest_t: float
) -> Tensor:
    """Mean weighted squared error of frames [B, C, F, h, w], equal to the error of v = eps - x0 where t > smallest_t.

    x0 = x_t - t v, so |v - v'|^2 = |x0 - x0'|^2 / t^2; below `smallest_t` the weight stays constant.
    channel_weights [C]. Raises ValueError for other shapes.
    """
    require_shape("predicted", predicted, "B", "C", "F", "h", "w")
    require_shape("clean", clean, *predicted.shape)
    require_shape("t", t, len(predicted))
    require_shape("channel_weights", channel_weights, predicted.shape[1])
    weight = t.clamp_min(smallest_t).square().reciprocal().view(-1, 1, 1, 1, 1)
    return (weight * channel_weights.view(1, -1, 1, 1, 1) * (predicted - clean).square()).mean()


@torch.no_grad()
def decoder_sensitivity(decode: Callable[[Tensor], Tensor], latents: Tensor, size: float = 0.2) -> Tensor:
    """Weights [C], mean 1: the square root of how much a disturbance of each channel changes the video.

    latents [B, C, F, h, w] of unit standard deviation. Raises ValueError for another shape.
    """
    require_shape("latents", latents, "B", "C", "F", "h", "w")
    video, changes, same = decode(latents), [], torch.Generator().manual_seed(0)  # a resumed run has the same weights
    for channel in range(latents.shape[1]):
        disturbed = latents.clone()
        noise = torch.randn(disturbed[:, channel].shape, generator=same).to(latents.device)
        disturbed[:, channel] += size * noise
        changes.append((decode(disturbed) - video).square().mean())
    weights = torch.stack(changes).sqrt()
    return weights / weights.mean()
