# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while a step is computed: the step ends first, so that its session can be used afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_at_the_end() -> Iterator[None]:
    """Hold the first Ctrl-C of the `with` block back and raise its KeyboardInterrupt at the end of the block.

    The second one is raised at once, so that a block which hangs can be left. In threads other than the main one
    Python raises no KeyboardInterrupt; a handler of the program's own for SIGINT is left alone.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def hold(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is hold:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt
