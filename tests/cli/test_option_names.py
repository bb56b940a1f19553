# SPDX-License-Identifier: Apache-2.0
"""A message names the option that the user typed, not the argument of a Python function behind it."""

from __future__ import annotations

import pytest

from aapt_fast.cli.option_names import ELSEWHERE, POSITIONAL, name_options
from aapt_fast.cli.options import COMMANDS, make_parser

REQUIRED = {
    "generate": ["--out", "x"],
    "doctor": [],
    "train": ["person", "--out", "x"],
    "data": ["check", "films"],
    "evaluate": [],
    "bench": ["frame"],
    "convert": ["mini-person", "--out", "x"],
    "verify": [],
    "serve": [],
}


@pytest.mark.parametrize(
    ("command", "message", "named"),
    [
        ("generate", "path: expected a model, got x", "--model: expected a model, got x"),
        ("train", "path: expected a model, got x", "--start: expected a model, got x"),
        ("train", "out: expected a new folder, got x", "--out: expected a new folder, got x"),
        ("evaluate", "rows: expected distinct names, got x", "--row: expected distinct names, got x"),
        ("evaluate", "clips: expected at least 1, got 0", "--clips: expected at least 1, got 0"),
        ("evaluate", "model: expected a control, got None", "model: expected a control, got None"),
        ("bench", "cuda_graph: expected False, got x", "--cuda-graph: expected False, got x"),
        ("bench", "resolution width: expected 16, got 3", "--resolution width: expected 16, got 3"),
        ("bench", "out of memory: x", "out of memory: x"),
        ("convert", "x.pt: expected 4, got 8; give it, as config=", "x.pt: expected 4, got 8; give it, as --config"),
        ("convert", 'x.pt: give it, as config={"a": 1}', """x.pt: give it, as --config '{"a": 1}'"""),
        ("convert", "x.pt: in Python, give it as lora=", "x.pt: in Python, give it as lora="),
        ("train", "clips, frames and size: expected less", "clips, frames and size: expected less"),
        ("generate", "--scale: expected out=3, got path: expected", "--scale: expected out=3, got path: expected"),
    ],
)
def test_options_are_named(command: str, message: str, named: str) -> None:
    assert name_options(message, make_parser().parse_args([command, *REQUIRED[command]])) == named


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tables_name_options_that_exist(command: str) -> None:
    calls = [REQUIRED[command], *([["compare", "a.json", "b.json"]] if command == "bench" else [])]
    known = {name: value for call in calls for name, value in vars(make_parser().parse_args([command, *call])).items()}
    named = [name.removeprefix("--").replace("-", "_") for name in ELSEWHERE.get(command, {}).values()]
    assert known.keys() >= {*named, *POSITIONAL.get(command, ())}
