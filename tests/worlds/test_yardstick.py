# SPDX-License-Identifier: Apache-2.0
"""The deterministic world is the yardstick of every published number: the same seeds give the same pixels, for ever.

`yardstick.png` was rendered once, long ago: rows are clips, columns every fourth video frame.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aapt_fast.testing.compare import assert_near
from aapt_fast.training.data import ClipSetConfig, make_clip
from aapt_fast.worlds.person.world import PersonWorld

CONFIG = ClipSetConfig("yardstick", PersonWorld(identities=16), clips=8, frames=13, size=48, seed=2)


def test_the_same_seeds_give_the_same_pixels() -> None:
    """Another CPU's sine may round a pixel differently: a handful of values may be one level off."""
    expected = torch.from_numpy(np.array(Image.open(Path(__file__).with_name("yardstick.png"))))
    rows = [torch.cat(list(make_clip(CONFIG, clip).video[::4]), dim=1) for clip in range(CONFIG.clips)]
    difference = (torch.cat(rows).int() - expected.int()).abs()
    assert difference.max() <= 1 and (difference > 0).sum() <= 20


def test_the_same_seeds_give_the_same_points() -> None:
    points = make_clip(CONFIG, 3).controls
    expected = [[0.4591, 0.5027, 0.0000], [0.4550, 0.2962, -0.0262], [0.4539, 0.2385, -0.0335]]
    assert_near(points[12, :3], torch.tensor(expected), 6e-5, "points")
    total = make_clip(CONFIG, 7).controls.sum((0, 1))
    assert_near(total, torch.tensor([109.3435, 132.3947, -46.3093]), 1e-3, "sum of the points")
