# SPDX-License-Identifier: Apache-2.0
"""A window that rolls on counts every frame once, in the list of pages and in the numbers; and planted bugs.

A frame that is listed twice changes no shape and raises nothing: its keys only weigh double.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from aapt_fast.ops import FrameRope, GrowingCache
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.cache_row import CacheRow
from aapt_fast.streaming.pages import PagePool, cache_pages
from aapt_fast.testing.compare import assert_near

HEADS, HEAD_DIM, GRID, TOKENS = 1, 8, (7, 10), 70
RULE = WindowRule(window=3, sink=1, sink_position="saturated")
STEPS = 9  # the window is full after four


def empty_cache() -> PagedCache:
    pool = PagePool(1, cache_pages(TOKENS, RULE), HEADS, HEAD_DIM)
    return PagedCache([CacheRow(pool, RULE, FrameRope(GRID, HEAD_DIM, theta=30.0), TOKENS)])


def step(cache: PagedCache | GrowingCache, qkv: torch.Tensor) -> torch.Tensor:
    """Result [1, 1, N, H, D] of one step with q, k, v [3, 1, 1, N, H, D]."""
    out = cache.attend(0, *qkv, None, None)
    cache.advance(1)
    return out


def frames_are_listed_once() -> None:
    """Check the page list of each step: as many slots as tokens of the frames that the rule shows, no page twice."""
    cache = empty_cache()
    for newest in range(1, STEPS + 1):
        cache.prepare(1)
        ids, valid = cache.inputs()[0][:, 0]
        used = ids[valid > 0].tolist()
        assert len(set(used)) == len(used), f"step {newest} lists pages {used}"
        assert int(valid.sum()) == TOKENS * len(RULE.seen(newest))
        step(cache, torch.randn(3, 1, 1, TOKENS, HEADS, HEAD_DIM))


def steps_equal_those_of_the_growing_cache() -> None:
    """Compare each step with the cache that concatenates the keys of all frames that the rule shows."""
    cache = empty_cache()
    growing = GrowingCache(1, RULE, cache.rows[0].rope)
    for _ in range(STEPS):
        qkv = torch.randn(3, 1, 1, TOKENS, HEADS, HEAD_DIM)
        assert_near(step(cache, qkv), step(growing, qkv), 1e-5)


CHECKS = pytest.mark.parametrize("check", [frames_are_listed_once, steps_equal_those_of_the_growing_cache])


@dataclass(frozen=True)
class Bug:
    """A change of one method."""

    what: str
    owner: type
    method: str
    before: str  # occurs exactly once
    after: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the method until the test ends."""
        method: Callable = getattr(self.owner, self.method)
        source = textwrap.dedent(inspect.getsource(method))
        assert source.count(self.before) == 1
        code = compile(source.replace(self.before, self.after), f"<{self.what}>", "exec")
        names = dict(method.__globals__)
        exec(code, names)
        monkeypatch.setattr(self.owner, self.method, names[self.method])


BUGS = [
    Bug(
        "the newest past frame takes the entry of the one that leaves, too",
        CacheRow,
        "_make_plan",
        "for ids in past for entry",
        "for ids in [*past[1:], *past[-1:]] for entry",
    ),
    Bug(
        "the frame before the newest one is listed in both of their places",
        CacheRow,
        "_make_plan",
        "for ids in past for entry",
        "for ids in [*past[:-1], *past[-2:-1]] for entry",
    ),
    Bug("entries without a frame count", PagedCache, "inputs", "(own[0][0], 0)", "(own[0][0], 64)"),
]


@CHECKS
def test_a_rolled_window_counts_every_frame_once(check):
    check()


@CHECKS
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_a_frame_that_counts_twice_is_noticed(bug, check, monkeypatch):
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError):
        check()
