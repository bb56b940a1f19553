# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch

from aapt_fast.testing.chance import ChanceWorld
from aapt_fast.testing.compare import assert_near
from aapt_fast.training import data
from aapt_fast.training.data import ClipSetConfig, clip_rows, futures, make_clip, render_clips, to_float
from aapt_fast.worlds.person.players import FADE
from aapt_fast.worlds.person.skeleton import pose_points
from aapt_fast.worlds.person.world import PersonWorld
from aapt_fast.worlds.world import clip_seed

ALONE = PersonWorld()

CONFIG = ClipSetConfig("tiny", ALONE, clips=3, frames=5, size=16, seed=7)


@pytest.fixture
def threads(monkeypatch):
    """Renders in threads, so that a test need not wait for processes to import torch, and can break the rendering."""
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))


def test_processes_render_what_the_clip_numbers_say(tmp_path):
    clip_set = render_clips(tmp_path / "new" / "folder", CONFIG, workers=1)
    assert len(clip_set) == 3 and clip_set.video.shape == (3, 5, 16, 16, 3)
    for number in range(3):
        clip = make_clip(CONFIG, number)
        assert torch.equal(torch.from_numpy(np.array(clip_set.video[number])), clip.video)
        assert torch.equal(clip_set.controls[number], clip.controls)


class Deadly(PersonWorld):
    """A world that kills the worker that looks at it."""

    def scene(self, seed: int, clip: int) -> int:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


@pytest.mark.timeout(60)
def test_a_killed_worker_ends_the_rendering_in_words(tmp_path):
    with pytest.raises(BrokenProcessPool):
        render_clips(tmp_path, ClipSetConfig("tiny", Deadly(), clips=3, frames=5, size=16), workers=1)
    assert not (tmp_path / "tiny.json").exists()


