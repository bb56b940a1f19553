# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.training.clips import LatentClips, disturb_recycled

FRAMES = 7


def numbered(clips: int = 6, drop_first_control: float = 0.0, scenes: list[int] | None = None) -> LatentClips:
    """Frame f of clip i holds 100 i + f everywhere, and so does every pose of its video frames."""
    known = None if scenes is None else torch.tensor(scenes)
    frames = torch.arange(1.0 + FRAMES) + 100 * torch.arange(float(clips))[:, None]  # [clips, 1 + n]
    latents = frames.view(clips, 1, -1, 1, 1).expand(-1, 16, -1, 4, 4)
    of_video = torch.cat([frames[:, :1], frames[:, 1:].repeat_interleave(4, 1)], 1)
    return LatentClips(
        latents, of_video[:, :, None, None].expand(-1, -1, 19, 3) / 1000, NANO, known, drop_first_control
    )


def test_batches_are_spans_of_consecutive_frames():
    clips, starts = numbered(), set()
    for _ in range(40):
        batch = clips.sample(5, 4, share_at_start=0.3)
        first = batch.clean[:, 0, 0, 0, 0]
        starts |= set((first % 100).int().tolist())
        assert len(set((first % 100).tolist())) == 1  # one place for all rows
        for tensor, offset in ((batch.clean, 0), (batch.recycled, -1)):
            expected = first[:, None] + torch.arange(4.0) + offset
            assert torch.equal(tensor, expected.view(5, 1, 4, 1, 1).expand(-1, 16, -1, 4, 4))
    assert starts == {1, 2, 3, 4}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_batches_at_the_start_of_the_clips(share):
    at_start = [float(numbered().sample(1, 4, share).clean[0, 0, 0, 0, 0]) % 100 == 1 for _ in range(200)]
    expected = share + (1 - share) / 4  # one of the four places is the start
    assert sum(at_start) / 200 == pytest.approx(expected, abs=0.1)


def test_controls_belong_to_their_frames():
    clips = numbered()
    batch = clips.sample(4, 3, share_at_start=0.0)
    picks = (batch.clean[:, 0, 0, 0, 0] // 100).long()
    first = int(batch.clean[0, 0, 0, 0, 0] % 100) - 1
    expected = clip_controls(clips.controls[picks], NANO.control, NANO.grid)[:, :, first : first + 3]
    assert torch.equal(batch.control, expected)


def test_some_rows_do_not_say_the_pose_of_their_image():
    control = numbered(drop_first_control=0.25).sample(400, 2, share_at_start=1.0).control
    half = control.shape[1] // 2
    untold = (control[:, half:, 0] == 0).all((1, 2, 3))
    assert float(untold.float().mean()) == pytest.approx(0.25, abs=0.08)
    assert (control[:, half:, 1] != 0).any((1, 2, 3)).all() and (control[:, :half, 0] != 0).any((1, 2, 3)).all()


def test_chains_join_whole_clips_of_one_person():
    clips = numbered(clips=8, scenes=[0, 1, 0, 1, 0, 1, 77, 78])
    seen = set()
    for _ in range(30):
        batch = clips.chain(rows=2, clips=3)
        frames = batch.clean[:, 0, :, 0, 0]
        assert frames.shape == (2, 3 * FRAMES)
        for row, recycled in zip(frames, batch.recycled[:, 0, :, 0, 0], strict=True):
            numbers = (row[::FRAMES] // 100).int().tolist()
            seen.add(tuple(numbers))
            assert len({number % 2 for number in numbers}) == 1 and len(set(numbers)) == 3
            inside = torch.arange(1.0, 1 + FRAMES).repeat(3) + 100 * torch.tensor(numbers).repeat_interleave(FRAMES)
            assert torch.equal(row, inside)
            assert recycled[0] == 100 * numbers[0] and torch.equal(recycled[1:], row[:-1])
    assert len(seen) > 6 and max(max(numbers) for numbers in seen) == 5  # the last two persons are in one clip each


def test_chains_of_one_clip_show_everybody():
    first = numbered(clips=4, scenes=[0, 0, 0, 9]).chain(rows=200, clips=1).clean[:, 0, 0, 0, 0] // 100
    assert first.long().bincount().min() > 25


def test_the_control_of_a_chain_says_what_is_in_the_recycled_frame():
    """At a joint the previous pose is the last one of the clip before, as the recycled frame is."""
    control = numbered(clips=2, scenes=[3, 3]).chain(rows=1, clips=2).control
    half = control.shape[1] // 2
    assert control.shape[2] == 2 * FRAMES
    assert torch.equal(control[:, half:, FRAMES], control[:, :half, FRAMES - 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, p: (z[:0], p[:0], NANO), "latents: expected at least one clip, got an empty set"),
        (lambda z, p: (z, p[:2], NANO), "controls: expected 6 clips, got 2"),
        (lambda z, p: (z, p[:, :-1], NANO), "controls: expected 29 video frames, got 28"),
        (lambda z, p: (z, p, NANO_TEXT), "model.control: expected a control, got None"),
        (lambda z, p: (z, p, NANO, torch.zeros(5)), "scenes: expected 6 clips, got 5"),
    ],
    ids=["no clips", "clips", "video frames", "no control", "scenes"],
)
def test_clips_that_do_not_fit_are_refused(change, message):
    clips = numbered()
    with pytest.raises(ValueError, match=message):
        LatentClips(*change(clips.latents, clips.controls))


def test_too_long_chains_are_refused():
    with pytest.raises(ValueError, match="clips: expected at most 3, the most clips of a scene, got 4"):
        numbered(clips=5, scenes=[0, 1, 0, 1, 0]).chain(rows=1, clips=4)


def test_a_model_whose_control_does_not_repeat_the_previous_pose():
    config = dataclasses.replace(NANO, control=dataclasses.replace(NANO.control, with_previous=False))
    clips = numbered()
    batch = LatentClips(clips.latents, clips.controls, config, drop_first_control=1.0).sample(2, 3, 1.0)
    assert batch.control.shape[1] == config.control.step_channels and (batch.control[:, :, 0] != 0).any()


def test_disturbed_recycled_frames():
    """Each row at a level of its own up to the most; the first recycled frame, an image's, and all else stay clean."""
    batch = numbered().sample(64, 5, share_at_start=0.5)
    disturbed = disturb_recycled(batch, 0.5)
    noise = disturbed.recycled - batch.recycled
    assert (noise[:, :, 0] == 0).all() and disturbed.clean is batch.clean and disturbed.control is batch.control
    levels = noise[:, :, 1:].flatten(1).std(1)
    assert levels.max() < 0.55 and levels.min() < 0.1 and 0.15 < float(levels.mean()) < 0.35
    assert disturb_recycled(batch, 0.0) is batch
