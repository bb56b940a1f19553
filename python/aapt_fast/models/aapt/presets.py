# SPDX-License-Identifier: Apache-2.0
"""Named configurations."""

from __future__ import annotations

import dataclasses

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import ControlConfig, GeneratorConfig

AAPT_8B = GeneratorConfig(
    width=3072, heads=24, layers=36, grid=(52, 92), window=30, text_width=5120, shift=24.0
)  # 736 x 416; sizes inferred from the open SeedVR configuration, the paper prints only blocks and parameters

PERSON_LIMBS = (
    (0, 1), (4, 7), (10, 13), (2, 3), (3, 18), (4, 5), (5, 6), (7, 8), (8, 9),
    (10, 11), (11, 12), (12, 16), (13, 14), (14, 15), (15, 17),
)  # fmt: skip
"""Pairs of joints of the `person` world (worlds/skeleton.py; a test holds the two equal)."""

PERSON_CONTROL = ControlConfig(kind="pose", joints=19, limbs=PERSON_LIMBS, entries=4, with_previous=True)

ROOMS_CONTROL = ControlConfig(kind="maps", channels=6, entries=4, with_previous=True)
"""Origin and direction of the ray through every latent cell (worlds/rooms/camera.py)."""

MINI_PERSON = GeneratorConfig(
    width=224,
    heads=4,
    layers=6,
    grid=(12, 12),
    window=5,
    control=PERSON_CONTROL,
    control_width=64,
    head_width=96,
    prediction="frame",
    rope_theta=30.0,
)

MINI_ROOMS = GeneratorConfig(
    width=256,
    heads=4,
    layers=6,
    grid=(12, 12),
    window=8,
    latent_channels=48,
    mlp_ratio=3,
    control=ROOMS_CONTROL,
    control_width=64,
    head_width=96,
    prediction="frame",
    shift=3.0,
    rope_theta=30.0,
)

NANO = dataclasses.replace(
    MINI_PERSON, width=32, heads=2, layers=2, grid=(4, 4), window=2, control_width=8, head_width=8, head_blocks=1
)

NANO_TEXT = GeneratorConfig(width=32, heads=2, layers=2, grid=(4, 6), window=2, text_width=12)

GENERATORS = {"aapt-8b": AAPT_8B, "mini-person": MINI_PERSON, "nano": NANO, "nano-text": NANO_TEXT}


def generator_preset(name: str) -> GeneratorConfig:
    """The configuration called `name`; raises ValueError for an unknown one."""
    require(name in GENERATORS, "preset", " | ".join(GENERATORS), name)
    return GENERATORS[name]
