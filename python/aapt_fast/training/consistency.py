# SPDX-License-Identifier: Apache-2.0
"""Stage 2, consistency distillation with teacher forcing (AAPT appendix B). Reads top to bottom.

    aapt-fast train person --stage consistency --out runs/person

The student learns to predict the end of the teacher's path from any point of it. Per clip one step i of a fixed grid
1 = t_0 > ... > t_n = 0 is drawn; the frozen teacher takes the Euler step from t_i to t_{i + 1}; the student's answer at
t_i is pulled towards its own answer at t_{i + 1}, without gradient and without averaging of weights (improved
consistency training). There is no guidance. At t = 0 the answer is the point itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.errors import require_shape
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import timesteps
from aapt_fast.training.clips import Clips, disturb_recycled
from aapt_fast.training.diffusion import Evaluation
from aapt_fast.training.losses import frame_distance
from aapt_fast.training.place import ALONE, Place
from aapt_fast.training.precision import mixed_precision
from aapt_fast.training.run import UNWATCHED, Watch
from aapt_fast.training.schedule import add_noise, wide
from aapt_fast.training.trainer import Trainer


@dataclass(frozen=True)
class ConsistencyConfig:
    """Settings of stage 2."""

    model: GeneratorConfig
    steps: int = 800
    batch: int = 6
    clip_frames: int = 10
    levels: int = 32  # steps of the grid, uniform and then shifted by model.shift
    share_at_start: float = 0.5
    recycled_noise: float = 0.0  # as in stage 1; the paper adds none
    matrix_rate: float = 3e-4  # both small: the targets are the student's own answers and hold nothing in place
    rate: float = 3e-5
    weight_decay: float = 0.01
    evaluate_every: int = 200
    seed: int = 0


def train_consistency(
    folder: Path,
    config: ConsistencyConfig,
    teacher: Generator,
    clips: Clips,
    channel_weights: Tensor,
    evaluate: Evaluation,
    watch: Watch = UNWATCHED,
    place: Place = ALONE,
) -> Generator:
    """Distil the frozen `teacher`, whose weights the student starts from, at `place`; returns the averaged weights.

    `teacher` itself is put there.

    `channel_weights` [C] weigh the latent channels in the loss. Raises ValueError for clips that are too short.
    """
    clips.require_frames(config.clip_frames, config.model.window + 2)
    teacher = teacher.eval().requires_grad_(False)
    student = Generator(config.model)
    student.load_state_dict(teacher.state_dict())
    share = place.share(config.batch)
    for model in (teacher, student):
        place.put(model)
    channel_weights = channel_weights.to(place.device)
    trainer = Trainer(folder, config, student, lambda: evaluate(student), watch, share=share)
    levels = timesteps(config.levels, config.model.shift)

    for _ in trainer.steps():
        # a point on the path of each clip, and the teacher's next point
        batch = disturb_recycled(
            clips.sample(config.batch, config.clip_frames, config.share_at_start), config.recycled_noise
        )
        drawn = torch.randint(config.levels, (config.batch,))
        t, t_next = levels[drawn], levels[drawn + 1]
        noise = torch.randn_like(batch.clean)
        batch, noise, t, t_next = batch.each(share.own), share.own(noise), share.own(t), share.own(t_next)
        x = add_noise(batch.clean, noise, t)
        with mixed_precision(place.device):
            with torch.no_grad():
                end = teacher(x, batch.recycled, batch.control, t, teacher.new_cache())
                x_next = euler_step(x, end, t, t_next)
                answer = student(x_next, batch.recycled, batch.control, t_next, student.new_cache())
                target = torch.where(wide(t_next) > 0, answer, x_next)
            predicted = student(x, batch.recycled, batch.control, t, student.new_cache())
        loss = frame_distance(predicted, target, channel_weights)

        # one training step
        trainer.run.track(loss=loss)
        trainer.update(loss)
    return student


def euler_step(x: Tensor, end: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The point at t_next [B] on the straight line from x [B, C, F, h, w] at t [B] to `end` at 0.

    Raises ValueError for other shapes.
    """
    require_shape("x", x, "B", "C", "F", "h", "w")
    require_shape("end", end, *x.shape)
    for name, times in (("t", t), ("t_next", t_next)):
        require_shape(name, times, len(x))
    return end + wide(t_next / t) * (x - end)
