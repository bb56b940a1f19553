# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from aapt_fast.models.aapt.presets import GENERATORS
from aapt_fast.verification.cases import SUITES
from aapt_fast.verification.shapes import timed_shapes


def test_without_a_preset_they_are_those_of_the_suites() -> None:
    assert timed_shapes() == {op: suite.shapes for op, suite in SUITES.items()}


@pytest.mark.parametrize("preset", GENERATORS)
def test_every_preset_has_one_shape_per_op(preset: str) -> None:
    shapes = timed_shapes(preset)
    assert set(shapes) == set(SUITES)
    assert all(len(timed) == 1 and len(timed[0]) == len(SUITES[op].tiny) for op, timed in shapes.items())


def test_the_large_preset_has_shapes_that_the_suites_name_too() -> None:
    for op, (shape,) in timed_shapes("aapt-8b").items():
        assert shape in SUITES[op].shapes


def test_a_preset_with_controls() -> None:
    shapes = timed_shapes("mini-person")
    assert shapes["paged_attention"] == ((36, 36 * 7, 4, 56),)  # 6 x 6 patches; 5 past frames, the first, the own one
    assert shapes["channel_concat"] == ((64, 12, 12, 224),)
