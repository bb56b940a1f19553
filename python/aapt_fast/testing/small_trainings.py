# SPDX-License-Identifier: Apache-2.0
"""All stages of training on the smallest networks, for tests that compare ranks with one process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aapt_fast.models.aapt.convert import bidirectional
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.training.adversarial import AdversarialConfig, train_adversarial
from aapt_fast.training.clips import LatentClips
from aapt_fast.training.codec import CodecConfig, train_codec
from aapt_fast.training.consistency import ConsistencyConfig, train_consistency
from aapt_fast.training.diffusion import DiffusionConfig, train_diffusion
from aapt_fast.training.place import Place
from aapt_fast.training.pretrain import PretrainConfig, train_bidirectional
from aapt_fast.training.run import Watch

ROWS = 5  # not divided by two ranks


def clips() -> LatentClips:
    """Four clips of noise for `NANO`."""
    drawn = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 16, 9, 4, 4, generator=drawn)
    return LatentClips(latents, torch.rand(4, 33, 19, 3, generator=drawn), NANO, torch.zeros(4))


def random_generator() -> Generator:
    """A generator none of whose weights is zero."""
    torch.manual_seed(1)
    model = Generator(NANO)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def stop_after(steps: int) -> Watch:
    """A watch that stops a run before it takes more than so many steps."""
    asked = iter(range(10**6))
    return Watch(stop=lambda: nullcontext(lambda: next(asked) >= steps))


def diffusion(folder: Path, place: Place, watch: Watch) -> Any:
    """Stage 1."""
    config = DiffusionConfig(NANO, steps=4, batch=ROWS, clip_frames=5, recycled_noise=0.1, compile=False)
    return train_diffusion(folder, config, clips(), torch.ones(16), _size, watch=watch, place=place)


def pretraining(folder: Path, place: Place, watch: Watch) -> Any:
    """Before stage 1."""
    config = PretrainConfig(bidirectional(NANO), steps=4, batch=ROWS, clip_frames=3)
    return train_bidirectional(folder, config, clips().latents, torch.ones(16), _size, watch, place)


def consistency(folder: Path, place: Place, watch: Watch) -> Any:
    """Stage 2."""
    config = ConsistencyConfig(NANO, steps=4, batch=ROWS, clip_frames=5, matrix_rate=0.01, rate=1e-3)
    return train_consistency(folder, config, random_generator(), clips(), torch.ones(16), _size, watch, place)


def adversarial(folder: Path, place: Place, watch: Watch) -> Any:
    """Stage 3, with all terms: two steps of the discriminator alone, then rollouts of up to three segments."""
    config = AdversarialConfig(
        NANO,
        steps=5,
        batch=ROWS,
        segment_frames=3,
        segments=3,
        adversarial=0.3,
        balanced=True,
        refinement=0.2,
        noised=True,
        discriminator_alone=2,
        evaluate_every=3,
    )
    start, trunk = random_generator(), random_generator()
    return train_adversarial(folder, config, start, trunk, clips(), torch.ones(16), _size, watch, place)


def codec(folder: Path, place: Place, watch: Watch) -> Any:
    """Stage 0, its second half with the patch GAN."""
    model = MiniVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8), (1, 1, 1))
    config = CodecConfig(model, steps=4, batch=ROWS, crop=32, crop_frames=5, gan_from=0.5, compile=False)
    video = torch.randint(256, (3, 9, 48, 48, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    held_out = torch.zeros(1, 3, 5, 32, 32)
    torch.manual_seed(4)
    start = MiniVAE(model)
    return train_codec(folder, config, [_Videos(video.numpy())], {"": held_out}, start, watch, place)  # type: ignore[list-item]


class _Videos:
    """What training reads of a `ClipSet`; video uint8 [clips, T, H, W, 3]."""

    def __init__(self, video: np.ndarray[Any, Any]) -> None:
        self.video = video

    def __len__(self) -> int:
        return len(self.video)

    def clip(self, index: int) -> torch.Tensor:
        """Video of one clip, float32 [3, T, H, W] in -1..1."""
        return torch.from_numpy(self.video[index]).movedim(-1, 0).float() / 127.5 - 1


@torch.no_grad()
def _size(model: Generator) -> dict[str, float]:
    """An evaluation: the mean square of a frame."""
    noise = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(model.modulation_out.device)
    t = noise.new_ones(1)
    if model.config.control is None:
        frames = model(noise, None, None, t, model.whole_clip_cache(4, 4))
    else:
        control = noise.new_ones(1, model.config.control.step_channels, 1, 4, 4)
        frames = model(noise, noise, control, t, model.new_cache(4, 4))
    return {"size": float(frames.square().mean())}


STAGES: dict[str, Callable[[Path, Place, Watch], Any]] = {
    "codec": codec,
    "pretraining": pretraining,
    "diffusion": diffusion,
    "consistency": consistency,
    "adversarial": adversarial,
}
