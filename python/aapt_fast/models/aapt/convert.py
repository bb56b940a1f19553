# SPDX-License-Identifier: Apache-2.0
"""From a bidirectional video model to the autoregressive one of AAPT (arXiv 2506.09350, section 2 and appendix G).

Three things change: the patch embedding also takes the recycled frame and the control, attention becomes block-causal
with window and sink, and frames sit at a fixed interval, so that a stream has no longest length. Everything else is
the pre-trained model's, bit for bit; stage 1 (training/diffusion.py) adapts it.

Source and result are this package's `Generator`; Wan transformers (`wan/transformer.py`) are causal as they are.
In both forms the text attends to itself alone. A pre-trained model whose text also attends to the video has to learn
that as well.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape, require_type
from aapt_fast.models.aapt.config import ControlConfig, GeneratorConfig
from aapt_fast.models.aapt.generator import Generator

WIDENED = {"patch_embed.weight": 1, "head.conv_in.weight": 1}
"""Weights that read the concatenated inputs [noised, recycled, control], with the dimension of the channels."""

NEW_WEIGHT_STD = 0.02


def bidirectional(config: GeneratorConfig) -> GeneratorConfig:
    """The bidirectional model that `to_autoregressive` turns into one of `config`; pre-training trains it."""
    return dataclasses.replace(config, autoregressive=False, window=0, control=None, control_width=0)


def to_autoregressive(
    model: Generator,
    control: ControlConfig | None = None,
    *,
    window: int,
    control_width: int = 0,
    temporal_interval: float | None = None,
    init: str = "random",
) -> Generator:
    """A new autoregressive model with the weights of a bidirectional one, which stays as it is.

    Args:
        model: bidirectional: one that takes neither recycled frame nor control.
        control: of the steps of the new model; None for none.
        window: past frames a frame attends to, besides the sink.
        control_width: of the convolutional stem that controls pass through, which is new and always random; 0: none.
        temporal_interval: distance of two frames in the positions of attention, where frame i sits at i intervals.
            None keeps that of `model`, the spacing it was trained at.
        init: of the weights [width, channels, patch, patch] that read the new channels. `random`: normal and small,
            from torch's global generator; the paper saw it adapt faster. `zero`: the new model still computes what
            `model` did, as long as it attends as `model` did (`whole_clip_cache`).

    Returns:
        The model in the device, dtype and mode of `model`. If it predicts frames, the recycled frame's share of the
        output starts at 1, as in every new model (from 0 the nano model was still far behind after 250 steps of stage
        1); with `zero` it starts at 0.

    Raises:
        TypeError: `model` is not a Generator.
        ValueError: `model` is autoregressive already; its patch embedding takes other inputs than one latent frame;
            a window, control, interval or init that makes no sense.
    """
    require_type("model", model, Generator)
    old = model.config
    require(not old.autoregressive, "model", "a bidirectional generator", "one that is already autoregressive")
    require(init in ("random", "zero"), "init", "random or zero", init)
    interval = old.temporal_interval if temporal_interval is None else temporal_interval
    require(interval > 0, "temporal_interval", "a positive distance", interval)
    weight = model.patch_embed.weight
    require_shape("model.patch_embed.weight", weight, old.width, old.latent_channels * old.patch**2)

    config = dataclasses.replace(
        old,
        autoregressive=True,
        window=window,
        control=control,
        control_width=control_width,
        temporal_interval=interval,
    )
    converted = Generator(config).to(weight.device, weight.dtype).train(model.training)
    weights = converted.state_dict()
    for name, value in model.state_dict().items():
        if name in WIDENED:
            _widen(weights[name], value, WIDENED[name], init)
        elif name == "skip":
            weights[name][:1].copy_(value)
            if init == "zero":
                weights[name][1:].zero_()
        else:
            weights[name].copy_(value)
    return converted


def _widen(weight: Tensor, old: Tensor, dimension: int, init: str) -> None:
    """Fill `weight` with `old` and, behind it along `dimension`, with new weights."""
    size = old.shape[dimension]
    kept, added = weight.split([size, weight.shape[dimension] - size], dimension)
    kept.copy_(old)
    if init == "zero":
        added.zero_()
    else:
        torch.nn.init.normal_(added, std=NEW_WEIGHT_STD)
