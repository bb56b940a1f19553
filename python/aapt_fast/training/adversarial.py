# SPDX-License-Identifier: Apache-2.0
"""Stage 3, adversarial training with student forcing (AAPT section 2.3 and appendix B). Reads top to bottom.

    aapt-fast train person --stage adversarial --out runs/person

The generator makes every frame from its own previous one, step by step through its cache, exactly as a session does:
one evaluation per frame at t = 1. The recycled frame gives no gradient, cached keys and values do. A long rollout is
cut into segments: the cache is detached between them, and every segment is judged and differentiated at once. Segments
overlap, so that the discriminator sees how a segment continues the one before.

The discriminator compares each generated frame with the true one of the same moment (relativistic loss). Its smoothness
is kept by approximate R1 and R2. Our worlds have the truth for every control, so a plain distance to it can be added
(`reconstruction`): the paper has no such term, and with it alone (`adversarial` = 0) the stage is a student-forced
regression, the baseline for what the adversarial loss adds. Where chance decides, the truth is one of many; then the
distance to what stage 1 reads in the generated frame (`refinement`, training/refinement.py) can take its place. The
paper has no such term either.

As published, the discriminator is shown clean frames, and t is a mere input. With `noised` it is shown frames noised to
t, as its trunk has seen them in stage 1; `training.ablate` compares both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.discriminator import Discriminator
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import sample_frame, shift_time
from aapt_fast.ops.cache import GrowingCache
from aapt_fast.progress import say
from aapt_fast.training.clips import Batch, Clips
from aapt_fast.training.diffusion import Evaluation
from aapt_fast.training.losses import (
    approximate_penalty,
    exact_penalty,
    frame_distance,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from aapt_fast.training.place import ALONE, UNSHARED, Place, Share
from aapt_fast.training.precision import mixed_precision
from aapt_fast.training.refinement import Reader
from aapt_fast.training.run import UNWATCHED, TrainingRun, Watch
from aapt_fast.training.trainer import Trainer

SMALLEST_T = 1e-3  # of the discriminator: at t = 0 the adversarial loss collapses (APT section 3)


@dataclass(frozen=True)
class AdversarialConfig:
    """Settings of stage 3. A weight of 0 leaves its term out."""

    model: GeneratorConfig
    steps: int = 600
    batch: int = 6
    segment_frames: int = 7
    segments: int = 4  # at most; the number grows evenly over the run
    overlap: int = 2  # frames of the segment before that the discriminator is shown; they get no logit
    reconstruction: float = 1.0
    refinement: float = 0.0  # weight of the distance to the teacher's reading of the frame
    refinement_levels: tuple[float, float] = (0.4, 0.7)  # smallest and largest t that the teacher reads from
    refinement_evaluations: int = 3  # of the teacher for each frame
    adversarial: float = 0.0
    balanced: bool = False  # `adversarial` is the ratio of its pull on the frames to that of the distances
    penalty: float = 300.0  # lambda of R1 and R2; the paper's is 1000
    sigma: float = 0.1  # of the disturbance in approximate R1 and R2
    exact_penalties: bool = False  # the gradients themselves instead of differences; slow
    whole_clip: bool = False  # a bidirectional discriminator with one logit per segment
    noised: bool = False  # the discriminator is shown frames noised to t, generated and true ones alike
    discriminator_shift: float = 1.0  # of its t; below 1 draws more small t
    discriminator_alone: int = 100  # first steps, with the generator frozen
    discriminator_rate: float = 3e-4
    optimiser: str = "muon"  # of the generator: "muon", or "adam", without momentum and at `rate` for all weights
    matrix_rate: float = 0.005
    rate: float = 4e-4
    weight_decay: float = 0.0  # with "muon"
    average_decay: float = 0.995
    evaluate_every: int = 100
    seed: int = 0


OPTIMISERS = ("muon", "adam")


@dataclass(frozen=True)
class Segment:
    """Input of the discriminator: generated and true frames [B, C, O + F, h, w] of the same moments.

    The first `overlap` = O frames belong to the segment before.
    """

    overlap: int
    fake: Tensor
    fake_previous: Tensor
    real: Tensor
    real_previous: Tensor
    control: Tensor

    @property
    def new(self) -> tuple[Tensor, Tensor]:
        """Generated frames and controls, [B, ..., F, h, w] each, without the overlap."""
        return self.fake[:, :, self.overlap :], self.control[:, :, self.overlap :]


@dataclass(frozen=True)
class Viewing:
    """The level that the discriminator judges at: t [B], and noise [2, B, C, O + F, h, w] or None.

    The first noise is for the frames, the second for the frames before them. Generated, true and disturbed frames get
    the same, so that differences of logits measure the frames alone.
    """

    t: Tensor
    noise: Tensor | None

    def show(self, frames: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Frames and those before them [B, C, O + F, h, w], noised to t if there is noise."""
        if self.noise is None:
            return frames, previous
        t = self.t.view(-1, 1, 1, 1, 1)
        return (1 - t) * frames + t * self.noise[0], (1 - t) * previous + t * self.noise[1]


