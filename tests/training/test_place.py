# SPDX-License-Identifier: Apache-2.0
"""Shares of a batch, on ranks that are threads."""

import math
from dataclasses import dataclass

import pytest
import torch

from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.thread_ranks import on_ranks
from aapt_fast.training.place import ALONE, UNSHARED, Place
from aapt_fast.training.run import TrainingRun

CPU = torch.device("cpu")
BATCH = torch.arange(35.0).reshape(5, 7) ** 1.5


@dataclass(frozen=True)
class Settings:
    steps: int = 1


def on_places(ranks, work, context=1):
    """What `work` gives for the share of each rank in a batch of five."""
    return on_ranks(ranks, lambda t: work(Place(CPU, t, context=context, sharded=False).share(len(BATCH))))


@pytest.mark.parametrize(("ranks", "context"), [(2, 1), (3, 1), (5, 1), (4, 2)])
def test_shares_are_the_batch_and_their_means_and_norms_those_of_one_process(ranks, context):
    def work(share):
        own = share.own(BATCH).requires_grad_()
        (pull,) = torch.autograd.grad(own.square().mean(), own)
        return own.detach(), share.mean(own.mean(1).mean()), share.norm(pull), share.weight, share.batch(own)

    rows, means, norms, weights, batches = zip(*on_places(ranks, work, context), strict=True)
    assert torch.equal(torch.cat(rows[::context]), BATCH)
    assert all(torch.equal(rows[rank], rows[rank - rank % context]) for rank in range(ranks))
    whole = BATCH.clone().requires_grad_()
    (pull,) = torch.autograd.grad(whole.square().mean(), whole)
    for mean, norm in zip(means, norms, strict=True):
        assert_near(mean, BATCH.mean(), 1e-6)
        assert_near(norm, pull.norm(), 1e-6)
    assert math.isclose(sum(weights) / ranks, 1) and set(batches) == {5}


def test_noise_is_drawn_for_the_whole_batch():
    def work(share):
        drawn = torch.Generator().manual_seed(5)  # threads share torch's own
        whole = torch.randn(5, 2, generator=drawn)
        return share.own(whole)

    first, second = on_places(2, work)
    assert torch.equal(torch.cat([first, second]), torch.randn(5, 2, generator=torch.Generator().manual_seed(5)))
    torch.manual_seed(1)
    rows = Place(CPU, FirstOfTwo(), sharded=False).share(5).randn_like(torch.zeros(2, 3))
    torch.manual_seed(1)
    assert torch.equal(rows, torch.randn(5, 3)[:2])


class FirstOfTwo:
    """What a place asks of its transport when nothing is exchanged."""

    rank, size = 0, 2


def test_a_process_alone_has_all_rows_of_any_batch():
    assert UNSHARED.own(BATCH) is BATCH and UNSHARED.batch(BATCH) == 5 and UNSHARED.weight == 1
    assert ALONE.anywhere(True) and not ALONE.anywhere(False) and ALONE.first_says(3) == 3


def test_more_ranks_than_rows_and_contexts_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="batch: expected at least one row for each of 6 ranks, got 5"):
        on_places(6, lambda share: share)
    assert len(on_places(6, lambda share: share, context=2)) == 6
    with pytest.raises(ValueError, match="context: expected a number that divides 4 ranks, got 3"):
        on_places(4, lambda share: share, context=3)


def test_what_one_rank_notices_stops_all_of_them():
    def work(share):
        place = share.place
        return place.anywhere(place.rank == 2), place.anywhere(False), place.first_says(place.rank)

    assert on_places(3, work) == [(True, False, 0)] * 3


def test_the_first_rank_works_before_the_others_do():
    done = []

    def work(share):
        share.place.in_turn(lambda: done.append(share.place.rank))

    on_places(3, work)
    assert done[0] == 0 and sorted(done) == [0, 1, 2]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_of_them(tmp_path):
    def work(share):
        run = TrainingRun(tmp_path, Settings(), {}, share=share)
        run.track(loss=torch.tensor(float(share.place.rank)))
        kept = dict(run._averages)
        with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
            run.track(loss=torch.tensor(math.nan if share.place.rank else 1.0))
        run.log(score=1.0)
        return kept["loss"]

    assert on_places(2, work) == pytest.approx([3 / 5] * 2)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2  # names, and one row
