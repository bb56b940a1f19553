# SPDX-License-Identifier: Apache-2.0
"""What a CUDA graph does, on a CPU: the operators of one run, called again with the same tensors and numbers.

A replay reads the tensors that the recorded run read, writes its results into the tensors that the recorded run made,
and knows no Python: a number that the host computed stays what it was. Reading a value back to the host is refused, as
it is on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aapt_fast.streaming.graph import GraphMemory, Recording

_HOST_READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.item.default,  # in inference mode it arrives whole, and so does is_nonzero
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _HOST_READS:
            raise RuntimeError(f"{func} reads a value back to the host")
        results = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, [x for x in tree_leaves(results) if isinstance(x, Tensor)]))
        return results

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for result, value in zip(results, again, strict=True):
                if value.data_ptr() != result.data_ptr():  # else a view, or written in place
                    result.copy_(value)


def record_on_cpu(function: Callable[[], Tensor], memory: GraphMemory, restore: Callable[[], None]) -> Recording:
    """A recorder for `streaming.graph.RECORDERS`: runs `function` -> tensor [...] twice, and records the second run."""
    function()
    restore()
    recorder = _Recorder()
    with recorder:
        output = function()
    return Recording(recorder.replay, output)
