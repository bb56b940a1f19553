# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of diffusers."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import nn

IMAGE_WIDTH = 20


def random_transformer(**options) -> WanTransformer3DModel:
    torch.manual_seed(1)
    settings = dict(num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16)
    model = WanTransformer3DModel(**settings, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=32, **options)
    for key, parameter in model.named_parameters():
        if "norm_" in key:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def image_transformer() -> WanTransformer3DModel:
    return random_transformer(image_dim=IMAGE_WIDTH, added_kv_proj_dim=48)
