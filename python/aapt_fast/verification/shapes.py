# SPDX-License-Identifier: Apache-2.0
"""The shapes at which kernels are timed: those of real models, or of the one that the user names."""

from __future__ import annotations

from pathlib import Path

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.presets import GENERATORS
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.models.files.find import own_model_path
from aapt_fast.models.files.model_file import read_configs
from aapt_fast.verification.cases import SUITES, Shape


def timed_shapes(model: str | Path | None = None) -> dict[str, tuple[Shape, ...]]:
    """The shapes to time, by op: of a model's step with a full window, by default those of `SUITES`.

    `model` is a preset, a bundled model, or a file or folder of `save_pretrained`, of which no weight is read.
    Raises ValueError for an unknown name and for a model that does not stream, TypeError for another type,
    CheckpointError for a bad file.
    """
    if model is None:
        return {op: suite.shapes for op, suite in SUITES.items()}
    config = _config(model)
    frames = config.window + 2  # with the first frame, which stays, and the own one
    channels = config.control.step_channels if config.control else 0
    pixels = (8 * config.grid[0], 8 * config.grid[1])
    return {
        "paged_attention": ((config.tokens, config.tokens * frames, config.heads, config.head_dim),),
        "kv_write": ((config.tokens, config.heads, config.head_dim),),
        "gate_residual_norm": ((config.tokens, config.width),),
        "channel_concat": ((config.control_width or channels, *config.grid, config.width),),
        "philox_normal": ((config.latent_channels, *config.grid),),
        "clean_frame": ((config.latent_channels, *config.grid),),
        "ring_conv3d": ((4, *pixels, 96, 96, 27),),  # of the decoder with the finest layers, Wan's
        "norm_silu": ((4, *pixels, 96, 0),),
    }


def _config(model: str | Path) -> GeneratorConfig:
    name = str(model)
    if name in GENERATORS and name not in bundled_models():
        return GENERATORS[name]
    config, _ = read_configs(own_model_path(model, "shapes", tuple(GENERATORS)))
    require(config.autoregressive, "shapes", "a model that streams", f"{model}, which is bidirectional")
    return config
