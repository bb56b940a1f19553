# SPDX-License-Identifier: Apache-2.0
"""Settings of the three stages, compared on the coin world, where the right answer is known.

    python -m aapt_fast.training.ablate                       # every row with three seeds, in runs/coin
    python -m aapt_fast.training.ablate recipe --seeds 1      # one row, one seed (make train-coin)

A row is one way through the stages. Rows whose settings of a stage agree share its run. Everything resumes where it was
stopped, and the table OUT/table.md is written anew after each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.progress import say
from aapt_fast.training.adversarial import AdversarialConfig, train_adversarial
from aapt_fast.training.coin import CHANNELS, CoinClips, CoinScore, coin_model, score
from aapt_fast.training.consistency import ConsistencyConfig, train_consistency
from aapt_fast.training.diffusion import DiffusionConfig, train_diffusion
from aapt_fast.training.files import fingerprint, load_finite, load_module, save_finite, write_text

MODEL = coin_model()
FRAMES = 4  # of a clip: window and sink, and one more
STEPS = (1, 8, 24, 240)  # of the rollouts that a finished stage is measured by
WEIGHTS = torch.ones(CHANNELS)

DIFFUSION = DiffusionConfig(
    model=MODEL,
    steps=2500,
    batch=24,
    clip_frames=FRAMES,
    share_at_one=0.1,
    recycled_noise=0.2,
    compile=False,  # the compiler takes longer than it saves
)
CONSISTENCY = ConsistencyConfig(
    model=MODEL,
    steps=800,
    batch=16,
    clip_frames=FRAMES,
    levels=8,
    recycled_noise=0.2,
    matrix_rate=0.01,
    rate=1e-3,
)
REFINED = AdversarialConfig(
    model=MODEL,
    steps=1500,
    batch=32,
    segment_frames=1,
    segments=10,
    overlap=0,
    reconstruction=0.0,
    refinement=1.0,
    matrix_rate=0.005,
    rate=5e-4,
    average_decay=0.99,
)
STUDENT_FORCED = AdversarialConfig(
    model=MODEL, steps=400, batch=16, segment_frames=FRAMES, segments=2, matrix_rate=0.003, rate=2e-4
)
NOISED = AdversarialConfig(
    model=MODEL,
    steps=800,
    batch=48,
    segment_frames=1,
    segments=1,
    overlap=1,
    reconstruction=0.0,
    adversarial=1.0,
    penalty=1.0,
    noised=True,
    discriminator_shift=0.5,
    discriminator_alone=40,
    discriminator_rate=5e-4,
    optimiser="adam",
    rate=1e-4,
    average_decay=0.99,
)


@dataclass(frozen=True)
class Row:
    """Settings of the stages; None leaves a stage out."""

    diffusion: DiffusionConfig = DIFFUSION
    consistency: ConsistencyConfig | None = CONSISTENCY
    adversarial: AdversarialConfig | None = None


ROWS = {
    "recipe": Row(adversarial=REFINED),
    "shift 24, half of the clips at t = 1": Row(
        dataclasses.replace(DIFFUSION, model=coin_model(shift=24.0), share_at_one=0.5),
        dataclasses.replace(CONSISTENCY, model=coin_model(shift=24.0)),
    ),
    "32 levels": Row(consistency=dataclasses.replace(CONSISTENCY, levels=32)),
    "rates of the person recipe": Row(consistency=dataclasses.replace(CONSISTENCY, matrix_rate=3e-4, rate=3e-5)),
    "clean recycled frames": Row(
        dataclasses.replace(DIFFUSION, recycled_noise=0.0), dataclasses.replace(CONSISTENCY, recycled_noise=0.0)
    ),
    "student-forced regression": Row(adversarial=STUDENT_FORCED),
    "stage 3 as published": Row(
        adversarial=dataclasses.replace(STUDENT_FORCED, reconstruction=0.0, adversarial=1.0, penalty=1000.0)
    ),
    "stage 3 on noised frames": Row(adversarial=NOISED),
    "stage 3 on noised frames, rollouts grow to 6 steps": Row(
        adversarial=dataclasses.replace(NOISED, batch=16, segments=6)
    ),
}
"""Rows to compare, by name; a name says how a row differs from the recipe."""


def run_row(row: Row, seed: int, out: Path, streams: int = 256) -> dict[str, CoinScore]:
    """Train the stages of a row that are not there yet; the scores by stage and number of evaluations.

    A stage is measured once, by `streams` rollouts.
    """
    clips, model = CoinClips(frames=FRAMES), row.diffusion.model
    scores: dict[str, CoinScore] = {}

    def stage(name: str, configs: Sequence[Any], train: Callable[[Path, Any], Generator], *nfe: int) -> Generator:
        """The finished stage `name`, which `configs`, its own last, determine; scored with `nfe` evaluations."""
        config = dataclasses.replace(configs[-1], seed=seed)
        settings = [dataclasses.asdict(each) for each in (*configs[:-1], config)]
        folder = out / f"{name}-{fingerprint(settings)[:12]}"
        generator = _finished(folder, model) or _keep(folder, train(folder, config))
        for count in nfe:
            scores[f"{name}, {count} evaluation{'s' if count > 1 else ''}"] = _score(
                folder, generator, clips, count, streams
            )
        return generator

    def watch(generator: Generator) -> dict[str, float]:
        result = score(generator, clips, rows=64, steps=(1, 8))
        return {"hit": result.hit, "off_blob_8": result.off_blob[8]}

    teacher = stage("diffusion", [row.diffusion], lambda to, c: train_diffusion(to, c, clips, WEIGHTS, watch), 1, 4, 8)
    student = teacher
    before: list[Any] = [row.diffusion]
    if row.consistency is not None:
        before.append(row.consistency)
        student = stage(
            "consistency", before, lambda to, c: train_consistency(to, c, teacher, clips, WEIGHTS, watch), 1
        )
    if row.adversarial is not None:
        before.append(row.adversarial)
        stage(
            "adversarial",
            before,
            lambda to, c: train_adversarial(to, c, student, teacher, clips, WEIGHTS, watch),
            1,
        )
    return scores


def _finished(folder: Path, model: GeneratorConfig) -> Generator | None:
    """The generator of a finished stage."""
    path = folder / "result.pt"
    if not path.exists():
        return None
    generator = Generator(model)
    load_module(generator, load_finite(path), path)
    return generator.eval()


def _keep(folder: Path, generator: Generator) -> Generator:
    """Finish a stage: the generator, once its weights are on disk."""
    save_finite(folder / "result.pt", generator.state_dict())
    return generator.eval()


def _score(folder: Path, generator: Generator, clips: CoinClips, nfe: int, streams: int) -> CoinScore:
    """The score of a finished stage, measured once."""
    path = folder / f"score-{nfe}.json"
    if path.exists():
        return CoinScore.from_json(json.loads(path.read_text()))
    result = score(generator, clips, nfe, streams, STEPS if nfe == 1 else STEPS[:3])
    write_text(path, json.dumps(dataclasses.asdict(result)))
    return result


def table(scores: dict[str, list[dict[str, CoinScore]]]) -> str:
    """Markdown of all rows, one line per stage; `scores` holds by row, and by seed, what `run_row` returned."""
    lines = [
        "| row | stage | seeds | hits | least of the four | off a blob after 1 | 8 | 24 | 240 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in scores.items():
        for stage in seeds[0]:
            of_stage = [each[stage] for each in seeds]
            distances = [_spread([each.off_blob[step] for each in of_stage if step in each.off_blob]) for step in STEPS]
            hits, least = _spread([each.hit for each in of_stage]), _spread([each.least for each in of_stage])
            lines.append(f"| {name} | {stage} | {len(seeds)} | {hits} | {least} | {' | '.join(distances)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    """Smallest and largest of some values, such as .69 to .73."""
    if not values:
        return ""
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def main(argv: Sequence[str] | None = None) -> None:
    """Train and compare the rows that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m aapt_fast.training.ablate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all by default; of: {'; '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of each row (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/coin"), help="folder (default: %(default)s)")
    arguments = parser.parse_args(argv)
    names = arguments.rows or list(ROWS)
    for name in names:
        if name not in ROWS:
            parser.error(f"ROW: expected {'; '.join(ROWS)}, got {name}")
    if arguments.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {arguments.seeds}")
    scores: dict[str, list[dict[str, CoinScore]]] = {}
    for seed in range(arguments.seeds):
        for name in names:
            scores.setdefault(name, []).append(run_row(ROWS[name], seed, arguments.out))
            write_text(arguments.out / "table.md", table(scores))
            say(f"{name}, seed {seed}: {arguments.out / 'table.md'}")
    print(table(scores), end="")


if __name__ == "__main__":
    main()
