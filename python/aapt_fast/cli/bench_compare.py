# SPDX-License-Identifier: Apache-2.0
"""Print what two documents of measurements have in common, and what differs. Needs no torch."""

from __future__ import annotations

import argparse
import json

from aapt_fast.atomic import replacing
from aapt_fast.profiling.compare import compare_files


def run(arguments: argparse.Namespace) -> int:
    """Compare two documents; returns the exit status."""
    found = compare_files(arguments.first, arguments.second)
    print("\n".join(found.in_words()))
    if arguments.json is not None:
        with replacing(arguments.json) as partial:
            partial.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
    return 0
