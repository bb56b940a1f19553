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
    for thing, message in (
        (session, "session: it cannot be copied or pickled; fork.* first frame, seed and controls"),
        (SessionBatch([session]), "batch: it cannot be copied or pickled"),
        (session._pool, "pool: it cannot be copied or pickled"),
    ):
        with pytest.raises(TypeError, match=f"^{message}"):
            way(thing)
