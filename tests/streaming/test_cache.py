# SPDX-License-Identifier: Apache-2.0
"""The paged cache of one row against `GrowingCache`. Pages start as NaN: nothing may leak."""

from __future__ import annotations

import random

import pytest
import torch

from aapt_fast.errors import PoolExhausted
from aapt_fast.ops import FrameRope, GrowingCache
from aapt_fast.ops.window import WindowRule
from aapt_fast.streaming.cache import PagedCache
from aapt_fast.streaming.cache_row import CacheRow
from aapt_fast.streaming.pages import PagePool, cache_pages, pages_for
from aapt_fast.streaming.text_pages import TextPages
from aapt_fast.testing.compare import assert_near

LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 8
GRIDS = {"4 tokens": (2, 2), "64 tokens": (8, 8), "70 tokens": (7, 10)}


def make_pool(pages: int, dtype: torch.dtype = torch.float32) -> PagePool:
    pool = PagePool(LAYERS, pages, KV_HEADS, HEAD_DIM, dtype)
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.nan)
    return pool


def shuffle(pool: PagePool) -> PagePool:
    """The same pool; pages will be handed out in a random order."""
    ids = pool.allocate(pool.free)
    random.shuffle(ids)
    pool.release(ids)
    return pool


def rule(window: int) -> WindowRule:
    """AAPT's."""
    return WindowRule(window=window, sink=1, sink_position="saturated")


def pages_needed(tokens: int, window: int, text_length: int = 0) -> int:
    return cache_pages(tokens, rule(window)) + pages_for(text_length)


class OneRow(PagedCache):
    """The cache of one session."""

    def __init__(self, row: CacheRow) -> None:
        super().__init__([row])
        self.row, self.rope = row, row.rope

    @property
    def next_frame(self) -> int:
        return self.row.next_frame

    def fork(self, pool: PagePool | None = None) -> OneRow:
        return OneRow(self.row.fork(pool))

    def release(self) -> None:
        self.row.release()


def make_cache(pool: PagePool, grid=(2, 2), window=2, text=None) -> OneRow:
    rope = FrameRope(grid, HEAD_DIM, theta=30.0)
    return OneRow(CacheRow(pool, rule(window), rope, grid[0] * grid[1], text))


def steps(count: int, tokens: int = 4, heads: int = KV_HEADS, dtype: torch.dtype = torch.float32) -> list:
    """Per step and layer q, k, v [1, 1, N, H or Hkv, D]."""
    shapes = [(1, 1, tokens, h, HEAD_DIM) for h in (heads, KV_HEADS, KV_HEADS)]
    return [[[torch.randn(s).to(dtype) for s in shapes] for _ in range(LAYERS)] for _ in range(count)]


def run(cache, inputs, q_weight=None, k_weight=None) -> torch.Tensor:
    """Outputs [steps, layers, N, H, D]."""
    outputs = []
    for layers in inputs:
        attended = [cache.attend(layer, *qkv, q_weight, k_weight)[0, 0] for layer, qkv in enumerate(layers)]
        outputs.append(torch.stack(attended))
        cache.advance(1)
    return torch.stack(outputs) if outputs else torch.empty(0)


def text_of(length: int, dtype: torch.dtype = torch.float32) -> list:
    return [tuple(torch.randn(2, 1, length, KV_HEADS, HEAD_DIM).to(dtype).unbind(0)) for _ in range(LAYERS)]


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("text_length", [0, 3, 65])
def test_equals_the_growing_cache(grid, window, text_length):
    tokens, heads = grid[0] * grid[1], 2 * KV_HEADS
    inputs = steps(window + 5, tokens, heads)
    weights = torch.rand(HEAD_DIM) + 0.5, torch.rand(HEAD_DIM * KV_HEADS) + 0.5  # per head, across heads
    text = text_of(text_length) if text_length else None
    pool = shuffle(make_pool(pages_needed(tokens, window, text_length)))
    pages = TextPages(pool, text) if text else None
    cache = make_cache(pool, grid, window, pages)
    growing = GrowingCache(LAYERS, rule(window), cache.rope, text)
    assert_near(run(cache, inputs, *weights), run(growing, inputs, *weights), 1e-5)
    assert cache.next_frame == window + 6


