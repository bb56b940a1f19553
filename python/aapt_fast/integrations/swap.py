# SPDX-License-Identifier: Apache-2.0
"""Replacing methods of one object by changing its class, and back.

The new class inherits from the old one and has its name. So the object stays what it was for everybody who asks
(isinstance, hooks, state dicts, `to`, adapters, configurations that store the class's name), nothing is added to it but
what a class of methods keeps there for itself, copies and pickles of it are patched as well and begin without that, and
going back is going back to the old class. A pickle of a patched object needs aapt_fast to be read.
"""

from __future__ import annotations

import functools
from inspect import isfunction
from typing import Any

Original: Any = object
"""Base of a class of methods for `swap`: `super()` and `self` there mean the object whose class it changes."""


class Swapped:
    """Base of every class that `swap` makes."""

    swapped_from: type
    swapped_by: type
    kept_by_swap: tuple[str, ...] = ()
    """Attributes that the methods keep in the object. They leave with the methods, and no copy has them."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        state, *rest = reduced[2:]
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name not in self.kept_by_swap}
        return _created, (self.swapped_from, self.swapped_by), state, *rest


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
    for name in target.kept_by_swap:
        vars(target).pop(name, None)
    target.__class__ = type(target).swapped_from


def obstacle_to_swap(target: Any, method: str) -> str | None:
    """Why a swapped `method` of `target` would not run, or None."""
    own = vars(target).get(method)
    if own is None:
        return None
    if is_swapped(target) and own == getattr(type(target), method).__get__(target):
        return None  # hooks that are gone have left our own method there
    return f"another package has replaced its {method}"


@functools.cache  # one class per pair, so that equal objects stay of equal type
def _combined(original: Any, methods: Any) -> Any:
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    origin = {"swapped_from": original, "swapped_by": methods}
    guarded = {name: _while_swapped(value, methods) for name, value in vars(methods).items() if isfunction(value)}
    return type(original.__name__, (methods, Swapped, original), {**names, **origin, **guarded})


def _while_swapped(function: Any, methods: Any) -> Any:
    """`function`, and the object's own method of that name once it has gone back: hooks may have kept a bound one."""

    @functools.wraps(function)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(self, methods):
            return function(self, *arguments, **options)
        return getattr(type(self), function.__name__)(self, *arguments, **options)

    return call


def _created(original: Any, methods: Any) -> Any:
    combined = _combined(original, methods)
    return combined.__new__(combined)
