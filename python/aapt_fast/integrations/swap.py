# SPDX-License-Identifier: Apache-2.0
"""Replacement of methods of one object by a change of its class, and its reversal.

The new class inherits from the old one and has its name. So isinstance, hooks, state dicts, `to`, adapters and
configurations that store the class's name work as before, and nothing is added to the object. Copies and pickles of
a patched object are patched too; a pickle needs aapt_fast to be read. The reversal is the old class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import isfunction
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
    """Put the methods of the class `methods` before those of `target`; their `super()` reaches the latter."""
    own: Any = type(target)
    target.__class__ = _combined(own, methods)


def is_swapped(target: Any) -> bool:
    """Tell if `target` has been changed by `swap`."""
    return isinstance(target, Swapped)


def swap_back(target: Any) -> None:
    """Give `target` its own class again. Raises RuntimeError if another package has changed its class since."""
    if "swapped_from" not in vars(type(target)):
        raise RuntimeError(f"{type(target).__name__}: expected the class that patch gave it, it was changed since then")
    target.__class__ = type(target).swapped_from


def obstacle_to_swap(target: Any, method: str) -> str | None:
    """Reason why a swapped `method` of `target` would not run, or None."""
    own = vars(target).get(method)
    if own is None:
        return None
    if is_swapped(target) and own == getattr(type(target), method).__get__(target):
        return None  # removed hooks have left our own method there
    return f"another package has replaced its {method}"


@functools.cache  # one class per pair, so that equal objects stay of equal type
def _combined(original: Any, methods: Any) -> Any:
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    origin = {"swapped_from": original, "swapped_by": methods}
    guarded = {name: _while_swapped(value, methods) for name, value in vars(methods).items() if isfunction(value)}
    return type(original.__name__, (methods, Swapped, original), {**names, **origin, **guarded})


def _while_swapped(function: Callable[..., Any], methods: type) -> Callable[..., Any]:
    """Call `function` while the object is swapped, later its own method: hooks may have kept a bound one."""

    @functools.wraps(function)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(self, methods):
            return function(self, *arguments, **options)
        return getattr(type(self), function.__name__)(self, *arguments, **options)

    return call


def _created(original: Any, methods: Any) -> Any:
    combined = _combined(original, methods)
    return combined.__new__(combined)