def test_half_precision_is_as_good_as_the_growing_cache():
    inputs = steps(8, dtype=torch.bfloat16)
    weight = torch.rand(HEAD_DIM) + 0.5
    cache = make_cache(make_pool(4, torch.bfloat16))
    actual = run(cache, inputs, weight, weight)
    assert actual.dtype == torch.bfloat16
    assert_near(actual, run(GrowingCache(LAYERS, rule(2), cache.rope), inputs, weight, weight), 2e-2)


def test_the_place_of_pages_changes_nothing():
    inputs = steps(7, tokens=70)
    text = text_of(65)
    results = []
    for _ in range(3):
        pool = shuffle(make_pool(30))
        results.append(run(make_cache(pool, GRIDS["70 tokens"], text=TextPages(pool, text)), inputs))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("tokens", "window", "text_length", "pages"),
    [(1, 0, 0, 2), (64, 2, 0, 4), (65, 2, 64, 9), (1196, 30, 512, 8 + 32 * 19)],
)
def test_pages_needed(tokens, window, text_length, pages):
    assert pages_needed(tokens, window, text_length) == pages


@pytest.mark.parametrize("window", [0, 1, 3])
def test_needs_every_declared_page_and_no_more(window):
    tokens = 70
    pool = make_pool(pages_needed(tokens, window))
    cache, fewest = make_cache(pool, GRIDS["70 tokens"], window), pool.pages
    for inputs in steps(window + 4, tokens):
        cache.prepare(1)
        fewest = min(fewest, pool.free)
        run(cache, [inputs])
    assert fewest == 0
    cache.release()
    cache.release()  # a second time does nothing
    assert pool.free == pool.available == pool.pages


def test_too_few_pages_are_refused_at_the_door():
    pool = make_pool(7)
    make_cache(pool)  # reserves 4
    with pytest.raises(PoolExhausted, match="asked for 4 pages, 3 of 7 are available"):
        make_cache(pool)
    with pytest.raises(PoolExhausted):
        TextPages(pool, text_of(200))
    assert pool.available == 3 and pool.free == 6  # the sink of the first has a spare page


def test_a_step_without_pages_can_be_repeated():
    inputs = steps(6)
    expected = run(make_cache(make_pool(4)), inputs)
    pool = make_pool(4)
    cache = make_cache(pool)
    run(cache, inputs[:4])
    stolen = pool.allocate(pool.free)
    with pytest.raises(PoolExhausted):
        cache.attend(0, *inputs[4][0], None, None)
    assert pool.free == 0 and cache.next_frame == 5
    pool.release(stolen)
    assert torch.equal(run(cache, inputs[4:]), expected[4:])


def test_an_interrupted_step_can_be_repeated():
    inputs = steps(6)
    expected = run(make_cache(make_pool(4)), inputs)
    cache = make_cache(make_pool(8))
    for index, layers in enumerate(inputs):
        cache.attend(0, *steps(1)[0][0], None, None)  # then something went wrong
        fork = cache.fork()
        assert torch.equal(run(cache, [layers])[0], expected[index])
        assert torch.equal(run(fork, [layers])[0], expected[index])
        fork.release()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same pool", "another pool"])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 6])
def test_forks_go_on_bit_for_bit(at, elsewhere):
    """Window 2, so frame 1 leaves it after step 3. A fork, its fork and the origin take different ways."""
    inputs, others = steps(at + 6), steps(6)
    text = text_of(5)

    def fresh() -> PagedCache:
        pool = shuffle(make_pool(14))
        return make_cache(pool, text=TextPages(pool, text))

    expected = run(fresh(), inputs)
    expected_other = run(fresh(), inputs[:at] + others)
    origin = fresh()
    run(origin, inputs[:at])
    fork = origin.fork(make_pool(14) if elsewhere else None)
    fork_of_fork = fork.fork()
    assert torch.equal(run(fork, inputs[at : at + 3]), expected[at : at + 3])
    assert torch.equal(run(origin, others), expected_other[at:])
    origin.release()
    assert torch.equal(run(fork_of_fork, others), expected_other[at:])
    fork_of_fork.release()
    assert torch.equal(run(fork, inputs[at + 3 :]), expected[at + 3 :])


def test_forks_share_pages_and_give_them_back():
    pool = make_pool(13)
    text = TextPages(pool, text_of(5))
    origin = make_cache(pool, text=text)
    text.release()
    run(origin, steps(5))
    used = pool.pages - pool.free
    fork = origin.fork()
    assert pool.pages - pool.free == used == 4
    with torch.no_grad():
        run(fork, steps(1))
    assert pool.pages - pool.free == used + 2  # its own frame and its own sink
    origin.release()
    fork.release()
    assert pool.free == pool.available == pool.pages


