# SPDX-License-Identifier: Apache-2.0
"""Small Wan transformers with random weights, one of every published kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.keys import diffusers_to_wan_key, is_unused
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops.window import WindowRule

TINY = WanConfig(
    heads=3, head_dim=16, layers=2, ffn_width=80, text_width=24, window_rule=WindowRule(frames=2, window=2, sink=1)
)

WAN_KINDS = {
    "t2v": TINY,
    "i2v": WanConfig(heads=2, head_dim=16, layers=2, ffn_width=72, text_width=24, in_channels=36, image_width=20),
    "i2v 2.2": WanConfig(heads=2, head_dim=16, layers=1, ffn_width=72, text_width=24, in_channels=36),
    "ti2v": WanConfig(heads=2, head_dim=32, layers=2, ffn_width=72, text_width=24, in_channels=48, out_channels=48),
    "one head of 128": WanConfig(heads=1, layers=1, ffn_width=64, text_width=16, timestep_features=32),
    "plain": WanConfig(heads=2, head_dim=10, layers=1, ffn_width=40, text_width=8, cross_norm=False, eps=1e-2),
}
"""Configurations that together use every layer; the head widths are split over the axes in different ways."""


def diffusers_config(config: WanConfig) -> dict[str, Any]:
    """The arguments of diffusers' `WanTransformer3DModel` for the same model."""
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "text_dim": config.text_width,
        "freq_dim": config.timestep_features,
        "ffn_dim": config.ffn_width,
        "num_layers": config.layers,
        "cross_attn_norm": config.cross_norm,
        "eps": config.eps,
        "image_dim": config.image_width or None,
        "added_kv_proj_dim": config.width if config.image_width else None,
    }


def from_diffusers_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of diffusers' `WanTransformer3DModel`, tensors [...], under the original names of Wan."""
    return {diffusers_to_wan_key(key): value for key, value in state.items() if not is_unused(key)}


def random_wan(config: WanConfig = TINY, seed: int = 1) -> WanTransformer:
    """Random weights everywhere, gains around 1; its velocities have the size of its inputs."""
    torch.manual_seed(seed)
    model = WanTransformer(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name or (name.startswith("img_emb.proj.") and parameter.dim() == 1):
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.head.head.weight.mul_(2)
    return model
