# SPDX-License-Identifier: Apache-2.0
"""First frames with their controls, and videos under a player, an iterable or no control."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch

from aapt_fast import FirstFrame, StreamModel, StreamSession
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.profiling.inputs import random_controls
from aapt_fast.testing.streams import STREAMS, play, random_model

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> StreamModel:
    return random_model(STREAMS["pose"])


@pytest.fixture(scope="module")
def text_model() -> StreamModel:
    return random_model(STREAMS["text"])


@pytest.fixture(scope="module")
def first(model: StreamModel) -> FirstFrame:
    return FirstFrame(IMAGE, random_controls(model, 1, seed=5)[0][0])


class Player:
    """Poses that depend on how often `play` was called, and how many frames were taken."""

    def __init__(self) -> None:
        self.taken, self.played = 0, 0

    def play(self) -> None:
        self.played += 1

    def next(self, frames: int) -> torch.Tensor:
        self.taken += frames
        generator = torch.Generator().manual_seed(100 * self.played + self.taken)
        return torch.rand(frames, 19, 3, generator=generator)


def test_a_first_frame_is_its_picture_and_its_control(model, first):
    controls = random_controls(model, 3)
    expected = play(StreamSession(model, IMAGE, image_control=first.control, seed=2), controls)[1]
    without = play(StreamSession(model, IMAGE, seed=2), controls)[1]
    assert torch.equal(play(StreamSession(model, first, seed=2), controls)[1], expected)
    assert torch.equal(play(StreamSession(model, FirstFrame(IMAGE), seed=2), controls)[1], without)
    assert not torch.equal(expected, without)
    session = StreamSession(model, IMAGE[::-1].copy(), seed=2)
    session.reset(first)
    assert torch.equal(play(session, controls)[1], expected)
    session.reset()
    assert torch.equal(play(session, controls)[1], expected)
    session.reset(FirstFrame(IMAGE))
    assert torch.equal(play(session, controls)[1], without)


def test_a_given_control_counts_more_than_that_of_the_first_frame(model, first):
    controls, other = random_controls(model, 2), random_controls(model, 1, seed=6)[0][0]
    expected = play(StreamSession(model, IMAGE, image_control=other), controls)[1]
    assert torch.equal(play(StreamSession(model, first, image_control=other), controls)[1], expected)


def test_a_model_without_control_leaves_that_of_a_first_frame_alone(text_model, first):
    image = np.resize(IMAGE, (*text_model.video_size, 3))
    prompt = torch.rand(3, text_model.config.text_width)
    frames = (FirstFrame(image, first.control), image)
    videos = [StreamSession(text_model, each, prompt=prompt).step() for each in frames]
    assert torch.equal(*videos)


def test_a_player_is_obeyed_in_the_next_step(model, first):
    player, twin, video = Player(), Player(), []
    session = StreamSession(model, first)
    for frames in session.frames(player):
        video.append(frames)
        if session.steps == 2:
            player.play()
        if session.steps == 4:
            break
    assert player.taken == 16  # nothing was fetched ahead
    controls = [twin.next(4), twin.next(4)]
    twin.play()
    controls += [twin.next(4), twin.next(4)]
    assert torch.equal(torch.cat(video), play(StreamSession(model, first), controls)[1])


def test_controls_from_an_iterable_end_with_it(model, first):
    controls = random_controls(model, 3)
    expected = play(StreamSession(model, first), controls)[1]
    for source in (controls, iter(controls), (each for each in controls)):
        assert torch.equal(torch.cat(list(StreamSession(model, first).frames(source))), expected)


class TwoSteps(Player):
    """Poses of two steps, and then no more."""

    def next(self, frames: int) -> torch.Tensor:
        if self.taken == 8:
            raise StopIteration
        return super().next(frames)


def test_a_player_without_more_controls_ends_the_video(model, first):
    session, player = StreamSession(model, first), Player()
    expected = play(StreamSession(model, first), [player.next(4), player.next(4)])[1]
    assert torch.equal(torch.cat(list(session.frames(TwoSteps()))), expected)
    assert session.steps == 2 and not session.closed


@pytest.mark.parametrize("as_given", [torch.Tensor, np.asarray, torch.Tensor.tolist], ids=["tensor", "array", "lists"])
def test_the_short_last_piece_of_a_track_says_how_to_fill_it(model, first, as_given):
    track = torch.cat(random_controls(model, 2))[:7]
    session = StreamSession(model, first)
    pieces = [as_given(piece) for piece in track.split(4)]
    with pytest.raises(
        ValueError, match=r"control: expected shape \[4, 19, 3\], .*, got \[3, 19, 3\]; (.*) holds"
    ) as caught:
        list(session.frames(pieces))
    assert session.steps == 1 and not session.closed
    advice = re.search(r"; (\S+\(.*) holds the last one$", str(caught.value))[1]
    filled = eval(advice, {"control": pieces[1], "torch": torch, "numpy": np})
    assert torch.equal(torch.as_tensor(filled).float(), torch.cat([track[4:], track[6:]]))
    session.step(filled)
    with pytest.raises(ValueError, match=r"got \[7, 19, 3\]; take several steps, of 4 entries each$"):
        session.step(as_given(track))


def test_a_number_of_steps(model, first):
    session = StreamSession(model, first)
    assert [frames.shape for frames in session.frames(Player(), steps=3)] == [(4, 32, 32, 3)] * 3
    assert list(session.frames(Player(), steps=0)) == [] and session.steps == 3
    with pytest.raises(ValueError, match="steps: expected 0 or more, got -1"):
        session.frames(Player(), steps=-1)
    for steps in ("3", 1.5, True):
        with pytest.raises(TypeError, match=f"steps: expected an integer, got {type(steps).__name__}"):
            session.frames(Player(), steps=steps)
    assert len(list(session.frames(Player(), steps=np.int64(1)))) == 1


def test_no_control_for_a_model_without(text_model):
    image = np.resize(IMAGE, (*text_model.video_size, 3))
    session = StreamSession(text_model, image, prompt=torch.rand(3, text_model.config.text_width))
    assert len(list(itertools.islice(session.frames(), 2))) == 2 and session.steps == 2


@pytest.mark.parametrize("source", [7, "walk", FirstFrame(IMAGE)])
def test_a_source_of_another_kind_is_refused_before_the_first_step(model, first, source):
    session = StreamSession(model, first)
    with pytest.raises(TypeError, match=r"source: expected a player with a method next\(frames\), or an iterable of"):
        session.frames(source)
    assert session.steps == 0


@pytest.mark.parametrize("as_given", [torch.Tensor, np.asarray], ids=["tensor", "array"])
def test_a_track_of_video_frames_is_no_list_of_steps(model, first, as_given):
    """[T, 19, 3] is refused, and the message says how to cut it into steps; read as steps it would be too slow."""
    track = torch.cat(random_controls(model, 2))
    expected = play(StreamSession(model, first), list(track.split(4)))[1]
    session, source = StreamSession(model, first), as_given(track)
    with pytest.raises(
        ValueError, match=r"source: expected \[n, 4, 19, 3\], .*, got \[8, 19, 3\]; (.*) makes"
    ) as caught:
        session.frames(source)
    advice = re.search(r"; (source\.\S+.*) makes", str(caught.value))[1]
    assert torch.equal(torch.cat(list(session.frames(eval(advice)))), expected)
    with pytest.raises(ValueError, match=r"source: expected \[n, 4, 19, 3\], .*, got \[2, 4, 18, 3\]$"):
        session.frames(as_given(torch.zeros(2, 4, 18, 3)))
    with pytest.raises(ValueError, match=r"source: expected \[n, 4, 19, 3\], .*, got \[19, 3\]$"):
        session.frames(as_given(track[0]))


def test_a_track_of_maps_is_no_list_of_steps():
    maps_model = random_model(dataclasses.replace(NANO, control=ControlConfig(kind="maps", channels=3)))
    session = StreamSession(maps_model, IMAGE)
    track = torch.rand(8, 3, 4, 4)
    with pytest.raises(ValueError, match=r"source: expected \[n, 4, 3, 4, 4\], .*, got \[8, 3, 4, 4\]; source.split"):
        session.frames(track)
    assert len(list(session.frames(track.unflatten(0, (2, 4))))) == 2
    with pytest.raises(ValueError, match=r"control: .*, got \[3, 3, 4, 4\]; torch.cat.* holds the last one$") as caught:
        list(session.frames(track[:7].split(4)))
    control = track[4:7]
    advice = re.search(r"; (torch.*) holds", str(caught.value))[1]
    assert torch.equal(eval(advice), torch.cat([control, track[6:7]]))


@pytest.mark.parametrize("kind", [Player, list])
def test_a_class_is_no_source(model, first, kind):
    with pytest.raises(TypeError, match=f"source: expected a player .*, got the class {kind.__name__} instead of"):
        StreamSession(model, first).frames(kind)


def test_a_step_without_a_control_says_how_to_make_one(model, first):
    session = StreamSession(model, first)
    for step in (session.step, lambda: next(session.frames())):
        with pytest.raises(TypeError) as caught:
            step()
        assert "control: expected [4, 19, 3]" in str(caught.value)
        assert 'model.world.player(first, "walk").next(4)' in str(caught.value)
    assert session.steps == 0
