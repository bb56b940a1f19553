# SPDX-License-Identifier: Apache-2.0
"""The shapes at which kernels are timed: those of real models, or of one preset."""

from __future__ import annotations

from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.verification.cases import SUITES, Shape


def timed_shapes(preset: str | None = None) -> dict[str, tuple[Shape, ...]]:
    """The shapes to time, by op: of a preset's step with a full window, by default those of `SUITES`.

    Raises ValueError for an unknown preset.
    """
    if preset is None:
        return {op: suite.shapes for op, suite in SUITES.items()}
    config = generator_preset(preset)
    frames = config.window + 2  # with the first frame, which stays, and the own one
    channels = config.control.step_channels if config.control else 0
    return {
        "paged_attention": ((config.tokens, config.tokens * frames, config.heads, config.head_dim),),
        "kv_write": ((config.tokens, config.heads, config.head_dim),),
        "gate_residual_norm": ((config.tokens, config.width),),
        "channel_concat": ((config.control_width or channels, *config.grid, config.width),),
        "philox_normal": ((config.latent_channels, *config.grid),),
        "clean_frame": ((config.latent_channels, *config.grid),),
    }
