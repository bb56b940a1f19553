# SPDX-License-Identifier: Apache-2.0
"""Scripts of motions: how they are read and played."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds.person.players import MotionPlayer, ScriptPlayer
from aapt_fast.worlds.person.world import PersonWorld
from aapt_fast.worlds.script import read_script, script_frames
from aapt_fast.worlds.world import PART_FRAMES, Part


@pytest.mark.parametrize(
    ("text", "parts", "frames"),
    [
        ("walk", [("walk", None)], None),
        ("walk:48", [("walk", 48)], 48),
        (" walk : 48 , wave:72 ", [("walk", 48), ("wave", 72)], 120),
        ("walk:48,wave", [("walk", 48), ("wave", None)], None),
        ("walk,wave:10", [("walk", None), ("wave", 10)], None),
        (" medley ", [("medley", None)], None),
    ],
)
def test_reading(text: str, parts: list[tuple[str, int | None]], frames: int | None):
    script = read_script(text, PersonWorld.actions)
    assert script == tuple(Part(*part) for part in parts) and script_frames(script) == frames


ALONE = r"script: expected idle \| walk .* \| bow \| medley, or a script like walk:48,wave:72, got "
WITHIN = r"script: expected idle \| walk .* \| bow in a script \(medley stands alone\), got "
LENGTH = "script: expected a number of video frames from 1 to 999999999 after walk:, got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fly", ALONE + "fly"),
        ("", ALONE + "nothing"),
        (" ", ALONE + "nothing"),
        ("walk:48,fly:3", WITHIN + "fly:3"),
        ("medley:48", WITHIN + "medley:48"),
        ("walk:3,medley", WITHIN + "medley"),
        ("walk:48,", r"script: expected a motion before and after every comma, got 'walk:48,'"),
        (",walk", r"script: expected a motion before and after every comma, got ',walk'"),
        ("walk,,wave", r"script: expected a motion before and after every comma, got 'walk,,wave'"),
        (":3", WITHIN + ":3"),
        ("walk:", LENGTH + "nothing$"),
        ("walk:0", LENGTH + "0$"),
        ("walk:-3", LENGTH + "-3$"),
        ("walk:²", LENGTH + "²$"),
        ("walk:1.5", LENGTH + "1.5$"),
        ("walk:" + "9" * 5000, LENGTH + "999"),
        ("walk:9999999999", LENGTH + "9999999999$"),
        ("wave:3,walk:5:6", LENGTH + "5:6$"),
        ("WALK", ALONE + r"WALK; did you mean walk\?"),
        ("medly", ALONE + r"medly; did you mean medley\?"),
        ("walk:48,Wve:3", WITHIN + r"Wve:3; did you mean wave\?"),
    ],
)
def test_mistakes(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_script(text, PersonWorld.actions)


@pytest.mark.parametrize("portion", [1, 4, 24])
def test_the_parts_follow_each_other_in_any_portions_and_the_last_goes_on(portion: int):
    player, angles = MotionPlayer("dance", 5), []
    for name, frames in (("squat", 7), ("bow", PART_FRAMES), ("wave", 41)):
        angles.append(player.next(frames))
        player.play(name)
    expected = torch.cat(angles)
    script = ScriptPlayer(read_script("dance:7,squat,bow:41,wave:1", PersonWorld.actions), 5)
    played = torch.cat([script.next(portion) for _ in range(120 // portion)])
    assert_near(played[: len(expected)], expected, 2e-6, "angles")
    assert_near(played[len(expected) :], player.next(120 - len(expected)), 2e-6, "the last goes on")