def train_adversarial(
    folder: Path,
    config: AdversarialConfig,
    start: Generator,
    trunk: Generator,
    clips: Clips,
    channel_weights: Tensor,
    evaluate: Evaluation,
    watch: Watch = UNWATCHED,
    place: Place = ALONE,
) -> Generator:
    """Train from `start` (stage 2's weights); the discriminator starts from `trunk` (stage 1's). Returns the average.

    It trains at `place`. `trunk` is the teacher of the refinement, too, and put there for it. `channel_weights` [C]
    weigh the latent channels in the distances. Raises ValueError if all three weights are 0, for levels that do not
    ascend in 0..1, for an unknown optimiser, for exact penalties on ranks, or if the clips are shorter than a segment.
    """
    _check_config(config, place)
    clips.require_frames(config.segment_frames)
    torch.manual_seed(config.seed)
    generator = Generator(config.model)
    generator.load_state_dict(start.state_dict())
    trunk = trunk.eval().requires_grad_(False)
    discriminator = Discriminator(config.model, whole_clip=config.whole_clip)
    discriminator.start_from(trunk)
    share = place.share(config.batch)
    place.put(generator, keep=True)
    place.put(discriminator)
    if config.refinement > 0:
        place.put(trunk)
    channel_weights = channel_weights.to(place.device)
    # RMSProp with alpha 0.9, which is Adam without momentum (APT appendix)
    judge_optimiser = torch.optim.Adam(discriminator.parameters(), lr=config.discriminator_rate, betas=(0.0, 0.9))
    judged = {"discriminator": discriminator, "judge_optimiser": judge_optimiser}
    trainer = Trainer(
        folder,
        config,
        generator,
        lambda: evaluate(generator),
        watch,
        optimiser=adam(generator, config.rate) if config.optimiser == "adam" else None,
        more=judged,
        average_decay=config.average_decay,
        share=share,
    )
    run = trainer.run

    for step in trainer.steps():
        frozen = config.adversarial > 0 and step < config.discriminator_alone
        batch = long_batch(clips, config, step)

        # the generator: each segment is rolled out, read, judged and differentiated
        place.freeze(discriminator, True)
        segments = []
        noise = torch.randn_like(batch.clean)
        batch, noise = batch.each(share.own), share.own(noise)
        image, reading = batch.recycled[:, :, :1], (config.refinement_levels, config.refinement_evaluations)
        reader = Reader(trunk, *reading, noise, image, share) if config.refinement > 0 else None
        for segment in roll_out(generator, batch, noise, config.segment_frames, config.overlap, frozen):
            segments.append(segment)
            if not frozen:
                target = reader.read(*segment.new) if reader else None
                pull = generator_pull(discriminator, segment, config, channel_weights, run, target)
                segment.fake.backward(share.weight * pull / (batch.clean.shape[2] // config.segment_frames))
        if not frozen:
            trainer.apply_gradients()
        watch_motion(segments, run)

        # the discriminator, on the same frames
        if config.adversarial > 0:
            place.freeze(discriminator, False)
            for segment in segments:
                loss = discriminator_loss(discriminator, segment, config, run)
                (share.weight * loss / len(segments)).backward()
            trainer.descend(discriminator, judge_optimiser)
    return generator


def _check_config(config: AdversarialConfig, place: Place) -> None:
    """Raise ValueError for settings that contradict each other, or the place."""
    distances = config.reconstruction > 0 or config.refinement > 0
    zero = "reconstruction and refinement are 0"
    require(distances or config.adversarial > 0, "adversarial", f"a weight above 0, as {zero}", 0)
    require(distances or not config.balanced, "balanced", f"False, as {zero}", True)
    smallest, largest = config.refinement_levels
    require(0 < smallest <= largest <= 1, "refinement_levels", "two ascending levels in 0..1", config.refinement_levels)
    require(config.refinement_evaluations >= 1, "refinement_evaluations", "at least 1", config.refinement_evaluations)
    require(config.optimiser in OPTIMISERS, "optimiser", " or ".join(OPTIMISERS), config.optimiser)
    exact = config.exact_penalties and place.mesh is not None
    require(not exact, "exact_penalties", "False on ranks: FSDP2 has no second derivative", True)


def adam(generator: Generator, rate: float) -> torch.optim.Optimizer:
    """Adam without momentum: the gradient of an adversary turns, and what it was before misleads."""
    return torch.optim.Adam(generator.parameters(), lr=rate, betas=(0.0, 0.99), fused=True)


def long_batch(clips: Clips, config: AdversarialConfig, step: int) -> Batch:
    """A batch of 1 .. `segments` whole segments, more of them the longer the run has lasted."""
    most = 1 + min(config.segments - 1, config.segments * step // max(1, config.steps))
    frames = config.segment_frames * int(torch.randint(1, most + 1, ()))
    return clips.chain(config.batch, -(-frames // clips.frames)).cut(slice(frames))


def roll_out(
    generator: Generator, batch: Batch, noise: Tensor, segment_frames: int, overlap: int = 0, frozen: bool = False
) -> Iterator[Segment]:
    """Yield the segments of one student-forced rollout; gradients stay inside a segment, none are kept if `frozen`.

    It starts from the true frame before the batch, batch.recycled[:, :, :1]; noise [B, C, F, h, w] as batch.clean.
    """
    previous = batch.recycled[:, :, :1]
    cache: GrowingCache = generator.new_cache(*previous.shape[-2:])
    made = [previous]  # every frame so far, without gradient
    for first in range(0, batch.clean.shape[2], segment_frames):
        cache, new = cache.detach(), []
        with torch.set_grad_enabled(not frozen), mixed_precision(noise.device):
            for frame in range(first, first + segment_frames):
                here = slice(frame, frame + 1)
                fake = sample_frame(generator, noise[:, :, here], made[-1], batch.control[:, :, here], [cache])
                new.append(fake)
                made.append(fake.detach())  # the recycled frame gives no gradient
        shown = min(overlap, first)
        span = slice(first - shown, first + segment_frames)
        yield Segment(
            overlap=shown,
            fake=torch.cat([*made[span.start + 1 : first + 1], *new], dim=2),
            fake_previous=torch.cat(made[span.start : span.stop], dim=2),
            real=batch.clean[:, :, span],
            real_previous=batch.recycled[:, :, span],
            control=batch.control[:, :, span],
        )


def generator_pull(
    discriminator: Discriminator,
    segment: Segment,
    config: AdversarialConfig,
    channel_weights: Tensor,
    run: TrainingRun,
    reading: Tensor | None = None,
) -> Tensor:
    """The gradient of the generator's loss with respect to the generated frames, of the shape of segment.fake.

    The loss is the weighted sum of reconstruction, refinement, if there is a `reading` [B, C, F, h, w] of the frames
    without the overlap, and relativistic loss. With `balanced` the relativistic part is scaled until its gradient's
    norm is `adversarial` times that of the distances, as in VQGAN (Esser et al. 2021, equation 7).
    """
    frames = segment.fake.detach().requires_grad_()
    new = frames[:, :, segment.overlap :]
    pull, length = torch.zeros_like(frames), 1.0
    distances = torch.zeros((), device=frames.device)
    if config.reconstruction > 0:
        error = frame_distance(new, segment.real[:, :, segment.overlap :], channel_weights)
        distances = distances + config.reconstruction * error
        run.track(reconstruction=error)
    if reading is not None:
        error = frame_distance(new, reading, channel_weights)
        distances = distances + config.refinement * error
        run.track(refinement=error)
    if distances.requires_grad:
        pull = torch.autograd.grad(distances, frames)[0]
        length = float(run.share.norm(pull))
    if config.adversarial > 0:
        watched = dataclasses.replace(segment, fake=frames)
        fake, real = judge(discriminator, watched, draw_viewing(segment, config, run.share))
        adversarial = relativistic_generator_loss(fake, real.detach())
        towards_real = run.share.of_context(torch.autograd.grad(adversarial, frames)[0])
        towards_real[:, :, : segment.overlap] = 0  # these frames are not generated again
        size = run.share.norm(towards_real)
        run.track(adversarial=adversarial, pulls=size / max(length, 1e-12))
        factor = length / size.clamp_min(1e-12) if config.balanced else 1.0
        pull = pull + config.adversarial * factor * towards_real
    return pull


def discriminator_loss(
    discriminator: Discriminator, segment: Segment, config: AdversarialConfig, run: TrainingRun
) -> Tensor:
    """Relativistic loss and R1, R2 of a segment. All passes share a viewing: penalties do not measure its chance."""
    viewing = draw_viewing(segment, config, run.share)
    recorded = config.penalty > 0 and config.exact_penalties
    fake_frames = segment.fake.detach().requires_grad_(recorded)
    real_frames = segment.real.detach().clone().requires_grad_(recorded)
    watched = dataclasses.replace(segment, fake=fake_frames, real=real_frames)
    # torch's fused attention has no second derivative
    with sdpa_kernel(SDPBackend.MATH) if recorded else nullcontext():
        fake, real = judge(discriminator, watched, viewing)
    loss = relativistic_discriminator_loss(fake, real)
    run.track(discriminator=loss, gap=(real - fake).mean())
    if config.penalty > 0:
        if config.exact_penalties:
            penalties = exact_penalty(real, real_frames) + exact_penalty(fake, fake_frames)
            penalties = penalties * config.sigma**2  # comparable with the approximate ones
        else:
            disturbed = dataclasses.replace(
                segment,
                fake=fake_frames + config.sigma * run.share.randn_like(fake_frames),
                real=real_frames + config.sigma * run.share.randn_like(real_frames),
            )
            fake_near, real_near = judge(discriminator, disturbed, viewing)
            penalties = approximate_penalty(real, real_near) + approximate_penalty(fake, fake_near)
        run.track(penalties=config.penalty * penalties)
        loss = loss + config.penalty * penalties
    return loss


def judge(discriminator: Discriminator, segment: Segment, viewing: Viewing) -> tuple[Tensor, Tensor]:
    """Logits of the generated and of the true frames, [B, F] each, in one pass; the overlap gets none."""
    fakes = viewing.show(segment.fake, segment.fake_previous)
    reals = viewing.show(segment.real, segment.real_previous)
    frames, previous = (torch.cat(pair) for pair in zip(fakes, reals, strict=True))
    with mixed_precision(frames.device):
        logits = discriminator(frames, previous, segment.control.repeat(2, 1, 1, 1, 1), viewing.t.repeat(2))
    if not discriminator.whole_clip:
        logits = logits[:, segment.overlap :]
    fake, real = logits.chunk(2)
    return fake, real


def draw_viewing(segment: Segment, config: AdversarialConfig, share: Share = UNSHARED) -> Viewing:
    """A level for every row: t uniform as in AAPT section 2.3, or shifted; noise if frames are shown noised."""
    t = shift_time(share.own(torch.rand(share.batch(segment.real))), config.discriminator_shift).clamp_min(SMALLEST_T)
    if not config.noised:
        return Viewing(t, None)
    return Viewing(t, torch.stack([share.randn_like(segment.real) for _ in range(2)]))


@torch.no_grad()
def watch_motion(segments: list[Segment], run: TrainingRun) -> None:
    """Track the dynamic degree, generated over true motion, and warn if it is that of a still or of noise."""
    made = torch.stack([(s.fake - s.fake_previous).abs().mean() for s in segments]).sum()
    true = torch.stack([(s.real - s.real_previous).abs().mean() for s in segments]).sum()
    made, true = run.share.mean(torch.stack([made, true])).unbind()
    ratio = made / true.clamp_min(1e-9)
    run.track(dynamic_degree=ratio)
    degree = float(ratio)
    if run.share.place.is_first and not 0.3 < degree < 3 and run.step % 10 == 0:
        say(f"step {run.step}: the generated video moves {degree:.2f} times as much as the true one")
