# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast bench QUESTION`: each question has a file of its own, imported when it is asked."""

from __future__ import annotations

import argparse

from aapt_fast.errors import import_with_torch


def run(arguments: argparse.Namespace) -> int:
    """Answer one question; returns the exit status."""
    status: int = import_with_torch(f"aapt_fast.cli.bench_{arguments.question}").run(arguments)
    return status
