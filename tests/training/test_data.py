# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.training import data
from aapt_fast.training.data import ClipSetConfig, futures, make_clip, render_clips, to_float
from aapt_fast.worlds.company import Company
from aapt_fast.worlds.motions import FADE
from aapt_fast.worlds.skeleton import Camera, forward_kinematics

CONFIG = ClipSetConfig("tiny", clips=3, frames=5, size=16, seed=7)


@pytest.fixture
def threads(monkeypatch):
    """Renders in threads, so that a test need not wait for processes to import torch, and can break the rendering."""
    monkeypatch.setattr(data, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))


def test_processes_render_what_the_clip_numbers_say(tmp_path):
    clip_set = render_clips(tmp_path / "new" / "folder", CONFIG, workers=1)
    assert len(clip_set) == 3 and clip_set.video.shape == (3, 5, 16, 16, 3)
    for number in range(3):
        video, points = make_clip(CONFIG, number)
        assert torch.equal(torch.from_numpy(np.array(clip_set.video[number])), video)
        assert torch.equal(clip_set.points[number], points)


class Deadly(ClipSetConfig):
    """Whoever asks it for a person is killed."""

    def identity_seed(self, clip: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


@pytest.mark.timeout(60)
def test_a_killed_worker_ends_the_rendering_in_words(tmp_path):
    with pytest.raises(BrokenProcessPool):
        render_clips(tmp_path, Deadly("tiny", clips=3, frames=5, size=16), workers=1)
    assert not (tmp_path / "tiny.json").exists()


def test_clip_is_video_in_minus_one_to_one_and_ours_to_change(tmp_path, threads):
    clip_set = render_clips(tmp_path, CONFIG, workers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = clip_set.clip(1)
    assert clip.shape == (3, 5, 16, 16) and clip.dtype == torch.float32
    assert torch.equal(clip, to_float(make_clip(CONFIG, 1)[0]))
    clip.zero_()
    assert clip_set.clip(1).abs().max() > 0.1


def test_a_clip_is_its_number():
    video, points = make_clip(CONFIG, 2)
    assert video.shape == (5, 16, 16, 3) and video.dtype == torch.uint8
    assert points.shape == (5, 19, 3) and points.dtype == torch.float32
    again = make_clip(CONFIG, 2)
    assert torch.equal(video, again[0]) and torch.equal(points, again[1])
    assert not torch.equal(points, make_clip(CONFIG, 1)[1])


def test_identities_repeat_in_a_gallery_and_never_else():
    gallery = ClipSetConfig("gallery", clips=8, identities=3, seed=2)
    assert [gallery.identity_seed(clip) for clip in range(5)] == [0, 1, 2, 0, 1]
    sets = [ClipSetConfig("strangers", clips=1000, seed=seed) for seed in (0, 1, 2)]
    seeds = [config.identity_seed(clip) for config in sets for clip in range(1000)]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 1000  # nobody of a gallery


def test_sets_with_other_seeds_share_no_motion():
    sets = [ClipSetConfig("any", clips=1000, identities=16 * (seed == 1), seed=seed) for seed in (0, 1, 2)]
    seeds = [config.motion_seed(clip) for config in sets for clip in range(1000)]
    assert len(set(seeds)) == len(seeds)


def test_a_share_of_the_clips_fades_in():
    plain = ClipSetConfig("gallery", clips=200, frames=13, size=16, identities=16, seed=2)
    fading = dataclasses.replace(plain, fade_in=0.3)
    differs = [not torch.equal(plain.motion(clip), fading.motion(clip)) for clip in range(200)]
    assert 55 <= sum(differs) <= 65
    assert {clip % 16 for clip, other in enumerate(differs) if other} == set(range(16))  # everybody does
    clip = differs.index(True)
    before, after = plain.motion(clip), fading.motion(clip)
    assert torch.equal(before[FADE:], after[FADE:])  # from another pose into the same motion
    assert (after[0] - before[0]).abs().max() > 0.1
    steps = torch.stack([fading.motion(clip).diff(dim=0)[:FADE].abs().max() for clip in range(200)])
    moving, others = steps[torch.tensor(differs)], steps[~torch.tensor(differs)]
    assert moving.mean() > 1.5 * others.mean()  # and faster than any motion begins
    assert torch.equal(make_clip(fading, clip)[1], Camera().project(forward_kinematics(after)))


def test_sets_without_fades_have_the_card_of_before(tmp_path, threads):
    render_clips(tmp_path, CONFIG)
    assert "fade_in" not in json.loads((tmp_path / "tiny.json").read_text())
    render_clips(tmp_path, dataclasses.replace(CONFIG, fade_in=0.5))
    assert json.loads((tmp_path / "tiny.json").read_text())["fade_in"] == 0.5


def test_what_is_there_is_not_rendered_again(tmp_path, threads, monkeypatch):
    render_clips(tmp_path, CONFIG)
    monkeypatch.setattr(data, "_render_all", lambda *_: pytest.fail("rendered again"))
    assert len(render_clips(tmp_path, CONFIG)) == 3


def test_another_configuration_is_rendered_anew(tmp_path, threads):
    render_clips(tmp_path, CONFIG)
    other = ClipSetConfig("tiny", clips=2, frames=5, size=16, seed=8)
    clip_set = render_clips(tmp_path, other)
    assert clip_set.video.shape[0] == 2
    assert torch.equal(clip_set.points[0], make_clip(other, 0)[1])


@pytest.mark.parametrize("earlier", [True, False], ids=["over an older set", "into an empty folder"])
def test_a_broken_off_rendering_leaves_nothing_valid(tmp_path, threads, monkeypatch, earlier):
    if earlier:
        render_clips(tmp_path, ClipSetConfig("tiny", clips=2, frames=5, size=16, seed=1))

    def breaks(config, clip):
        if clip == 1:
            raise RuntimeError("stopped")
        return make_clip(config, clip)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        patch.setattr(data, "make_clip", breaks)
        render_clips(tmp_path, CONFIG)
    assert not (tmp_path / "tiny.json").exists()
    assert torch.equal(render_clips(tmp_path, CONFIG).points[1], make_clip(CONFIG, 1)[1])


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
        (dict(clips=1, fade_in=1.5), "fade_in: expected a share, 0..1, got 1.5"),
    ],
)
def test_impossible_sets_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ClipSetConfig("any", **fields)


