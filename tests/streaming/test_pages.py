# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast import limits
from aapt_fast.errors import PoolExhausted
from aapt_fast.limits import in_units
from aapt_fast.streaming.pages import PagePool, pages_for, pool_bytes


def pool(pages: int = 6) -> PagePool:
    return PagePool(layers=2, pages=pages, heads=3, head_dim=4)


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2), (1196, 19)])
def test_pages_for(tokens, pages):
    assert pages_for(tokens) == pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_known_before_allocation(dtype):
    made = PagePool(2, 5, 3, 4, dtype)
    assert made.k.shape == made.v.shape == (2, 5, 64, 3, 4) and made.k.dtype == dtype
    assert made.bytes == pool_bytes(2, 5, 3, 4, dtype) == 2 * 2 * 5 * 64 * 3 * 4 * dtype.itemsize


def test_layers_are_views_of_the_pages():
    made = pool()
    keys, values = made.by_layer[1]
    keys[3], values[4] = 1.0, 2.0
    assert made.k[1, 3].eq(1).all() and made.v[1, 4].eq(2).all() and made.k[0].eq(0).all()


def test_allocation_is_all_or_nothing():
    made = pool(pages=6)
    first = made.allocate(4)
    with pytest.raises(PoolExhausted, match="asked for 3 pages, 2 of 6 are free"):
        made.allocate(3)
    assert made.free == 2
    second = made.allocate(2)
    assert sorted(first + second) == list(range(6)) and made.free == 0
    assert made.allocate(0) == []


def test_a_page_is_free_when_its_last_holder_releases_it():
    made = pool()
    ids = made.allocate(2)
    assert not made.is_shared(ids[0])
    made.share(ids)
    assert made.is_shared(ids[0])
    made.release(ids)
    assert made.free == 4 and not made.is_shared(ids[0])
    made.release(ids)
    assert made.free == 6


@pytest.mark.parametrize("wrong", ["released before", "released too often at once", "never held", "outside the pool"])
def test_a_wrong_release_changes_nothing(wrong):
    made = pool()
    ids = made.allocate(3)
    held = ids[:2]
    if wrong == "released before":
        made.release(ids[2:])
    bad = {"released before": ids[2], "released too often at once": ids[0], "never held": 5, "outside the pool": 6}
    free = made.free
    with pytest.raises(ValueError, match="ids: expected pages"):
        made.release([*held, bad[wrong]])
    assert made.free == free
    made.release(held)


def test_free_pages_cannot_be_shared():
    made = pool()
    held = made.allocate(1)
    with pytest.raises(ValueError, match="ids: expected pages that are held"):
        made.share([*held, 5])
    assert not made.is_shared(held[0])


def test_reservations_are_promises():
    made = pool(pages=6)
    made.reserve(4)
    assert made.available == 2 and made.free == 6
    with pytest.raises(PoolExhausted, match="asked for 3 pages, 2 of 6 are available"):
        made.reserve(3)
    made.reserve(2)
    made.unreserve(6)
    assert made.available == 6
    with pytest.raises(ValueError, match="count"):
        made.unreserve(1)


def test_pages_taken_without_a_reservation_are_not_promised():
    made = pool(pages=6)
    made.allocate(5)
    assert made.available == 1
    with pytest.raises(PoolExhausted):
        made.reserve(2)


def test_copies_cover_all_layers_keys_and_values():
    source, target = pool(), pool(pages=3)
    source.k.normal_()
    source.v.normal_()
    target.copy_pages([2, 0], source, [1, 5])
    assert torch.equal(target.k[:, [2, 0]], source.k[:, [1, 5]])
    assert torch.equal(target.v[:, [2, 0]], source.v[:, [1, 5]])
    assert target.k[:, 1].eq(0).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 1, 1, 1), "layers"),
        ((1, 0, 1, 1), "pages"),
        ((1, 1, 0, 1), "heads"),
        ((1, 1, 1, 0), "head_dim"),
        ((1, 1, 1, 1, torch.float64), "dtype"),
    ],
)
def test_bad_sizes(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        PagePool(*arguments)


@pytest.mark.parametrize("pages", [2.0, "2", None])
def test_sizes_that_are_no_numbers(pages):
    with pytest.raises(TypeError, match=f"^pages: expected int, got {type(pages).__name__}"):
        PagePool(1, pages, 1, 1)


def test_a_gpu_without_room_is_found_out_before_anything_is_allocated(monkeypatch):
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: gib)
    monkeypatch.setattr(
        torch, "zeros", lambda *shape, **options: torch.empty(*shape, dtype=options["dtype"], device="meta")
    )
    fitting = 4 * gib // pool_bytes(32, 1, 24, 128, torch.bfloat16)
    assert PagePool(32, fitting, 24, 128, torch.bfloat16, "cuda").pages == fitting
    expected = (
        rf"^pages: expected a number whose pages fit into the 4\.29 GB of memory left on cuda, got {fitting + 1}, "
        r"whose pages need 4\.30 GB$"
    )
    with pytest.raises(PoolExhausted, match=expected):
        PagePool(32, fitting + 1, 24, 128, torch.bfloat16, "cuda")


@pytest.mark.parametrize("argument", ["pages", "sessions"])
def test_a_cpu_without_room_is_found_out_before_anything_is_allocated(pose_model, monkeypatch, argument):
    """The number that fits exactly is taken, one more is not, nor one that is beyond any memory."""
    make = {"pages": PagePool.for_model, "sessions": PagePool.for_sessions}[argument]
    least = make(pose_model, 1).bytes
    monkeypatch.setattr(limits, "available_memory", lambda: 5 * least)
    assert make(pose_model, 5).bytes == 5 * least
    expected = f"{argument}: expected a number whose pages fit into the {in_units(5 * least)} of memory left on cpu, "
    for count in (6, 10**30):
        with pytest.raises(PoolExhausted) as caught:
            make(pose_model, count)
        assert str(caught.value) == f"{expected}got {count}, whose pages need {in_units(count * least)}"
