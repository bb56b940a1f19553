# SPDX-License-Identifier: Apache-2.0
"""torch's own `scaled_dot_product_attention` through our attention, for the length of a `with` block.

    with scaled_dot_product_attention_through_pages() as calls:
        model(x)
    print(calls)

torch itself is not changed: the block is a `torch.overrides.TorchFunctionMode`, which only this thread sees, which
finds the function under whatever name it was imported, and which ends with the block, also after an exception. Every
other torch function called inside costs a few microseconds of Python more; autograd's backward threads and code that
`torch.compile` has compiled before do not see it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from aapt_fast.ops import paged_attention
from aapt_fast.ops._checks import PAGE_DTYPES
from aapt_fast.ops.dense_attention import as_pages, running_kernel, through_pages


@dataclass
class RoutedCalls:
    """What happened to the calls inside a block."""

    through_pages: int = 0
    left_alone: Counter[str] = field(default_factory=Counter)
    """Calls that torch did itself, by reason."""

    def __str__(self) -> str:
        lines = [f"{self.through_pages} calls of scaled_dot_product_attention through pages"]
        return "\n".join([*lines, *(f"{count} left to torch: {reason}" for reason, count in self.left_alone.items())])


@contextmanager
def scaled_dot_product_attention_through_pages() -> Iterator[RoutedCalls]:
    """Route calls of `F.scaled_dot_product_attention` in this thread through `ops.paged_attention`.

    A call is routed if it has no mask, dropout, causality or gradient, four dimensions, equal widths of keys and
    values, float32, bfloat16 or float16, and, on a GPU, a compiled kernel that is on. All others run as ever.

    Yields:
        counts of the calls that were routed and of those left alone, by reason.
    """
    calls = RoutedCalls()
    with _Routing(calls):
        yield calls


class _Routing(TorchFunctionMode):
    def __init__(self, calls: RoutedCalls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        call = _Call(*args, **kwargs)
        obstacle = call.obstacle()
        if obstacle is None:
            self.calls.through_pages += 1
            return call.run()
        self.calls.left_alone[obstacle] += 1
        return func(*args, **kwargs)


@dataclass
class _Call:
    """The arguments of `F.scaled_dot_product_attention`: query [B, H, Nq, D], key and value [B, Hkv, L, D]."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def obstacle(self) -> str | None:
        """Why pages do not do this call, or None."""
        tensors = (self.query, self.key, self.value)
        obstacles = {
            "a mask": self.attn_mask is not None,
            "dropout": self.dropout_p != 0,
            "causal": self.is_causal,
            "not four dimensions": any(x.dim() != 4 for x in tensors),
            "a dtype without pages": any(x.dtype not in PAGE_DTYPES or x.dtype != self.query.dtype for x in tensors),
            "tensors on several devices": any(x.device != self.query.device for x in tensors),
            "a gradient": torch.is_grad_enabled() and any(x.requires_grad for x in tensors),
        }
        found = next((reason for reason, holds in obstacles.items() if holds), None)
        return found or self._misfit()

    def _misfit(self) -> str | None:
        query, key, value = self._by_token()
        rows, heads, width = query.shape[0], query.shape[2], query.shape[3]
        if key.shape != value.shape or key.shape[0] != rows or key.shape[3] != width or not key.numel():
            return "shapes that broadcast or differ"
        if heads != key.shape[2] and not (self.enable_gqa and heads % key.shape[2] == 0):
            return "shapes that broadcast or differ"
        if not query.is_cpu and not through_pages(query, key, value):
            kernel = running_kernel("paged_attention", query.device)
            return "no kernel is on for this device" if kernel is None else f"{kernel} does not do these tensors"
        return None

    def _by_token(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query.transpose(1, 2), self.key.transpose(1, 2), self.value.transpose(1, 2)

    def run(self) -> Tensor:
        """[B, H, Nq, D], as torch's function gives it."""
        query, key, value = self._by_token()
        out, _ = paged_attention(query, *as_pages(key, value), self.scale)
        return out.transpose(1, 2)
