# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle

import pytest

from aapt_fast import SessionBatch, StreamModel
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.testing.streams import random_model, random_session


@pytest.fixture
def pose_model() -> StreamModel:
    return random_model(NANO)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_in_one_sentence(pose_model, way):
    session = random_session(pose_model)
    things = [(SessionBatch([session]), "batch: it cannot be copied or pickled")]
    things.append((session._pool, "pool: it cannot be copied or pickled"))
    if way is pickle.dumps:  # a copy is a fork
        things.append((session, r"session: it cannot be pickled; fork\(\) continues it, save\(\) writes it"))
    for thing, message in things:
        with pytest.raises(TypeError, match=f"^{message}"):
            way(thing)
