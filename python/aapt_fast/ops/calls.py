# SPDX-License-Identifier: Apache-2.0
"""Records of op calls: which kernel or which torch code each call ran.

    with observe_ops() as calls:
        session.step(control)
    print(calls.what_ran())     # {"paged_attention": "paged_attention/sm90", "kv_write": "torch composition", ...}

The record comes from the calls themselves. It covers calls of this thread, and of a CUDA graph its capture, not its
replays. Code that torch.compile has put together from an op's torch operators is no call of the op.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

OnOp = Callable[[str], AbstractContextManager[Any]]


class OpCalls:
    """Counts of what ran, by op: `counts["kv_write"]["torch composition"]`."""

    def __init__(self, on_op: OnOp | None = None) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self._on_op = on_op

    def what_ran(self) -> dict[str, str]:
        """Names of what ran, by op: a kernel or the torch code in words; several are joined by "and"."""
        return {op: " and ".join(counts) for op, counts in sorted(self.counts.items()) if counts}

    def begin(self, op: str) -> OpCall:
        """Open the hook for a call of `op`."""
        return OpCall(self.counts.setdefault(op, Counter()), None if self._on_op is None else self._on_op(op))


class OpCall:
    """One call of an op in a record."""

    def __init__(self, counts: Counter[str], hook: AbstractContextManager[Any] | None) -> None:
        self._counts, self._hook = counts, hook
        if hook is not None:
            hook.__enter__()

    def end(self, ran: str | None) -> None:
        """Close the hook, and count what ran; None for a call that failed."""
        if self._hook is not None:
            self._hook.__exit__(None, None, None)
        if ran is not None:
            self._counts[ran] += 1


observers: ContextVar[tuple[OpCalls, ...]] = ContextVar("aapt_fast_op_observers", default=())
"""The open records of this thread, the outermost first."""


@contextmanager
def observe_ops(on_op: OnOp | None = None) -> Iterator[OpCalls]:
    """Record the op calls inside the `with` block, in this thread.

    Args:
        on_op: called with the name of the op before each call; gives a context manager that is open during the call,
            for example to time it.
    """
    calls = OpCalls(on_op)
    token = observers.set((*observers.get(), calls))
    try:
        yield calls
    finally:
        observers.reset(token)
