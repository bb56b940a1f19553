# SPDX-License-Identifier: Apache-2.0
"""The rule for statements about one model from several sources: they agree, or the file is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aapt_fast.errors import CheckpointError


def agreed(facts: Mapping[str, Any], statements: Iterable[tuple[str, Any, str]], file: object) -> dict[str, Any]:
    """Join the `facts` that tensors show and the `statements` (name, value, place) of configurations.

    Raises CheckpointError, with `file`, for a statement that contradicts a fact or an earlier statement.
    """
    known = {name: (value, "the tensors") for name, value in facts.items()}
    for name, value, place in statements:
        expected, first = known.setdefault(name, (value, place))
        if value != expected:
            raise CheckpointError(f"{file}: {name}: expected {expected} as in {first}, got {value} in {place}")
    return {name: value for name, (value, _) in known.items()}
