# SPDX-License-Identifier: Apache-2.0
"""Names that the options offer. They stand here again so that `--help` and mistakes are answered without torch.

tests/cli/test_choices.py compares them with the tables that they are from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from aapt_fast.models.files.bundled import PRESETS, bundled_models

WORLD = "person"
"""The world of the bundled models."""
ACTIONS = ("idle", "walk", "wave", "jump", "squat", "kick", "dance", "bow")
"""The actions of that world in `aapt_fast.worlds.WORLDS`."""
MEDLEY = "medley"
PART_FRAMES = 48
JOINTS = 19
"""Joints of a pose in that world."""
RECIPES = ("person", "anyone", "rooms")
OWN = "own"
"""The recipe for a folder of videos, and the name of its model."""
STARTED_RECIPES = ("anyone",)
"""Recipes that begin from another model."""
DEFAULT_START = "mini-person"
MODEL_NAMES = {"person": "mini-person", "anyone": "mini-anyone", "rooms": "mini-rooms"}
"""Names of the models that the recipes make."""
HELD_OUT_SETS = ("gallery", "strangers", "rooms", "new-rooms")
HELD_OUT_CLIPS = 16
HELD_OUT_FRAMES = 360
"""Clips, and video frames after the first one, of the held-out set of the gallery."""
DTYPES = ("float32", "bfloat16", "float16")
FRAMES_PER_STEP = 4
"""Video frames of a step of the models that `generate` takes."""
SHARD_GIB = 4.0
"""`aapt_fast.models.files.convert.SHARD_BYTES` in GiB."""
LEAST_FRAMES = 9
"""With these the video frames of whole steps, and the first frame, reach beyond `training.evaluate.MIRROR_FROM`."""
FEWEST_STEPS = 5
"""`aapt_fast.profiling.frame.FEWEST_STEPS`."""
KERNELS = (
    "channel_concat/portable",
    "clean_frame/portable",
    "gate_residual_norm/portable",
    "kv_write/portable",
    "norm_silu/portable",
    "paged_attention/sm90",
    "paged_attention/portable",
    "paged_attention/sm90_split",
    "philox_normal/portable",
    "ring_conv3d/sm90",
    "ring_conv3d/portable",
)
"""Names of `aapt_fast.ops.kernels.KERNELS`."""
SIDE_MULTIPLE = 16
"""Pixels that the sides of every preset's video are a multiple of: latent cell times patch."""


def planned_names() -> tuple[str, ...]:
    """Names that `doctor --plan` takes: presets and bundled models."""
    return tuple(dict.fromkeys([*PRESETS, *bundled_models()]))


def meant(given: str, names: Iterable[str]) -> str:
    """A question whether the closest of `names` was meant, to follow a misspelt one; "" if none is close."""
    close = difflib.get_close_matches(given, list(names), n=1)
    return f", did you mean {close[0]}?" if close else ""
