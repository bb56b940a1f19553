# SPDX-License-Identifier: Apache-2.0
"""Entries of `measurements`: a number beside its prediction, which was written down before the number was measured."""

from __future__ import annotations

from typing import Any

TOLERANCE = 0.2
Range = tuple[float, float]


def verdict(value: float, predicted: Range) -> str:
    """Say whether the value is within 20 % of the predicted range, or how far off."""
    low, high = predicted
    if (1 - TOLERANCE) * low <= value <= (1 + TOLERANCE) * high:
        return "within 20 % of the prediction"
    off = value / (low if value < low else high) - 1
    return f"{abs(off):.0%} {'below' if off < 0 else 'above'} the prediction"


def measurement(name: str, value: float, unit: str, predicted: Range, what_ran: str, **more: Any) -> dict[str, Any]:
    """Make an entry of `measurements` in schema 1."""
    entry = {"name": name, "value": value, "unit": unit, "predicted": list(predicted)}
    return {**entry, "verdict": verdict(value, predicted), "what_ran": what_ran, **more}
