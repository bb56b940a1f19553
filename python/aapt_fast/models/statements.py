# SPDX-License-Identifier: Apache-2.0
"""The rule for statements about one model from several sources: they agree, or the file is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aapt_fast.errors import CheckpointError

Statement = tuple[str, str, Any, str]
"""Our name, the word that was used for it, its value, and the place of the statement."""


def agreed(
    facts: Mapping[str, Any], statements: Iterable[Statement], file: object, remedies: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Join the `facts` that tensors show and the `statements` of configurations -> values by our names.

    Raises CheckpointError, with `file`, the word that was used, and the remedy for its name if there is one, for a
    statement that contradicts a fact or an earlier statement.
    """
    known = {name: (value, "the tensors") for name, value in facts.items()}
    for name, word, value, place in statements:
        said = place if word == name else f"{word} of {place}"
        expected, first = known.setdefault(name, (value, said))
        if value != expected:
            remedy = f"; {remedies[name]}" if remedies and name in remedies else ""
            raise CheckpointError(f"{file}: {word}: expected {expected} as in {first}, got {value} in {place}{remedy}")
    return {name: value for name, (value, _) in known.items()}