IN_COMPANY = ClipSetConfig("company", clips=3, frames=13, size=32, seed=7, company=Company())


def test_futures_begin_alike_and_part():
    clip = make_clip(IN_COMPANY, 1)[0]
    for parting in (1, 6):
        several = futures(IN_COMPANY, 1, 3, parting)
        assert several.shape == (3, 13, 32, 32, 3) and torch.equal(several[0], clip)
        for other in several[1:]:
            assert torch.equal(other[:parting], clip[:parting])
        later = several[:, 12].float()
        assert min((later[a] - later[b]).abs().max() for a, b in ((0, 1), (1, 2), (0, 2))) > 20


def test_company_changes_the_video_and_never_the_points():
    plain = dataclasses.replace(IN_COMPANY, company=None)
    (video, points), (plain_video, plain_points) = make_clip(IN_COMPANY, 0), make_clip(plain, 0)
    assert torch.equal(points, plain_points)
    assert (video.int() - plain_video.int()).abs().max() > 50
    with pytest.raises(ValueError, match=r"config\.company: expected company, without which there is one future"):
        futures(plain, 0, 2)


@pytest.mark.parametrize("other", [None, Company(ball=False)], ids=["alone", "without the ball"])
def test_sets_in_company_are_kept_apart_from_others(tmp_path, threads, monkeypatch, other):
    clip_set = render_clips(tmp_path, IN_COMPANY)
    assert torch.equal(torch.from_numpy(np.array(clip_set.video[2])), make_clip(IN_COMPANY, 2)[0])
    monkeypatch.setattr(data, "_render_all", lambda *_: pytest.fail("rendered again"))
    render_clips(tmp_path, IN_COMPANY)
    with pytest.raises(pytest.fail.Exception, match="rendered again"):
        render_clips(tmp_path, dataclasses.replace(IN_COMPANY, company=other))


def test_a_set_rendered_before_there_was_company_is_still_good(tmp_path, threads):
    render_clips(tmp_path, CONFIG)
    card = dict(name="tiny", clips=3, frames=5, size=16, identities=0, seed=7)
    assert json.loads((tmp_path / "tiny.json").read_text()) == card
