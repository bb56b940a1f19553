# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and SIGHUP: a command ends where it loses nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal has ended the command; the message names it. `main` makes exit status 130 of it."""


def ignore_signals(kinds: Iterable[signal.Signals] = SIGNALS) -> None:
    """Ignore such signals from now on, until the process has ended."""
    for kind in kinds:
        signal.signal(kind, signal.SIG_IGN)


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Give the three signals back to the handlers from before the block, also where a command was stopped in it."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {kind: signal.getsignal(kind) for kind in SIGNALS if in_main_thread}
    try:
        yield
    finally:
        for kind, handler in before.items():
            if handler is not None:  # one that Python has not set, and cannot set again
                signal.signal(kind, handler)


class HeldSignals:
    """Context manager that holds SIGINT, SIGTERM and SIGHUP back, except where `let_in` allows them.

    Elsewhere a signal waits for the next `let_in`; one that still waits at the end of the block raises `Stopped` there,
    unless another error does. A signal that the process ignores stays ignored, as SIGHUP after `nohup`. In a thread
    other than the main one, where Python has no signals, the block changes nothing. At the end the old handlers return,
    unless the command was stopped.

        with HeldSignals() as signals:
            for each in work:
                with signals.let_in():  # Stopped is raised in here
                    result = compute(each)
                file.write(result)  # but never in here

    From the moment at which `Stopped` leaves a `let_in`, the process ignores the three signals, after the block too, so
    that no further one disturbs its end. A caller that continues after that has to use `handlers_restored` around it.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._waiting: signal.Signals | None = None
        self._open = self._holding = False

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is threading.main_thread():
            heard = [kind for kind in SIGNALS if signal.getsignal(kind) not in (signal.SIG_IGN, None)]
            self._before = {kind: signal.signal(kind, self._receive) for kind in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._waiting is not None:
            ignore_signals(self._before)
        for each, handler in self._before.items():
            if signal.getsignal(each) == self._receive:  # else they are ignored
                signal.signal(each, handler)
        if kind is None:
            self._raise_waiting()

    @contextmanager
    def let_in(self) -> Iterator[None]:
        """Raise `Stopped` for a signal that waits, and for one that comes inside of the block."""
        self._open = True
        try:
            self._raise_waiting()
            yield
        except KeyboardInterrupt:
            ignore_signals(self._before)
            raise
        finally:
            self._open = False

    @contextmanager
    def hold(self) -> Iterator[Callable[[], bool]]:
        """Hold a first signal back inside of `let_in`, for the function that this gives; a second one is let in.

        Work asks the function where it can stop without a loss.
        """
        was_open, self._open, self._holding = self._open, False, True
        try:
            yield lambda: self._waiting is not None
        finally:
            self._open, self._holding = was_open, False
        if was_open:
            self._raise_waiting()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        second = self._holding and self._waiting is not None
        self._waiting = signal.Signals(number)
        if self._open or second:
            self._raise_waiting()
        elif self._holding:
            os.write(2, b"\nstopping after this step; another signal stops at once\n")  # a print may be interrupted

    def _raise_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._open = False  # a second signal does not disturb the way out of here
            raise Stopped(f"stopped by {waiting.name}")
