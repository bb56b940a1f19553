# SPDX-License-Identifier: Apache-2.0
"""Players of the bundled models' world, as a user makes them."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import aapt_fast
from aapt_fast import FirstFrame
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.testing.compare import assert_near
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.person.players import MotionPlayer
from aapt_fast.worlds.person.skeleton import pose_points

WORLD = WORLDS["person"]
STRANGER = FirstFrame(np.zeros((96, 96, 3), np.uint8))


def first() -> FirstFrame:
    return aapt_fast.load_gallery("mini-person")[5]


def poses(player, steps: int) -> torch.Tensor:
    return torch.cat([player.next(4) for _ in range(steps)])


def test_it_begins_with_the_pose_of_the_picture_and_holds_it_for_a_step():
    start = first()
    player = WORLD.player(start, "dance")
    assert_near(player.next(4), start.control.expand(4, -1, -1), 1e-6)
    assert (player.next(4)[-1] - start.control).abs().max() > 0.02


def test_a_script_is_played_with_the_seed():
    start = first()
    expected = MotionPlayer("walk", 3, start.pose, hold=4)
    assert_near(poses(WORLD.player(start, "walk", seed=3), 12), pose_points(expected.next(48)), 1e-6)
    by_script = WORLD.player(start, "walk:24,wave", seed=3)
    expected = MotionPlayer("walk", 3, start.pose, hold=4)
    angles = [expected.next(24)]
    expected.play("wave")
    angles.append(expected.next(24))
    assert_near(poses(by_script, 12), pose_points(torch.cat(angles)), 2e-6)


@pytest.mark.parametrize("script", ["walk", "walk:4,wave:4,jump", "medley"])
def test_play_is_obeyed_at_once_and_for_good(script):
    twins = [WORLD.player(first(), script) for _ in range(2)]
    before = [poses(player, 5) for player in twins]
    twins[0].play("squat")
    assert torch.equal(*before)
    after = [player.next(4) for player in twins]
    assert not torch.equal(*after)
    hips = poses(twins[0], 60)[:, 0, 1]  # the pelvis goes down in every squat, whatever the script had in mind
    assert all(float(part.max() - part.min()) > 0.1 for part in hips.split(80))


def test_a_picture_from_elsewhere_has_no_control_and_no_truth():
    player = WORLD.player(STRANGER, "walk")
    assert player.next(4).shape == (4, 19, 3) and player.truth(32) is None
    assert STRANGER.control is None and repr(STRANGER) == "FirstFrame(96 x 96, a picture from elsewhere)"
    assert repr(first()) == f"FirstFrame(96 x 96, scene {first().scene}, with pose)"


def test_mistakes():
    with pytest.raises(ValueError, match=r"script: expected idle \| walk .* got fly"):
        WORLD.player(first(), "fly")
    with pytest.raises(ValueError, match=r"expected .*walk.*got fly"):
        WORLD.player(first(), "walk").play("fly")
    for script in ("medley", "walk:4,wave"):
        with pytest.raises(ValueError, match=r'a script is for model.world.player\(first, "medley"\)'):
            WORLD.player(first(), "walk").play(script)
    with pytest.raises(TypeError, match="motion: expected str, got list"):
        WORLD.player(first(), "walk").play(["walk"])
    with pytest.raises(TypeError, match="first: expected FirstFrame, got ndarray"):
        WORLD.player(first().image, "walk")
    with pytest.raises(TypeError, match="script: expected str, got int"):
        WORLD.player(first(), 3)
    with pytest.raises(ValueError, match="seed: expected a signed 64-bit integer, got 1180591620717411303424"):
        WORLD.player(first(), "walk", seed=2**70)
    with pytest.raises(TypeError, match="seed: expected an integer, got str"):
        WORLD.player(first(), "walk", seed="a")
    with pytest.raises(ValueError, match=r"frames: expected a value that fits into the .*, got one that needs"):
        WORLD.player(first(), "walk").next(10**12)
    for frames in ("4", 1.5):
        with pytest.raises(TypeError, match=f"frames: expected an integer, got {type(frames).__name__}"):
            WORLD.player(first(), "walk").next(frames)
    for path in ("x.png", Path("x.png")):
        with pytest.raises(
            TypeError, match=r"image: expected a picture, such as PIL.Image.open\('x.png'\), got its path"
        ):
            FirstFrame(path)
    with pytest.raises(ValueError, match=r"first.pose: expected 17 numbers, .*, got torch.int64 of shape \[2\]"):
        WORLD.player(FirstFrame(first().image, pose=(1, 2)), "walk")


@pytest.mark.parametrize("script", ["walk", "walk:4,wave", "medley"])
def test_a_player_shows_where_it_is_and_refuses_a_copy(script):
    player = WORLD.player(first(), script)
    player.next(8)
    now = {"walk": "walk", "walk:4,wave": "wave"}.get(script, r"\w+")
    assert re.fullmatch(rf"PersonPlayer\(world person: {now} now, 8 video frames so far\)", repr(player))
    player.play("jump")
    assert "jump now" in repr(player)
    for thing in (player, player._player, player._player._player):
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"^player: it cannot be copied or pickled, .* plays the same$"):
                way(thing)
    assert re.fullmatch(r"\w+Player\(jump, 8 video frames so far\)", repr(player._player))


def test_the_names_of_motions_are_public():
    names = aapt_fast.list_motions()
    assert len(names) == 8 and {"walk", "wave"} < set(names)
    player = WORLD.player(first())
    for name in names:
        player.play(name)
        assert player.next(4).shape == (4, 19, 3)
    with pytest.raises(ValueError, match=re.escape(f"world: expected {' | '.join(WORLDS)}, got chess")):
        aapt_fast.list_motions("chess")


def test_a_model_knows_its_world():
    model = aapt_fast.StreamModel.from_pretrained("mini-person")
    assert model.world is WORLD
    vae = MiniVAE(MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4)))
    of_none = aapt_fast.StreamModel(Generator(NANO), vae, name="nano")
    with pytest.raises(ValueError, match=r"model.world: expected a model with a gallery.json .*got nano without one"):
        _ = of_none.world
