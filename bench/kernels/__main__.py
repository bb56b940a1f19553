# SPDX-License-Identifier: Apache-2.0
"""Time every kernel against its baselines on this GPU, and write a document of schema 1.

    python -m bench.kernels --out results.json [--only OP] [--quick]
    python -m bench.kernels --out results.json --tiny [--check]     a trial on any machine; --check: no timings

A kernel that breaks the GPU's context ends the process; what was measured before is in the document. The status is 4
if everything was done, but one of our kernels failed or disagreed with its baselines.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from aapt_fast.testing import targets
from bench.harness import ceilings
from bench.harness.cases import Case, Setting, check, run, table
from bench.harness.document import Document, clocks
from bench.harness.processes import WRONG_KERNEL
from bench.harness.timing import clock_for
from bench.kernels import (
    bench_channel_concat,
    bench_clean_frame,
    bench_gate_residual_norm,
    bench_kv_write,
    bench_linear_residual,
    bench_paged_attention,
    bench_philox,
)

SUITES = {
    suite.OP: suite
    for suite in (
        bench_paged_attention,
        bench_kv_write,
        bench_gate_residual_norm,
        bench_linear_residual,
        bench_channel_concat,
        bench_philox,
        bench_clean_frame,
    )
}
Builder = Callable[[tuple[int, ...], Setting], Case]


def builders() -> Iterator[tuple[str, tuple, tuple, Builder]]:
    """(op, shapes, tiny shapes, build) of every op."""
    for op, suite in SUITES.items():
        yield op, suite.SHAPES, suite.TINY, suite.build
        if suite is bench_channel_concat:
            name = suite.WITH_NOISE
            yield (
                name,
                suite.SHAPES,
                suite.TINY,
                lambda shape, setting: bench_channel_concat.build(shape, setting, bench_channel_concat.WITH_NOISE),
            )


OPS = tuple(op for op, *_ in builders())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="document to write or to add to")
    parser.add_argument("--only", choices=OPS, action="append", help="this op; may be given several times")
    parser.add_argument("--quick", action="store_true", help="first shape only, no torch.compile, fewer repetitions")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on any device")
    parser.add_argument("--emulated-build", type=Path, help="with --tiny: the folder with the emulated kernels")
    parser.add_argument("--check", action="store_true", help="compare the systems once and time nothing")
    arguments = parser.parse_args()
    if arguments.emulated_build and not arguments.tiny:
        parser.error("--emulated-build: expected --tiny with it, the time of an emulation means nothing")
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.emulated_build else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        print("no GPU: timing kernels needs one. --tiny tries the program out on any machine.")
        sys.exit(3)
    torch.manual_seed(0)
    document = Document.open(arguments.out, shlex.join(sys.argv))
    wrong = run_suites(document, device, arguments)
    sys.exit(WRONG_KERNEL if wrong else 0)


def run_suites(document: Document, device: torch.device, arguments: argparse.Namespace) -> list[str]:
    """Run what was asked for; the kernels that ran and failed."""
    # Nothing is timed with --check, and at trial sizes the ceilings mean as little as the times.
    sizes = {"size": 256, "copy_bytes": 2**20} if arguments.tiny else {}
    found = None if arguments.check else ceilings.of(document, device, **sizes)
    clock = clock_for(device)
    timing = {"limit_s": 1.5, "repetitions": 30} if arguments.quick or arguments.tiny else {"limit_s": 3.0}
    module = targets.emulated(arguments.emulated_build).module if arguments.emulated_build else None
    modes = ("cold", "warm", "cold graph") if device.type == "cuda" else ("warm",)
    first = earlier = len(document.content["failures"])
    if not arguments.check:
        document.add("clocks", {"before": arguments.only or "kernels", "clocks": clocks()})
    wrong = []
    for op, shapes, tiny, build in builders():
        if arguments.only and op not in arguments.only:
            continue
        for shape in tiny if arguments.tiny else shapes[:1] if arguments.quick else shapes:
            dtype = torch.float32 if op == "philox_normal" else torch.bfloat16
            compiled = not (arguments.quick or arguments.tiny)
            case = build(shape, Setting(device, dtype, compiled, module))
            start = len(document.content["results"])
            if found is None:
                agreed = check(case, document)
                print(f"{case.name}: {', '.join(agreed) or 'nothing'} ran and agreed")
            else:
                run(case, clock, found, document, modes=modes, **timing)
                print(table(document.content["results"][start:]), flush=True)
            wrong += [f["name"] for f in document.content["failures"][earlier:] if f["what_ran"] in case.ours]
            earlier = len(document.content["failures"])
    if not arguments.check:
        document.add("clocks", {"after": arguments.only or "kernels", "clocks": clocks()})
    for failure in document.content["failures"][first:]:
        print(f"without a result: {failure['name']}: {failure['what_ran']}: {failure['reason']}")
    return wrong


if __name__ == "__main__":
    main()
