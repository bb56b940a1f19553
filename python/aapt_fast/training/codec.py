# SPDX-License-Identifier: Apache-2.0
"""Stage 0: train the small VAE on random crops; a patch GAN joins late. Reads top to bottom.

aapt-fast train person --stage codec --out runs/person
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.models.vae.patch_discriminator import PatchDiscriminator
from aapt_fast.training.data import ClipSet, to_float
from aapt_fast.training.losses import codec_loss, relativistic_discriminator_loss, relativistic_generator_loss
from aapt_fast.training.metrics import psnr, sharpness, ssim
from aapt_fast.training.place import ALONE, Place
from aapt_fast.training.precision import mixed_precision
from aapt_fast.training.run import UNWATCHED, Watch
from aapt_fast.training.sheet import save_comparison
from aapt_fast.training.trainer import Trainer


@dataclass(frozen=True)
class CodecConfig:
    """Settings of the VAE and its training; lengths in steps, crops in pixels and video frames."""

    model: MiniVAEConfig = MiniVAEConfig()
    steps: int = 3600
    batch: int = 5
    crop: int = 64
    crop_frames: int = 9
    matrix_rate: float = 0.02  # of Muon, for kernels
    rate: float = 2e-3  # of AdamW, for all else
    linear_rate: float = 0.1  # the PCA-initialised maps learn at this share of `rate`
    weight_decay: float = 1e-3
    latent_noise: float = 0.1  # trains the decoder to tolerate errors of the generator
    gan_from: float = 0.7  # share of the steps after which the patch GAN joins
    gan_weight: float = 0.004
    evaluate_every: int = 250
    compile: bool = True  # fuse the step with torch.compile; same arithmetic, about 1.5x the speed
    seed: int = 0


def train_codec(
    folder: Path,
    config: CodecConfig,
    clip_sets: list[ClipSet],
    held_out: Mapping[str, Tensor],
    start: MiniVAE | None = None,
    watch: Watch = UNWATCHED,
    place: Place = ALONE,
) -> MiniVAE:
    """Train on `clip_sets`, evaluate on the videos `held_out` [n, 3, 1 + 4 k, H, W]; returns the averaged weights.

    The keys of `held_out` stand before the names of its numbers and of its sample sheet. It trains at `place`, whose
    ranks all have the clips. `start`, of configuration config.model, gives the first weights of a new run (None: random
    ones and a PCA).
    """
    require(len(clip_sets) > 0, "clip_sets", "at least one set of clips", "none")
    torch.manual_seed(config.seed)
    model, critic = MiniVAE(config.model), PatchDiscriminator()
    if start is None:
        model.fit_linear(_linear_sample(clip_sets))
        model.load_state_dict(place.first_says(model.state_dict()))  # another machine may find axes of another sign
    else:
        model.load_state_dict(start.state_dict())
    share, held_out = place.share(config.batch), {name: video.to(place.device) for name, video in held_out.items()}
    place.put(model, ("encode", "decode", "reconstruct"))
    place.put(critic)
    critic_optimiser = torch.optim.AdamW(critic.parameters(), lr=4e-4, betas=(0.5, 0.9))
    judged = {"critic": critic, "critic_optimiser": critic_optimiser}

    trainer = Trainer(
        folder,
        config,
        model,
        lambda: _evaluate_sets(model, held_out, folder if place.is_first else None),
        watch,
        more=judged,
        share=share,
        slow={"linear": config.linear_rate},
    )

    def reconstruct(truth: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = model.encode(truth)
        video = model.reconstruct(latents + noise)
        video = video[:, :, 3:].float()
        return video, codec_loss(video, truth), latents.float().square().mean()

    if config.compile and place.compiles:
        reconstruct = torch.compile(reconstruct)

    for step in trainer.steps():
        # one training step
        adversarial = step >= config.gan_from * config.steps
        truth = _random_crops(clip_sets, config)
        noise_level = config.latent_noise * torch.rand(len(truth), 1, 1, 1, 1)
        size = config.crop // model.spatial_factor
        shape = (len(truth), model.latent_channels, 1 + (config.crop_frames - 1) // 4, size, size)
        noise = noise_level * torch.randn(shape)
        truth, noise = share.own(truth), share.own(noise)
        with mixed_precision(place.device):
            video, loss, power = reconstruct(truth, noise)
        excess = (power + share.mean(power) - power.detach() - 1).clamp_min(0)  # of all rows, with the gradient of own
        loss = loss + 1e-3 * excess
        trainer.run.track(loss=loss)
        if adversarial:
            place.freeze(critic, True)
            with mixed_precision(place.device):
                fake, real = critic(video).float(), critic(truth).float()
            loss = loss + config.gan_weight * relativistic_generator_loss(fake, real)
        trainer.update(loss)

        if adversarial:
            place.freeze(critic, False)
            with mixed_precision(place.device):
                fake, real = critic(video.detach()).float(), critic(truth).float()
            critic_loss = relativistic_discriminator_loss(fake, real)
            trainer.run.track(critic=critic_loss)
            (share.weight * critic_loss).backward()
            trainer.descend(critic, critic_optimiser)

    return model


def _evaluate_sets(model: MiniVAE, held_out: Mapping[str, Tensor], folder: Path | None) -> dict[str, float]:
    """Numbers of `evaluate_codec` for all sets, with the names of the sets in front; sample sheets go to `folder`."""
    numbers: dict[str, float] = {}
    for name, video in held_out.items():
        measured = evaluate_codec(model, video, None if folder is None else folder / f"{name}samples.png")
        numbers |= {f"{name}{key}": value for key, value in measured.items()}
    return numbers


@torch.no_grad()
def evaluate_codec(model: MiniVAE, held_out: Tensor, sheet: Path | None = None) -> dict[str, float]:
    """PSNR (dB), SSIM and sharpness of the codec and of its linear part on videos [n, 3, 1 + 4 k, H, W]."""
    decoded, linear = [], []
    for video in held_out.split(1):
        decoded.append(model.decode(model.encode(video)))
        linear.append(model.reconstruct(model.encode(video, linear_only=True), linear_only=True)[:, :, 3:].clamp(-1, 1))
    coded, plain = torch.cat(decoded), torch.cat(linear)
    if sheet is not None:
        save_comparison(sheet, held_out, coded)
    return {
        "psnr": float(psnr(coded, held_out).mean()),
        "ssim": float(ssim(coded, held_out).mean()),
        "sharpness": float(sharpness(coded, held_out).mean()),
        "psnr_linear": float(psnr(plain, held_out).mean()),
        "ssim_linear": float(ssim(plain, held_out).mean()),
    }


def _linear_sample(clip_sets: list[ClipSet], clips: int = 64) -> Tensor:
    """About so many clips [n, 3, 4 k, H, W] for the PCA, from all sets alike and as long as the shortest."""
    frames, share = min(each.video.shape[1] for each in clip_sets), -(-clips // len(clip_sets))
    sample = [each.clip(i)[:, 1:frames] for each in clip_sets for i in range(0, len(each), -(-len(each) // share))]
    return torch.stack(sample)


def _random_crops(clip_sets: list[ClipSet], config: CodecConfig) -> Tensor:
    """A batch [B, 3, crop_frames, crop, crop] from random clips, times and places."""
    crops = []
    for _ in range(config.batch):
        clip_set = clip_sets[_below(len(clip_sets))]
        frames, height, width = clip_set.video.shape[1:4]
        t = _below(frames - config.crop_frames + 1)
        y, x = _below(height - config.crop + 1), _below(width - config.crop + 1)
        window = clip_set.video[
            _below(len(clip_set)), t : t + config.crop_frames, y : y + config.crop, x : x + config.crop
        ]
        crops.append(torch.from_numpy(window.copy()))
    return to_float(torch.stack(crops))


def _below(limit: int) -> int:
    return int(torch.randint(limit, (1,)))
