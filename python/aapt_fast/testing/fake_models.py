# SPDX-License-Identifier: Apache-2.0
"""Models of any size on the fake GPU; their weights have no values and take no memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAEConfig
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.profiling.decoders import VAEConfig, make_vae
from aapt_fast.profiling.systems import default_dtype
from aapt_fast.testing.fake_cuda import FAKE_GPU, on_fake_gpu


def aapt_model(
    config: GeneratorConfig,
    dtype: torch.dtype = torch.bfloat16,
    vae: VAEConfig = MiniVAEConfig(),
    device: torch.device = FAKE_GPU,
) -> StreamModel:
    """An AAPT generator with a decoder."""
    parts = on_meta(lambda: Generator(config), dtype), on_meta(lambda: make_vae(vae), dtype)
    return StreamModel(*(on_fake_gpu(part, device) for part in parts))


def wan_model(config: WanConfig, dtype: torch.dtype = torch.bfloat16, device: torch.device = FAKE_GPU) -> StreamModel:
    """A Wan transformer with the VAE of Wan 2.1, at 832 x 480."""
    parts = on_meta(lambda: WanTransformer(config), dtype), on_meta(lambda: WanVAE(WanVAEConfig()), dtype)
    return StreamModel(*(on_fake_gpu(part, device) for part in parts))


def on_meta(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A module without memory for its weights."""
    with torch.device("meta"), default_dtype(dtype):
        return make().eval().requires_grad_(False).to(dtype)