def test_reserved_forks_never_run_out():
    """Three caches with 3 x 4 reserved pages, all with the same past, then each on its own."""
    pool = make_pool(12)
    caches = [make_cache(pool)]
    run(caches[0], steps(5))
    caches += [caches[0].fork(), caches[0].fork()]
    with pytest.raises(PoolExhausted):
        caches[0].fork()
    for _ in range(4):
        for cache in caches:
            run(cache, steps(1))
    assert pool.available == 0


def test_a_failed_fork_changes_nothing():
    pool, small = make_pool(8), make_pool(4)
    text = TextPages(pool, text_of(5))
    cache = make_cache(pool, text=text)
    run(cache, steps(5))
    free = pool.free
    for target in (None, small):
        with pytest.raises(PoolExhausted):
            cache.fork(target)
    assert pool.free == free and small.free == small.available == 4


def test_text_is_written_once_for_several_caches():
    pool, text = make_pool(12), text_of(5)
    pages = TextPages(pool, text)
    caches = [make_cache(pool, text=pages), make_cache(pool, text=pages)]
    pages.release()
    assert pool.free == 9  # one for the text, one spare page for the sink of either cache
    inputs = steps(3)
    expected = run(GrowingCache(LAYERS, rule(2), caches[0].rope, text), inputs)
    for cache in caches:
        assert_near(run(cache, inputs), expected, 1e-5)
        cache.release()
    assert pool.free == pool.available == 12
    with pytest.raises(ValueError, match="text: expected pages that are held"):
        pages.release()


def wrong_use(case: str) -> None:
    pool = make_pool(8)
    cache = make_cache(pool)
    q, k, v = steps(1)[0][0]
    if case == "layer":
        cache.attend(LAYERS, q, k, v, None, None)
    elif case == "two frames":
        cache.attend(0, *(torch.cat([x, x], 1) for x in (q, k, v)), None, None)
    elif case == "batch":
        cache.attend(0, *(torch.cat([x, x]) for x in (q, k, v)), None, None)
    elif case == "dtype":
        cache.attend(0, q, k.half(), v, None, None)
    elif case == "window":
        make_cache(pool, window=-1)
    elif case == "tokens":
        CacheRow(pool, rule(2), cache.rope, 0)
    elif case == "text of another pool":
        make_cache(pool, text=TextPages(make_pool(1), text_of(5)))
    elif case == "text layers":
        TextPages(pool, text_of(5)[:1])
    elif case == "text heads":
        TextPages(pool, [(k[:, :, :1], v) for k, v in text_of(5)])
    elif case == "empty text":
        TextPages(pool, text_of(0))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("layer", "^layer: expected 0..1"),
        ("two frames", r"^frames: expected 1..1, a block, got 2"),
        ("batch", r"^q: expected shape \[1, n, 4, H, D\]"),
        ("dtype", "^k: expected torch.float32"),
        ("window", "^window: expected at least 0"),
        ("tokens", "^tokens: expected at least 1"),
        ("text of another pool", "^text: expected pages of the cache's pool"),
        ("text layers", "^keys_values: expected 2 entries"),
        ("text heads", r"^keys: expected shape \[1, 5, 2, 8\]"),
        ("empty text", "^keys_values: expected at least 1 token"),
    ],
)
def test_wrong_use(case, message):
    with pytest.raises(ValueError, match=message):
        wrong_use(case)


def test_advance_and_release_guard_the_order_of_calls():
    cache = make_cache(make_pool(4))
    with pytest.raises(RuntimeError, match="advance"):
        cache.advance(1)
    cache.attend(0, *steps(1)[0][0], None, None)
    with pytest.raises(RuntimeError, match="got 1 after 1"):
        cache.advance(1)
    cache.release()
    with pytest.raises(RuntimeError, match="released"):
        cache.prepare(1)
    with pytest.raises(RuntimeError, match="released"):
        cache.fork()


def test_inputs_that_require_gradients_are_refused():
    q, k, v = steps(1)[0][0]
    with pytest.raises(RuntimeError, match="no backward"):
        make_cache(make_pool(4)).attend(0, q.requires_grad_(), k, v, None, None)
