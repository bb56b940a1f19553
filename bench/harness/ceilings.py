# SPDX-License-Identifier: Apache-2.0
"""Best rates of this machine, measured in the same run: every result is a share of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from aapt_fast.profiling.document import Document
from aapt_fast.profiling.interleaved import clock_for, time_interleaved


@dataclass(frozen=True)
class Ceilings:
    """Rates of a large bf16 matrix product on random data and of a large copy, bytes read plus bytes written."""

    matmul_tflops: float
    copy_tb_s: float

    def floor_ms(self, flops: float, moved_bytes: float) -> float:
        """Compute the least time for this work: its arithmetic or its traffic, whichever takes longer."""
        return max(flops / self.matmul_tflops, moved_bytes / self.copy_tb_s) / 1e9


TINY = {"size": 256, "copy_bytes": 2**20}
"""Arguments of `measure` that try the program out."""


def measure(device: torch.device, *, size: int = 8192, copy_bytes: int = 4 * 2**30, limit_s: float = 8.0) -> Ceilings:
    """Measure both: a product of square matrices of `size`, a copy of `copy_bytes`."""
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    source = torch.randint(0, 255, (copy_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = torch.empty(size, size, device=device, dtype=torch.bfloat16)
    samples = time_interleaved(
        {"matmul": lambda: torch.mm(left, right.T, out=product), "copy": lambda: target.copy_(source)},
        clock_for(device),
        cold_l2=False,
        warm_ups=10,
        repetitions=50,
        limit_s=limit_s,
    )
    return Ceilings(2 * size**3 / samples["matmul"].p50 / 1e9, 2 * copy_bytes / samples["copy"].p50 / 1e9)


def of(document: Document, device: torch.device, **sizes: int) -> Ceilings:
    """Return the ceilings of this run: those in the document, else measured now and written there."""
    if not document.content.get("ceilings"):
        found = measure(device, **sizes)
        how = f"torch.mm bfloat16 on random data; copy_ of uint8, read plus written; {sizes or 'default sizes'}"
        document.set(ceilings={**asdict(found), "what_ran": how})
    known = document.content["ceilings"]
    return Ceilings(known["matmul_tflops"], known["copy_tb_s"])
