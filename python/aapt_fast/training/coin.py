# SPDX-License-Identifier: Apache-2.0
"""Coin: a world whose right answer is known, small enough that all three stages of AAPT train on it in minutes.

A blob of random colour lies on a torus of 8 x 8 latent pixels. At every step it jumps two pixels left, right, up or
down, each with probability 1/4; there is neither codec nor control. A generator that averages over the futures smears
the blob over four places; one that chooses draws one blob, at any of the four places equally often. Both can be
measured without any doubt, which no world of pictures allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import ControlConfig, GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.training.clips import Batch
from aapt_fast.training.rollout import rollout

SIDE, CHANNELS, JUMP = 8, 4, 2
BLOB_WIDTH = 1.2  # variance of the Gaussian, in square pixels
MOVES = torch.tensor([[0, JUMP], [0, -JUMP], [JUMP, 0], [-JUMP, 0]])  # rows, columns
NEAR = 0.5  # a frame hits a blob if it is nearer to it than this, as a share of the blob's norm


def coin_model(**changes: object) -> GeneratorConfig:
    """The generator of the coin world: 16 tokens per frame; `changes` replace its fields."""
    fields = dict(
        width=96,
        heads=3,
        layers=4,
        grid=(SIDE, SIDE),
        window=2,
        latent_channels=CHANNELS,
        control=ControlConfig(kind="maps", channels=1, entries=1),
        prediction="frame",
        rope_theta=30.0,
        shift=2.0,
    )
    return GeneratorConfig(**(fields | changes))  # type: ignore[arg-type]


class CoinClips:
    """Endless clips of the coin world, made when they are drawn.

    Args:
        amplitude: height of the blob. 3 gives latents of standard deviation .33.
        frames: of one clip; `chain` joins several.
    """

    def __init__(self, amplitude: float = 3.0, frames: int = 4) -> None:
        self.amplitude, self.frames = amplitude, frames

    def require_frames(self, frames: int, least: int = 1) -> None:
        """Raise ValueError unless spans of `frames` frames are at least `least` long; there is no upper bound."""
        require(frames >= least, "clip_frames", f"at least {least} (window and sink)", frames)

    def blob(self, position: Tensor, colour: Tensor) -> Tensor:
        """Frames [..., C, h, w] with a blob at `position` [..., 2] (row, column) in `colour` [..., C] of norm 1."""
        axis = torch.arange(SIDE).float()
        away = (axis - position[..., None].float() + SIDE / 2) % SIDE - SIDE / 2  # [..., 2, side], around the torus
        profile = torch.exp(-away.square() / BLOB_WIDTH)
        shape = profile[..., 0, :, None] * profile[..., 1, None, :]
        return self.amplitude * colour[..., :, None, None] * shape[..., None, :, :]

    def sample(self, rows: int, frames: int, share_at_start: float = 0.0) -> Batch:
        """A batch of new clips [rows, C, frames, h, w]; all begin alike, so `share_at_start` changes nothing."""
        position, colour = draw_start(rows)
        moves = MOVES[torch.randint(4, (rows, frames))].cumsum(1)
        path = torch.cat([position[:, None], position[:, None] + moves], dim=1)
        video = self.blob(path, colour[:, None].expand(-1, frames + 1, -1)).transpose(1, 2)
        return Batch(video[:, :, 1:], video[:, :, :-1], torch.zeros(rows, 1, frames, SIDE, SIDE))

    def chain(self, rows: int, clips: int) -> Batch:
        """A batch of clips as long as `clips` of them."""
        return self.sample(rows, clips * self.frames)


def draw_start(rows: int) -> tuple[Tensor, Tensor]:
    """Random positions [rows, 2] and colours [rows, C] of norm 1."""
    colour = torch.randn(rows, CHANNELS)
    return torch.randint(SIDE, (rows, 2)), colour / colour.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class CoinScore:
    """Measures of a generator on the coin world; distances are shares of the norm of a blob."""

    hit: float  # share of steps that draw one of the four futures
    near: float  # mean distance to the nearest future
    split: tuple[float, ...]  # shares of the four futures among the hits
    off_blob: dict[int, float]  # mean distance to the nearest blob at any place, by step of the model's own rollout
    blobs: dict[int, float]  # share of streams whose frame hits a blob at any place, by step

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CoinScore:
        """The score that `dataclasses.asdict` and JSON made `data` of."""
        by_step = {name: {int(step): value for step, value in data[name].items()} for name in ("off_blob", "blobs")}
        return cls(**{**data, "split": tuple(data["split"]), **by_step})

    @property
    def least(self) -> float:
        """Share of the future that is drawn least often: .25 is even."""
        return min(self.split)


@torch.no_grad()
def score(
    generator: Generator, clips: CoinClips, nfe: int = 1, rows: int = 256, steps: tuple[int, ...] = (1, 8, 24)
) -> CoinScore:
    """Rollouts of `rows` streams from true first frames with `nfe` evaluations per step, compared with the truth."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(123)
    position, colour = draw_start(rows)
    torch.random.set_rng_state(generator_state)
    image = clips.blob(position, colour)[:, :, None]
    frames = rollout(generator, image, torch.zeros(rows, 1, max(steps), SIDE, SIDE), torch.arange(rows), nfe)
    norm = image.flatten(1).norm(dim=1)

    def distance(step: int, places: Tensor) -> Tensor:
        """Distances [rows, K] of the frames of a step to blobs of the right colour at places [rows, K, 2]."""
        blobs = clips.blob(places, colour[:, None].expand(-1, places.shape[1], -1))
        return (frames[:, None, :, step - 1] - blobs).flatten(2).norm(dim=2) / norm[:, None]

    futures = distance(1, position[:, None] + MOVES)
    nearest, which = futures.min(1)
    hits = which[nearest < NEAR]
    split = torch.bincount(hits, minlength=4) / max(1, len(hits))
    everywhere = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).expand(rows, -1, -1)
    off = {step: distance(step, everywhere).min(1).values for step in steps}
    return CoinScore(
        hit=len(hits) / rows,
        near=float(nearest.mean()),
        split=tuple(split.tolist()),
        off_blob={step: float(value.mean()) for step, value in off.items()},
        blobs={step: float((value < NEAR).float().mean()) for step, value in off.items()},
    )
