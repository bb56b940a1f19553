# SPDX-License-Identifier: Apache-2.0
"""Messages name what the user typed: `--model`, where the Python function behind it calls its argument `path`."""

from __future__ import annotations

import argparse
import re

POSITIONAL = {
    "train": ("recipe",),
    "evaluate": ("model",),
    "bench": ("question", "first", "second"),
    "convert": ("source",),
    "data": ("folder",),
}
"""Destinations of the arguments that have no dashes, by command."""
ELSEWHERE = {
    "generate": {"path": "--model"},
    "train": {"path": "--start"},
    "evaluate": {"path": "model", "rows": "--row"},
    "convert": {"path": "source", "shard_bytes": "--shard-size"},
}
"""Options by the names of the Python arguments that they become, where these differ, by command."""
_LEADING = re.compile(r"(\w+)(?=( \w+)?: expected )")
_KEYWORD = re.compile(r"\b(\w+)=({[^}]*}|(?!\S))")


def name_options(message: str, arguments: argparse.Namespace) -> str:
    """Put the command's option for the argument that a message begins with, and for `config={...}` in an advice.

    Other names stay: those of files, settings of a recipe, and arguments of Python functions that the command lacks.
    """
    names = {name: f"--{name.replace('_', '-')}" for name in vars(arguments)}
    names |= {name: name for name in POSITIONAL.get(arguments.command, ())}
    names |= ELSEWHERE.get(arguments.command, {})

    def keyword(match: re.Match[str]) -> str:
        value = f" '{match[2]}'" if match[2] else ""
        return names[match[1]] + value if match[1] in names else match[0]

    if leading := _LEADING.match(message):
        message = names.get(leading[1], leading[1]) + message[leading.end(1) :]
    return _KEYWORD.sub(keyword, message)
