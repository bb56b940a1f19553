# SPDX-License-Identifier: Apache-2.0
"""Which kernels can run in a step of a session, and what does run for each op."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.ops import implementations
from aapt_fast.ops.kernels import KERNELS, runs_on, selection, use_kernels
from aapt_fast.streaming.session import StreamSession

MISSING = "no compiled module with kernels for this device"
NOT_CALLED = "no step of this model calls it"
NOT_IN_A_STEP = ("channel_concat_noise", "modulated_norm")  # never called by name; the latter has another op's kernel
ONLY_AS_KERNEL = "linear_residual"  # called only where its kernel is on


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
        if not _is_in_a_step(kernel.split("/")[0], session):
            found[kernel] = NOT_CALLED
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
    device, selected = session.model.device, selection()
    module = selected.module()
    called = [op for op in implementations() if op != ONLY_AS_KERNEL and _is_in_a_step(op, session)]
    running = {op: implementations()[op][device.type] for op in called}
    on = [kernel for kernel in KERNELS if module is not None and selected.allows(kernel, module, device)]
    for kernel, obstacle in reversed(working_kernels(session, control, module, on).items()):
        if obstacle is None:
            running[kernel.split("/")[0]] = kernel
    return running


def _is_in_a_step(op: str, session: StreamSession) -> bool:
    model = session.model
    if op == "clean_frame":
        return isinstance(model.generator, Generator) and model.generator.ends_in_clean_frame
    if op == ONLY_AS_KERNEL:
        return isinstance(model.generator, Generator) and model.token_dtype != torch.float32
    return op not in NOT_IN_A_STEP
