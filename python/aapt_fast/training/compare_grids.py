# SPDX-License-Identifier: Apache-2.0
"""Compare learned grids with fixed ones on the coin world, where the right answer is known.

    python -m aapt_fast.training.compare_grids --out runs/grids

Stage 1 of the coin recipe is trained first, about twelve minutes of one core. Fixed grids are uniform levels warped by
several shifts, and quadratic ones. What is there in the folder is not made again; the table is OUT/table.md.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from aapt_fast.models.aapt.config import TimeGrid
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import timesteps
from aapt_fast.progress import progress, say
from aapt_fast.training.ablate import DIFFUSION, FRAMES, WEIGHTS
from aapt_fast.training.coin import CoinClips, CoinScore, score
from aapt_fast.training.diffusion import train_diffusion
from aapt_fast.training.discretize import GridConfig, learn_grid
from aapt_fast.training.files import write_text

EVALUATIONS = (2, 4, 8)
SHIFTS = (1.0, 1.5, 2.0, 3.0, 5.0)
LEARNED = "learned"


def fixed_grids(evaluations: int) -> dict[str, TimeGrid]:
    """Grids of so many evaluations that nobody has learned, by name."""
    grids = {f"shift {shift:g}": _told(timesteps(evaluations, shift)) for shift in SHIFTS}
    grids["uniform"] = grids.pop("shift 1")
    grids["quadratic"] = _told(timesteps(evaluations, 1.0).square())
    return grids


def _told(levels: torch.Tensor) -> TimeGrid:
    """The grid of levels [n + 1] that the network is told as they are."""
    return TimeGrid(tuple(levels.tolist()), tuple(levels[:-1].tolist()))


def with_grid(generator: Generator, grid: TimeGrid) -> Generator:
    """The same network, weights shared, that samples with `grid`."""
    other = copy.copy(generator)
    other.config = dataclasses.replace(generator.config, grids=(grid,))
    return other


class Comparison:
    """The scores of all grids of one stage 1, and the grids that were learned, in the folder `out`."""

    def __init__(self, generator: Generator, clips: CoinClips, out: Path, streams: int) -> None:
        self._generator, self._clips, self._out, self._streams = generator, clips, out, streams

    def learned(self, evaluations: int, seed: int) -> TimeGrid:
        """The grid that is learned with a seed, once."""
        path = self._out / f"grid-{evaluations}-{seed}.json"
        if not path.exists():
            config = GridConfig(evaluations=evaluations, seed=seed)
            with progress(config.steps, f"{evaluations} evaluations, seed {seed}", "step") as bar:
                grid = learn_grid(self._generator, self._clips, WEIGHTS, config, lambda *_: bar.update())
            write_text(path, json.dumps(dataclasses.asdict(grid)))
        data = json.loads(path.read_text())
        return TimeGrid(tuple(data["solver"]), tuple(data["network"]))

    def score(self, name: str, grid: TimeGrid) -> CoinScore:
        """The score with a grid, measured once."""
        path = self._out / f"score-{grid.evaluations}-{name.replace(' ', '-')}.json"
        if not path.exists():
            result = score(with_grid(self._generator, grid), self._clips, grid.evaluations, self._streams)
            write_text(path, json.dumps(dataclasses.asdict(result)))
        return CoinScore.from_json(json.loads(path.read_text()))


def compare(generator: Generator, clips: CoinClips, out: Path, seeds: int, streams: int) -> str:
    """Markdown of the comparison: for every number of evaluations the fixed grids and those learned with each seed."""
    comparison = Comparison(generator, clips, out, streams)
    lines = [
        "| evaluations | grid | levels | hits | off a future | off a blob after 8 | 24 steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for evaluations in EVALUATIONS:
        grids = fixed_grids(evaluations)
        grids |= {f"{LEARNED} {seed}": comparison.learned(evaluations, seed) for seed in range(seeds)}
        for name, grid in grids.items():
            found = comparison.score(name, grid)
            levels = " ".join(f"{level:.2f}".removeprefix("0") for level in grid.solver[1:-1])
            off = [f"{value:.3f}" for value in (found.near, found.off_blob[8], found.off_blob[24])]
            lines.append(f"| {evaluations} | {name} | {levels} | {found.hit:.1%} | {' | '.join(off)} |")
            write_text(out / "table.md", "\n".join(lines) + "\n")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Train stage 1 and compare grids on it."""
    parser = argparse.ArgumentParser(prog="python -m aapt_fast.training.compare_grids", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs/grids"), help="folder (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="learned grids of each kind (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=512, help="rollouts of each score (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for name in ("seeds", "streams"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    clips = CoinClips(frames=FRAMES)
    generator = train_diffusion(arguments.out / "diffusion", DIFFUSION, clips, WEIGHTS, lambda _: {})
    generator.eval().requires_grad_(False)
    compare(generator, clips, arguments.out, arguments.seeds, arguments.streams)
    say(f"compared: {arguments.out / 'table.md'}")


if __name__ == "__main__":
    main()
