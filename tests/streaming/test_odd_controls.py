# SPDX-License-Identifier: Apache-2.0
"""A session warns once of each kind of odd controls, and refuses numbers beyond any sense."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor

from aapt_fast import FirstFrame, PagePool, SessionBatch, StreamModel, StreamSession
from aapt_fast.models.aapt.presets import NANO, PERSON_CONTROL
from aapt_fast.streaming.controls import step_values
from aapt_fast.testing.streams import STREAMS, random_image, random_model
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import pose_points

POSES = pose_points(random_motion(4, 0))
LONG, SMALL = "poses have longer bones than a body of this world: ", "poses are of a body less than half as large"


def at_depth(metres: float) -> Tensor:
    return torch.cat([POSES[..., :2], torch.full((4, 19, 1), metres)], -1)


@pytest.fixture(scope="module")
def model() -> StreamModel:
    return random_model(dataclasses.replace(NANO, control=PERSON_CONTROL), world=WORLDS["person"])


def opened(model: StreamModel, **options: object) -> StreamSession:
    return StreamSession(model, random_image(model), **options)


def test_each_kind_is_told_once_at_the_line_of_the_caller(model):
    session = opened(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.step(POSES)
    with pytest.warns(UserWarning) as caught:
        session.step(at_depth(1700.0))  # millimetres
        session.step(at_depth(-500.0))
        for _ in session.frames([torch.zeros(4, 19, 3)] * 2):  # a tracker that has lost its person
            pass
        session.fork().step(at_depth(1700.0))
    assert [LONG in str(caught[0].message), SMALL in str(caught[1].message), len(caught)] == [True, True, 2]
    assert str(caught[1].message).startswith("control: 4 of 4 poses are of a body") and session.steps == 5
    assert {warning.filename for warning in caught} == {__file__}


def test_a_batch_and_the_control_of_the_first_picture(model):
    pool = PagePool.for_sessions(model, 2)
    sessions = [opened(model, pool=pool) for _ in range(2)]
    with pytest.warns(UserWarning, match=f"control: 4 of 4 {LONG}") as caught:
        SessionBatch(sessions).step([POSES, at_depth(1700.0)])
    assert len(caught) == 1 and caught[0].filename == __file__
    first = FirstFrame(random_image(model), at_depth(1700.0)[0])
    for start in (lambda: StreamSession(model, first), lambda: sessions[0].reset(first)):
        with pytest.warns(UserWarning, match=f"image_control: 1 of 1 {LONG}"):
            start()


@pytest.mark.parametrize("depth", [1e9, -1e30])
def test_numbers_beyond_any_sense_are_refused_and_harm_nothing(model, depth):
    message = "control: expected values within -10000..10000, places as fractions of the picture and depths in metres"
    session, unharmed = opened(model), opened(model)
    with pytest.raises(ValueError, match=message):
        session.step(at_depth(depth))
    with pytest.raises(ValueError, match=message):
        StreamSession(model, random_image(model), image_control=at_depth(depth)[0])
    assert torch.equal(session.step(POSES), unharmed.step(POSES))


def test_maps_are_bounded_by_the_dtype_that_computes_with_them():
    config = STREAMS["text and maps"].control
    maps = torch.full((4, 3, 4, 4), 1e5)
    assert torch.equal(step_values(maps, config, (4, 4)), maps)
    with pytest.raises(ValueError, match=r"control: expected values within -65504..65504, got one of size 100000"):
        step_values(maps, config, (4, 4), dtype=torch.float16)
