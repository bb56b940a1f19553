# SPDX-License-Identifier: Apache-2.0
"""Trial steps of a session: the kernels that can run in one, and what runs for each op."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

from torch import Tensor

from aapt_fast.ops import KERNELS, observe_ops, use_kernels
from aapt_fast.ops.kernels import Selection, obstacle
from aapt_fast.streaming.session import StreamSession

NOT_CALLED = "no step of this model calls it"


def working_kernels(
    session: StreamSession, control: Tensor | None, module: ModuleType | None, kernels: Iterable[str]
) -> dict[str, str | None]:
    """Each kernel: None if a step runs with it, else the reason. `session` stays where it is.

    module: with the kernels; None means `aapt_fast._C`.
    control: of the trial steps, as [entries, J, 3] or [entries, C, h, w], or None.
    """
    return {kernel: _obstacle(session, control, module, kernel) for kernel in kernels}


def _obstacle(session: StreamSession, control: Tensor | None, module: ModuleType | None, kernel: str) -> str | None:
    off = obstacle(KERNELS[kernel], session.model.device, Selection((kernel,), module))
    if off is not None:
        return off
    try:
        with session.fork() as trial, use_kernels(kernel, extension=module), observe_ops() as calls:
            trial.step(control)
    except ValueError as error:
        return f"does not do these arguments: {error}"
    return None if kernel in calls.counts.get(KERNELS[kernel].op, ()) else NOT_CALLED


def what_runs(session: StreamSession, control: Tensor | None) -> dict[str, str]:
    """For each op of a step what runs under the present selection: a kernel's name, or the torch code in words.

    `session` stays where it is. control: as in `working_kernels`, [entries, J, 3] or [entries, C, h, w], or None.
    """
    with session.fork() as trial, observe_ops() as calls:
        trial.step(control)
    return calls.what_ran()
