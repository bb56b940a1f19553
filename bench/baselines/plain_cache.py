# SPDX-License-Identifier: Apache-2.0
"""Steps of the bundled person without pages: a cache that concatenates keys and values, and the decoder's stream."""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.models.aapt.sampling import sample_frame
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import philox_normal
from aapt_fast.streaming.controls import clip_controls
from bench.harness.timing import Stream


def plain_cache_stream(model: StreamModel, image: Tensor, points: Tensor) -> Stream:
    """Make the steps of a session with seed 0.

    Args:
        model: an AAPT generator under poses, with its VAE.
        image: uint8 [H, W, 3].
        points: image points [1 + 4 steps, J, 3].
    """
    config = model.generator.config
    stream, cache, seed = model.vae.stream(), model.generator.new_cache(), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        recycled = model.vae.encode((image.permute(2, 0, 1)[None, :, None] / 127.5 - 1).to(model.dtype))
        stream.decode(recycled)

    @torch.inference_mode()
    def step(number: int) -> Tensor:
        nonlocal recycled
        window = points[max(4 * number - 4, 0) : 5 + 4 * number]
        maps = clip_controls(window[None], config.control, config.grid)[:, :, -1:].to(model.dtype)
        _, channels, _, height, width = recycled.shape
        noise = philox_normal(seed, torch.full((1,), number + 1), (channels, height, width))[:, :, None]
        recycled = sample_frame(model.generator, noise.to(model.dtype), recycled, maps, [cache]).to(model.dtype)
        video = stream.decode(recycled)[0].permute(1, 2, 3, 0)
        return ((video.float() + 1) * 127.5).round().to(torch.uint8)

    return step
