# SPDX-License-Identifier: Apache-2.0
"""How ranks share a frame where the user leaves it open: by the roofline of `aapt-fast bench scaling`, and by memory.

The roofline knows H100 and H200; another device is taken for an H100. What is compared depends on ratios, of computing
to memory to links, more than on the device.
"""

from __future__ import annotations

from typing import Any

import torch

from aapt_fast.limits import memory_left
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.profiling import roofline
from aapt_fast.profiling.decoders import decoder_layers
from aapt_fast.profiling.roofline import GPUS, H100, Blocks, Gpu
from aapt_fast.streaming.pages import pool_bytes, session_pages

USABLE = 0.8
"""Share of the memory that is left on a device that weights and the keys and values of one session may take."""
SPATIAL_FACTOR = 8
"""Pixels per latent cell of most VAEs, for the grid of a Wan transformer whose VAE is not there yet."""


def best_scheme(generator: Any, grid: tuple[int, int] | None, ranks: int, device: torch.device) -> str:
    """Choose "sp" or "tp": the faster one, unless the whole weights do not fit on the device.

    `generator` may be on the meta device, without values: its weights are still to come then. Ranks compare their
    answers, as one may have less memory left than others.
    """
    size = generator.fit_grid(grid, SPATIAL_FACTOR)
    weights = sum(each.nbytes for each in generator.parameters() if each.is_meta)
    config, pages = generator.config, session_pages(generator, size)
    needed = weights + pool_bytes(config.layers, pages, config.heads // ranks, config.head_dim, generator.weight.dtype)
    left = memory_left(device)
    if left is not None and needed > USABLE * left:
        return "tp"
    return roofline.best_scheme(blocks_of(generator, size), _rates(device), ranks)


def blocks_of(generator: Any, grid: tuple[int, int]) -> Blocks:
    """The blocks of a `Generator` or a `WanTransformer`, in a step of its default sampler."""
    config = generator.config
    frames = generator.default_sampler().rule(generator).frames
    hidden = config.mlp_ratio * config.width if isinstance(generator, Generator) else config.ffn_width
    return Blocks(frames * generator.tokens(grid), config.width, hidden, config.layers)


def whole_decoder_is_faster(vae: Any, grid: tuple[int, int], ranks: int, device: torch.device) -> bool:
    """True if it takes each rank less time to decode the whole frame than some rows, with their exchanges."""
    layers, gpu = decoder_layers(vae.config, *grid), _rates(device)
    return roofline.decoding_s(layers, gpu) <= roofline.decoding_s(layers, gpu, ranks)


def _rates(device: torch.device) -> Gpu:
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    return next((gpu for key, gpu in GPUS.items() if key in name), H100)
