# SPDX-License-Identifier: Apache-2.0
"""Which kernels can run in a step of a session, and what does run for each op."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from aapt_fast.ops import implementations
from aapt_fast.ops.kernels import KERNELS, runs_on, selection, use_kernels
from aapt_fast.streaming.session import StreamSession

MISSING = "no compiled module with kernels for this device"
NOT_IN_A_STEP = ("channel_concat_noise", "modulated_norm")  # not called by sessions; the kernel is that of another op
ONLY_AS_KERNEL = ("linear_residual",)  # ops that sessions call only where a kernel is on


def working_kernels(
    session: StreamSession,
    control: Tensor | None,
    module: ModuleType | None,
    kernels: Sequence[str] = KERNELS,
) -> dict[str, str | None]:
    """Each kernel: None if a step runs with it, else why not. `session` stays where it is.

    control: of the trial steps, as [entries, J, 3] or [entries, C, h, w], or None.
    """
    if module is None or not runs_on(module, session.model.device):
        return dict.fromkeys(kernels, MISSING)
    found: dict[str, str | None] = {}
    for kernel in kernels:
        if not hasattr(module, kernel.replace("/", "_")):
            found[kernel] = "the compiled module does not have it"
            continue
        if kernel.startswith("linear_residual/") and session.model.token_dtype == torch.float32:
            found[kernel] = "does not do these arguments: the token stream is in float32"
            continue
        try:
            with session.fork() as trial, use_kernels(kernel, extension=module):
                trial.step(control)
            found[kernel] = None
        except ValueError as error:
            found[kernel] = f"does not do these arguments: {error}"
    return found


def what_runs(session: StreamSession, control: Tensor | None) -> dict[str, str]:
    """What runs for each op of a step under the present selection: a kernel's name, or the composition in words.

    control: as in `working_kernels`, [entries, J, 3] or [entries, C, h, w], or None.
    """
    device, selected, idle = session.model.device, selection(), NOT_IN_A_STEP + ONLY_AS_KERNEL
    module = selected.module()
    running = {op: words[device.type] for op, words in implementations().items() if op not in idle}
    on = [kernel for kernel in KERNELS if module is not None and selected.allows(kernel, module, device)]
    for kernel, obstacle in reversed(working_kernels(session, control, module, on).items()):
        op = kernel.split("/")[0]
        if obstacle is None and op not in NOT_IN_A_STEP:
            running[op] = kernel
    return running
