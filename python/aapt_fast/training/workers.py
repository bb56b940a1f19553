# SPDX-License-Identifier: Apache-2.0
"""The beginning of a worker process.

The import of this file must not import torch: a new worker imports it before anything else, and torch takes seconds in
which the worker would not notice that its parent has ended.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent has ended


def begin_worker() -> None:
    """Leave Ctrl-C and the end of the terminal to the parent, end when it has ended, and compute with one thread."""
    for kind in ("SIGINT", "SIGHUP"):
        if hasattr(signal, kind):
            signal.signal(getattr(signal, kind), signal.SIG_IGN)
    if sys.platform == "linux":  # the thread below may have to wait for an import or a kernel of torch
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a thread can end its process in no other way
