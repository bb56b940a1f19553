# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and SIGHUP while a command works. The package installs no handlers anywhere else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class StopSignals:
    """Within the block a stop signal raises KeyboardInterrupt; one that was ignored before, as by nohup, stays ignored.

    Within `put_off` a first signal is only noted, and the work asks for it where it can stop without a loss.
    """

    def __init__(self) -> None:
        self._putting_off = self._noted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for kind in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(kind) not in (signal.SIG_IGN, None):  # None: not installed from Python
                self._before[kind] = signal.signal(kind, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def put_off(self) -> Iterator[Callable[[], bool]]:
        """Note a first signal within the block, for the function that it gives; a second one is obeyed at once."""
        self._putting_off = True
        try:
            yield lambda: self._noted
        finally:
            self._putting_off = False

    def _receive(self, *_: object) -> None:
        if self._noted or not self._putting_off:
            raise KeyboardInterrupt
        self._noted = True
        os.write(2, b"\nstopping after this step; a second signal stops at once\n")  # print may be at work already