def test_clip_is_video_in_minus_one_to_one_and_ours_to_change(tmp_path, threads):
    clip_set = render_clips(tmp_path, CONFIG, workers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = clip_set.clip(1)
    assert clip.shape == (3, 5, 16, 16) and clip.dtype == torch.float32
    assert torch.equal(clip, to_float(make_clip(CONFIG, 1).video))
    clip.zero_()
    assert clip_set.clip(1).abs().max() > 0.1


def test_a_clip_is_its_number():
    clip, again = make_clip(CONFIG, 2), make_clip(CONFIG, 2)
    assert clip.video.shape == (5, 16, 16, 3) and clip.video.dtype == torch.uint8
    assert clip.controls.shape == (5, 19, 3) and clip.controls.dtype == torch.float32
    assert torch.equal(clip.video, again.video) and torch.equal(clip.controls, again.controls)
    assert not torch.equal(clip.controls, make_clip(CONFIG, 1).controls)


def test_identities_repeat_in_a_gallery_and_never_else():
    gallery = ClipSetConfig("gallery", PersonWorld(identities=3), clips=8, seed=2)
    assert [gallery.scene(clip) for clip in range(5)] == [0, 1, 2, 0, 1]
    sets = [ClipSetConfig("strangers", ALONE, clips=1000, seed=seed) for seed in (0, 1, 2)]
    seeds = [config.scene(clip) for config in sets for clip in range(1000)]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 1000  # nobody of a gallery


def test_sets_with_other_seeds_share_no_motion():
    seeds = [clip_seed(seed, clip) for seed in (0, 1, 2) for clip in range(1000)]
    assert len(set(seeds)) == len(seeds)


def test_a_share_of_the_clips_fades_in():
    plain, fading = PersonWorld(identities=16), PersonWorld(identities=16, fade_in=0.3)
    befores, afters = ([world.motion(2, clip, 13) for clip in range(200)] for world in (plain, fading))
    differs = [not torch.equal(before, after) for before, after in zip(befores, afters, strict=True)]
    assert 55 <= sum(differs) <= 65
    assert {clip % 16 for clip, other in enumerate(differs) if other} == set(range(16))  # everybody does
    clip = differs.index(True)
    before, after = befores[clip], afters[clip]
    assert torch.equal(before[FADE:], after[FADE:])  # from another pose into the same motion
    assert (after[0] - before[0]).abs().max() > 0.1
    steps = torch.stack([after.diff(dim=0)[:FADE].abs().max() for after in afters])
    moving, others = steps[torch.tensor(differs)], steps[~torch.tensor(differs)]
    assert moving.mean() > 1.5 * others.mean()  # and faster than any motion begins
    assert torch.equal(fading.clip(2, clip, 13, 16).controls, pose_points(after))


def test_sets_without_fades_have_the_card_of_before(tmp_path, threads):
    render_clips(tmp_path, CONFIG)
    assert "fade_in" not in json.loads((tmp_path / "tiny.json").read_text())
    render_clips(tmp_path, dataclasses.replace(CONFIG, world=PersonWorld(fade_in=0.5)))
    assert json.loads((tmp_path / "tiny.json").read_text())["fade_in"] == 0.5


def test_what_is_there_is_not_rendered_again(tmp_path, threads, monkeypatch):
    render_clips(tmp_path, CONFIG)
    monkeypatch.setattr(data, "_render_all", lambda *_: pytest.fail("rendered again"))
    assert len(render_clips(tmp_path, CONFIG)) == 3


def test_another_configuration_is_rendered_anew(tmp_path, threads):
    render_clips(tmp_path, CONFIG)
    other = ClipSetConfig("tiny", ALONE, clips=2, frames=5, size=16, seed=8)
    clip_set = render_clips(tmp_path, other)
    assert clip_set.video.shape[0] == 2
    assert torch.equal(clip_set.controls[0], make_clip(other, 0).controls)


@pytest.mark.parametrize("earlier", [True, False], ids=["over an older set", "into an empty folder"])
def test_a_stopped_rendering_resumes_with_the_missing_clips(tmp_path, threads, monkeypatch, earlier):
    """Bit-equal to a set rendered at once."""
    if earlier:
        render_clips(tmp_path, ClipSetConfig("tiny", ALONE, clips=2, frames=5, size=16, seed=1))
    rendered = []

    def breaks(config, clip):
        rendered.append(clip)
        if clip == 1 and rendered.count(1) == 1:
            raise KeyboardInterrupt
        return make_clip(config, clip)

    monkeypatch.setattr(data, "make_clip", breaks)
    with pytest.raises(KeyboardInterrupt):
        render_clips(tmp_path, CONFIG, workers=1)
    assert not (tmp_path / "tiny.json").exists()
    missing = clip_rows(tmp_path, CONFIG).begin()
    assert 1 in missing and 0 not in missing
    rendered[:] = [1]
    resumed = render_clips(tmp_path, CONFIG, workers=1)
    assert sorted(rendered[1:]) == missing
    whole = render_clips(tmp_path / "at once", CONFIG, workers=1)
    assert np.array_equal(resumed.video, whole.video) and torch.equal(resumed.controls, whole.controls)
    names = ["tiny.json", "tiny.points.npy", "tiny.video.npy"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == names


def test_the_first_clips_of_another_set_are_not_kept(tmp_path, threads, monkeypatch):
    def breaks(config, clip):
        if clip == 2:
            raise RuntimeError("stopped")
        return make_clip(config, clip)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(data, "make_clip", breaks)
        render_clips(tmp_path, CONFIG, workers=1)
    assert clip_rows(tmp_path, CONFIG).there > 0
    other = dataclasses.replace(CONFIG, seed=8)
    assert clip_rows(tmp_path, other).there == 0
    assert torch.equal(render_clips(tmp_path, other, workers=1).controls[0], make_clip(other, 0).controls)


def test_a_set_that_fits_no_disk_is_refused_before_it_is_begun(tmp_path, threads):
    endless = dataclasses.replace(CONFIG, clips=10**12)
    with pytest.raises(ValueError, match=r"^tiny: count: expected a value that fits into .* got one that needs 4"):
        render_clips(tmp_path, endless)
    assert list(tmp_path.iterdir()) == []


def test_the_card_appears_whole(tmp_path, threads, monkeypatch):
    """Killed while writing the card: the next run renders again instead of stumbling over half a card."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="killed"):
        patch.setattr(data.os, "replace", killed)
        render_clips(tmp_path, CONFIG)
    render_clips(tmp_path, CONFIG)
    assert json.loads((tmp_path / "tiny.json").read_text())["seed"] == 7


def test_to_float():
    video = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(2, 4, 5, 3)  # [T, H, W, 3]
    values = to_float(video)
    assert values.shape == (3, 2, 4, 5)
    assert_near(values[:, 0, 0, 0], torch.tensor([-1.0, -0.6, 1.0]), 1e-6, "values")
    assert to_float(video.expand(6, -1, -1, -1, -1)).shape == (6, 3, 2, 4, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(clips=0), "clips: expected at least 1, got 0"),
        (dict(clips=1, frames=60), "frames: expected 1 \\+ 4 n with n >= 1, got 60"),
        (dict(clips=1, frames=1), "frames: expected 1 \\+ 4 n with n >= 1, got 1"),
    ],
)
def test_impossible_sets_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ClipSetConfig("any", ALONE, **fields)


def test_impossible_worlds_are_refused():
    with pytest.raises(ValueError, match=r"fade_in: expected a share, 0..1, got 1.5"):
        PersonWorld(fade_in=1.5)
    with pytest.raises(ValueError, match="identities: expected 0 or more, got -1"):
        PersonWorld(identities=-1)


CHANCE = ClipSetConfig("chance", ChanceWorld(), clips=3, frames=13, size=32, seed=7)


def test_futures_begin_alike_and_part():
    clip = make_clip(CHANCE, 1).video
    several = futures(CHANCE, 1, 3)
    assert several.shape == (3, 13, 32, 32, 3) and torch.equal(several[0], clip)
    for other in several[1:]:
        assert torch.equal(other[0], clip[0])
    later = several[:, 12].float()
    assert min((later[a] - later[b]).abs().max() for a, b in ((0, 1), (1, 2), (0, 2))) > 20


def test_a_world_without_chance_has_one_future():
    with pytest.raises(ValueError, match=r"config\.world: expected one in which chance has a part, got PersonWorld"):
        futures(CONFIG, 0, 2)


@pytest.mark.parametrize("other", [ChanceWorld(step=2), ALONE], ids=["other pictures", "another world"])
def test_sets_of_other_worlds_are_kept_apart(tmp_path, threads, monkeypatch, other):
    clip_set = render_clips(tmp_path, CHANCE)
    assert torch.equal(torch.from_numpy(np.array(clip_set.video[2])), make_clip(CHANCE, 2).video)
    monkeypatch.setattr(data, "_render_all", lambda *_: pytest.fail("rendered again"))
    render_clips(tmp_path, CHANCE)
    with pytest.raises(pytest.fail.Exception, match="rendered again"):
        render_clips(tmp_path, dataclasses.replace(CHANCE, world=other))


def test_a_set_of_persons_without_fades_has_the_card_of_old_ones(tmp_path, threads):
    render_clips(tmp_path, CONFIG)
    card = dict(name="tiny", clips=3, frames=5, size=16, identities=0, seed=7)
    assert json.loads((tmp_path / "tiny.json").read_text()) == card
