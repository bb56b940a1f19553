# SPDX-License-Identifier: Apache-2.0
"""The portable kernels on a fake GPU (`testing.fake_cuda`): each call is one launch, and its results have no values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from aapt_fast.ops import kernels, registry
from aapt_fast.ops.kernels import KERNELS, Bind, Kernel, Selection
from aapt_fast.testing.fake_gpu import FakeGPU


@contextmanager
def fake_kernels(gpu: FakeGPU) -> Iterator[None]:
    """Turn the portable kernel of every op on, inside the `with` block, for the arguments that the table gives it."""

    def run(op: str, device: torch.device, bind: Bind, arguments: tuple[Any, ...]) -> tuple[Any, str] | None:
        kernel, first = KERNELS[f"{op}/portable"], arguments[0]
        if device.type != "cuda" or (kernel.widths and kernel.refusal(first.dtype, first.shape[-1])):
            return None
        results, _ = bind(kernel, *arguments)
        gpu.launch(kernel.function)
        return results, kernel.name

    def on(op: str, device: torch.device, selected: Selection) -> tuple[Kernel, ...]:
        name = f"{op}/portable"
        return (KERNELS[name],) if device.type == "cuda" and name in KERNELS else ()

    with patch.object(registry, "run_kernel", run), patch.object(kernels, "_kernels_on", on):
        yield
