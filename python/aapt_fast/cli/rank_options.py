# SPDX-License-Identifier: Apache-2.0
"""The options of commands whose frames several GPUs can share."""

from __future__ import annotations

import argparse

from aapt_fast.cli.option_types import integer

SCHEMES = ("auto", "sp", "tp")


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Add `--gpus` and `--parallel`."""
    parser.add_argument(
        "--gpus",
        type=integer,
        default=1,
        metavar="N",
        help="share each frame among so many GPUs of this machine, or with --device cpu among so many processes; N has "
        "to divide the heads of the model, of which mini-person has 4 (default: %(default)s)",
    )
    parser.add_argument(
        "--parallel",
        choices=SCHEMES,
        default=SCHEMES[0],
        help="how --gpus share a frame: sp, by tokens (sequence parallel), exchanges less; tp, by weights (tensor "
        "parallel), needs less memory; auto, the faster one that fits, by a model of the GPU (default: %(default)s)",
    )
