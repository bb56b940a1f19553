# SPDX-License-Identifier: Apache-2.0
"""The options of `aapt-fast bench`, and those that change a preset."""

from __future__ import annotations

import argparse

from aapt_fast.cli.choices import DTYPES
from aapt_fast.cli.option_types import file_path, integer, number
from aapt_fast.cli.rank_options import SCHEMES
from aapt_fast.models.files.bundled import PRESETS


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Measure this machine, predict what it cannot run, and compare two documents of measurements.

    aapt-fast bench all --json machine.json
    aapt-fast bench compare one-machine.json another-machine.json
    aapt-fast bench frame --preset aapt-8b --resolution 736x416 --target 0.16 --json frame.json
    aapt-fast bench frame --resolution 1280x720 --window 15 --gpus 8 --target 0.17
    aapt-fast bench scaling

Exit status of frame: 0 the target is met, 1 it is missed, 2 this machine cannot run it, and the document holds a
prediction instead. Of all: 0 every part has met it, 1 one has missed it, 2 one cannot run here. A mistake in the
arguments is 2 as well, with one line on stderr and no document."""
    questions = parser.add_subparsers(dest="question", required=True, metavar="all | frame | scaling | compare")
    _add_all(
        questions.add_parser("all", help="frames, decoders and a prediction for 1 to 8 GPUs: one document, one table")
    )
    _add_frame(questions.add_parser("frame", help="a whole step: condition, generator, decode, to host"))
    scaling = questions.add_parser(
        "scaling", help="predict a frame of the paper's model and sizes on 1, 2, 4 and 8 GPUs"
    )
    scaling.add_argument("--json", type=file_path, metavar="FILE", help="file for the rows, as JSON")
    compare = questions.add_parser(
        "compare", help="two documents side by side: ratios, and which of them mean something"
    )
    for place in ("first", "second"):
        compare.add_argument(
            place, type=file_path, metavar=f"{place.upper()}.json", help="written by --json, or by bench/"
        )
    compare.add_argument("--json", type=file_path, metavar="FILE", help="file for the comparison, as JSON")


def _add_all(parser: argparse.ArgumentParser) -> None:
    _add_target(parser)
    parser.add_argument("--json", type=file_path, metavar="FILE", help="file for the document (default: the last line)")
    _add_device(parser)
    _add_dtype(parser)
    _add_steps(parser, 30.0, "of each part ")


def _add_frame(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="aapt-8b", help=f"{' | '.join(PRESETS)} (default: %(default)s)")
    add_system(parser)
    _add_target(parser)
    parser.add_argument(
        "--json", type=file_path, metavar="FILE", help="file for the document, which is also the last line printed"
    )
    _add_device(parser)
    parser.add_argument(
        "--gpus",
        type=integer,
        default=1,
        metavar="N",
        help="predict the step on so many GPUs; several are not measured (default: %(default)s)",
    )
    parser.add_argument(
        "--parallel", choices=SCHEMES, default=SCHEMES[0], help="as for generate (default: %(default)s)"
    )
    parser.add_argument("--cuda-graph", action="store_true", help="record the step as CUDA graphs, on a GPU")
    _add_steps(parser, 60.0)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=number, default=0.16, help="seconds per latent frame (default: %(default)s)")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cuda | cpu (default: a GPU where there is one)")


def _add_steps(parser: argparse.ArgumentParser, limit: float, of_what: str = "") -> None:
    parser.add_argument(
        "--steps", type=integer, default=100, help="timed steps with a full window (default: %(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=number,
        default=limit,
        help=f"after about so many seconds {of_what}fewer steps are timed, at least 5 (default: %(default)s)",
    )


def add_system(parser: argparse._ActionsContainer) -> None:
    """Add the options that change a preset."""
    parser.add_argument("--resolution", metavar="WIDTHxHEIGHT", help="size of the video (default: the preset's)")
    parser.add_argument("--window", type=integer, help="past frames that a step sees (default: the preset's)")
    _add_dtype(parser)


def _add_dtype(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights (default: bfloat16 on a GPU that computes in it, else float32)",
    )
