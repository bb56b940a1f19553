# SPDX-License-Identifier: Apache-2.0
"""The rule that says which frames a step sees, against its definition in words."""

from __future__ import annotations

import pytest

from aapt_fast.ops.window import WindowRule

AAPT = WindowRule(window=3, sink=1, sink_position="saturated")


@pytest.mark.parametrize(
    ("rule", "newest", "seen"),
    [
        (WindowRule(3, 2, 1), 3, [1, 2, 3]),
        (WindowRule(3, 2, 1), 6, [1, 2, 3, 4, 5, 6]),
        (WindowRule(3, 2, 1), 9, [1, 5, 6, 7, 8, 9]),
        (WindowRule(3, 0, 3), 9, [1, 2, 3, 7, 8, 9]),
        (WindowRule(2, 0), 7, [6, 7]),
        (WindowRule(1, None, 2), 4, [1, 2, 3, 4]),
        (AAPT, 4, [1, 2, 3, 4]),
        (AAPT, 9, [1, 6, 7, 8, 9]),
    ],
)
def test_frames_seen(rule, newest, seen):
    assert [frame for frame, _ in rule.seen(newest)] == seen


def test_absolute_positions_are_the_frames_themselves():
    for newest in range(1, 30):
        assert all(frame == position for frame, position in WindowRule(3, 4, 2).seen(newest))


@pytest.mark.parametrize("sink", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2])
def test_saturated_sinks_sit_directly_before_the_window(sink, frames):
    rule = WindowRule(frames, 4, sink, "saturated")
    for newest in range(frames, 40):
        seen = rule.seen(newest)
        start = rule.window_start(newest)
        outside = [(frame, position) for frame, position in seen if frame < start]
        assert [frame for frame, _ in outside] == list(range(1, min(sink, start - 1) + 1))
        assert all(max(frame, start - 1 - sink + frame) == position for frame, position in outside)
        assert all(frame == position for frame, position in seen if frame >= start)
        if len(outside) == sink and start > sink + 1:
            assert [position for _, position in seen] == list(range(start - sink, newest + 1))


@pytest.mark.parametrize(
    "rule", [WindowRule(1, 2), WindowRule(3, 5, 2), AAPT, WindowRule(2, 3, 3, "saturated")], ids=str
)
def test_capacity_is_the_most_that_is_ever_seen_and_nothing_comes_back(rule):
    gone: set[int] = set()
    most = 0
    for newest in range(rule.frames, 60, rule.frames):
        seen = {frame for frame, _ in rule.seen(newest)}
        assert not seen & gone
        gone |= set(range(1, newest + 1)) - seen
        most = max(most, len(seen))
    assert most == rule.capacity


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "frames: expected at least 1, got 0"),
        ((3, -1), ValueError, "window: expected at least 0, got -1"),
        ((1, 2, -1), ValueError, "sink: expected at least 0, got -1"),
        ((1, 2, 1, "near"), ValueError, "sink_position: expected absolute or saturated, got near"),
        ((1, None, 1, "saturated"), ValueError, "sink_position: expected absolute: without a window"),
        ((1.5,), TypeError, "frames: expected int, got float"),
        (("3",), TypeError, "frames: expected int, got str"),
        ((3, 9.0), TypeError, "window: expected int, got float"),
        ((3, 21, None), TypeError, "sink: expected int, got NoneType"),
    ],
)
def test_bad_rules(arguments, error, message):
    with pytest.raises(error, match=message):
        WindowRule(*arguments)
