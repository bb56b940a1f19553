# SPDX-License-Identifier: Apache-2.0
"""Student-forced steps over a batch of clips: each frame is made from the model's own previous one."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import sample_frame
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import VideoVAE
from aapt_fast.ops import philox_normal
from aapt_fast.streaming.controls import clip_controls


def rollout(generator: Generator, image: Tensor, controls: Tensor, seeds: Tensor, nfe: int = 1) -> Tensor:
    """Frames [B, C, n, h, w] of n steps from the image latents [B, C, 1, h, w] and controls [B, Cc, n, h, w].

    Noise comes from (seeds [B] int64, step), the same numbers that a session with that seed draws.
    """
    height, width = image.shape[-2:]
    caches = [generator.new_cache(height, width) for _ in range(nfe)]
    recycled, frames = image, []
    for step in range(1, controls.shape[2] + 1):
        noise = philox_normal(seeds, torch.full_like(seeds, step), tuple(image[0, :, 0].shape))[:, :, None]
        recycled = sample_frame(generator, noise, recycled, controls[:, :, step - 1 : step], caches)
        frames.append(recycled)
    return torch.cat(frames, dim=2)


def generate_video(model: StreamModel, image: Tensor, controls: Tensor, seeds: Tensor, nfe: int = 1) -> Tensor:
    """Videos [B, 3, T, H, W] from first video frames `image` [B, 3, 1, H, W] in -1..1 and controls [B, T, ...].

    `seeds` int64 [B] as in `rollout`. Raises ValueError for a model without a control.
    """
    control, latents = model.control, model.vae.encode(image)
    require(control is not None, "model", "one with a control", None)
    assert control is not None
    steps = clip_controls(controls, control, (latents.shape[-2], latents.shape[-1]))
    assert isinstance(model.generator, Generator)
    frames = rollout(model.generator, latents, steps, seeds, nfe)
    return decode_as_stream(model.vae, torch.cat([latents, frames], dim=2))


def decode_as_stream(vae: VideoVAE, latents: Tensor, chunk: int = 8) -> Tensor:
    """Latents [B, C, 1 + n, h, w] -> video [B, 3, 1 + 4 n, H, W], `chunk` frames at once so that memory stays small."""
    stream = vae.stream()
    first, rest = latents[:, :, :1], latents[:, :, 1:]
    return torch.cat([stream.decode(part) for part in (first, *rest.split(chunk, dim=2))], dim=2)
