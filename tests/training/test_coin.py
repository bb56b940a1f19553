# SPDX-License-Identifier: Apache-2.0
"""The coin world and its measures, on generators whose right answer is known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aapt_fast.training import coin
from aapt_fast.training.coin import MOVES, SIDE, CoinClips, coin_model, draw_start, score

CLIPS = CoinClips()


def position_of(frame: Tensor) -> Tensor:
    """Row and column [B, 2] of the blob in frames [B, C, 1, h, w]."""
    place = frame.square().sum((1, 2)).flatten(1).argmax(1)
    return torch.stack([place // SIDE, place % SIDE], dim=1)


def colour_of(frame: Tensor) -> Tensor:
    """Colour [B, C] of the blob."""
    at = position_of(frame)
    peak = frame[torch.arange(len(frame)), :, 0, at[:, 0], at[:, 1]]
    return peak / peak.norm(dim=1, keepdim=True)


class Known(torch.nn.Module):
    """A generator in the place of AAPT's whose next frame is a function of noise and recycled frame."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer, self.config = answer, coin_model()

    def new_cache(self, height: int, width: int) -> None:
        return None

    def forward(self, noised: Tensor, recycled: Tensor, control: Tensor, t: Tensor, cache: None) -> Tensor:
        return self.answer(noised, recycled)


def choose(noise: Tensor, recycled: Tensor) -> Tensor:
    which = (noise.flatten(1)[:, 0:4]).argmax(1)
    return CLIPS.blob(position_of(recycled) + MOVES[which], colour_of(recycled))[:, :, None]


def always_left(noise: Tensor, recycled: Tensor) -> Tensor:
    return CLIPS.blob(position_of(recycled) + MOVES[1], colour_of(recycled))[:, :, None]


def average(noise: Tensor, recycled: Tensor) -> Tensor:
    futures = CLIPS.blob(position_of(recycled)[:, None] + MOVES, colour_of(recycled)[:, None].expand(-1, 4, -1))
    return futures.mean(1)[:, :, None]


def test_a_generator_that_chooses_hits_all_four_futures_and_stays_a_blob() -> None:
    result = score(Known(choose), CLIPS)
    assert result.hit == 1 and result.near < 1e-3 and result.least > 0.15
    assert max(result.off_blob.values()) < 1e-3 and min(result.blobs.values()) == 1


def test_a_generator_that_always_takes_one_future_is_seen_by_the_split() -> None:
    result = score(Known(always_left), CLIPS)
    assert result.hit == 1 and result.split == (0, 1, 0, 0) and result.least == 0


def test_a_generator_that_averages_never_hits() -> None:
    result = score(Known(average), CLIPS)
    assert result.hit == 0 and result.blobs[1] == 0 and result.least == 0
    assert result.near == pytest.approx(0.87, abs=0.02)  # three quarters of the blob are missing, three are elsewhere


def test_a_still_picture_is_a_blob_but_no_future() -> None:
    result = score(Known(lambda noise, recycled: recycled), CLIPS)
    assert result.hit == 0 and result.near > 1 and result.off_blob[24] < 1e-3


def test_scores_are_repeatable_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = score(Known(choose), CLIPS, rows=16)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == score(Known(choose), CLIPS, rows=16)


def test_clips_jump_by_one_of_four_moves_around_the_torus() -> None:
    torch.manual_seed(0)
    batch = CLIPS.sample(64, 6)
    assert batch.clean.shape == batch.recycled.shape == (64, 4, 6, SIDE, SIDE)
    assert torch.equal(batch.clean[:, :, :-1], batch.recycled[:, :, 1:])
    steps = [position_of(batch.clean[:, :, k : k + 1]) - position_of(batch.recycled[:, :, k : k + 1]) for k in range(6)]
    moves = (torch.cat(steps) + SIDE // 2) % SIDE - SIDE // 2
    counts = (moves[:, None] == MOVES).all(2).sum(0)
    assert counts.sum() == 64 * 6 and counts.min() > 60


def test_a_blob_keeps_its_norm_and_colour_across_the_edge() -> None:
    _, colour = draw_start(8)
    inside, across = (CLIPS.blob(torch.full((8, 2), place), colour) for place in (3, 0))
    assert torch.allclose(inside.flatten(1).norm(dim=1), across.flatten(1).norm(dim=1))
    assert torch.allclose(across.roll((3, 3), (2, 3)), inside)
    assert torch.allclose(colour_of(across[:, :, None]), colour, atol=1e-6)


def test_chained_clips_are_as_long_as_all_of_them() -> None:
    assert CLIPS.chain(2, 3).clean.shape[2] == 3 * CLIPS.frames


def test_spans_shorter_than_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match="clip_frames: expected at least 7"):
        CLIPS.require_frames(4, 7)
    assert coin.coin_model(window=2).window == 2
