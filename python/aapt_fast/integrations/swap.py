# SPDX-License-Identifier: Apache-2.0
"""Replacing methods of one object by changing its class, and back.

The new class inherits from the old one and has its name. So the object stays what it was for everybody who asks
(isinstance, hooks, state dicts, `to`, adapters, configurations that store the class's name), nothing is added to it,
copies and pickles of it are patched as well, and going back is going back to the old class. A pickle of a patched
object needs aapt_fast to be read.
"""

from __future__ import annotations

import functools
from typing import Any

Original: Any = object
"""Base of a class of methods for `swap`: `super()` and `self` there mean the object whose class it changes."""


class Swapped:
    """Base of every class that `swap` makes."""

    swapped_from: type
    swapped_by: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return _created, (self.swapped_from, self.swapped_by), *reduced[2:]


def swap(target: Any, methods: type) -> None:
    """Let the methods of the class `methods` stand before those of `target`, which `super()` reaches from there."""
    own: Any = type(target)
    target.__class__ = _combined(own, methods)


def is_swapped(target: Any) -> bool:
    """Whether `target` has been changed by `swap`."""
    return isinstance(target, Swapped)


def swap_back(target: Any) -> None:
    """Give `target` its own class again. Raises RuntimeError if somebody else has changed its class since."""
    if "swapped_from" not in vars(type(target)):
        raise RuntimeError(f"{type(target).__name__}: expected the class that patch gave it, it was changed since then")
    target.__class__ = type(target).swapped_from


def obstacle_to_swap(target: Any, method: str) -> str | None:
    """Why a swapped `method` of `target` would not run, or None."""
    if method in vars(target):
        return f"another package has replaced its {method}"
    return None


@functools.cache  # one class per pair, so that equal objects stay of equal type
def _combined(original: Any, methods: Any) -> Any:
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    origin = {"swapped_from": original, "swapped_by": methods}
    return type(original.__name__, (methods, Swapped, original), {**names, **origin})


def _created(original: Any, methods: Any) -> Any:
    combined = _combined(original, methods)
    return combined.__new__(combined)
