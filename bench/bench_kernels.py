# SPDX-License-Identifier: Apache-2.0
"""Time every kernel against its baselines on this GPU.

    python -m bench.bench_kernels [--out F] [--only OP] [--quick]
    python -m bench.bench_kernels --out F --tiny [--check]     a trial on any machine; --check: no timings
    pytest bench/bench_kernels.py                              under pytest-benchmark; skipped without a GPU

The cases are those of `aapt_fast.verification.cases`: a system is timed only if it agrees with the first one. A kernel
that breaks the GPU's context ends the process; the document has what was measured before. Status: 4 if everything was
done, but a kernel failed or disagreed with its baselines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aapt_fast.profiling.document import Document, result
from aapt_fast.profiling.interleaved import Call, Clock, captured, clock_for, time_interleaved
from aapt_fast.profiling.timing import Sample
from aapt_fast.testing import targets
from aapt_fast.verification.case import Case, Setting, check
from aapt_fast.verification.cases import SUITES
from bench.harness import ceilings
from bench.harness.ceilings import Ceilings
from bench.harness.processes import WRONG_KERNEL
from bench.harness.program import current_device, finish, open_document, parser

GRAPH = "CUDA graph"


@dataclass(frozen=True)
class Timing:
    """Modes and limits: a mode is `cold` or `warm`, with ` graph` for a replayed CUDA graph; `limit_s` is per mode."""

    clock: Clock
    modes: tuple[str, ...] = ("cold", "warm", "cold graph")
    limit_s: float = 3.0
    repetitions: int = 100


def case_name(case: Case) -> str:
    """Name it like kernel/paged_attention/1196x35880x24x128/bf16."""
    return f"kernel/{case.op}/{case.label}"


def run(case: Case, document: Document, best: Ceilings | None, timing: Timing) -> list[str]:
    """Check a case, time it unless there are no ceilings, add a result per system and mode; returns what failed."""
    name = case_name(case)
    running, failures = check(case)
    for system, reason in failures.items():
        print(f"{name}: {system}: no result: {document.fail(name, system, reason)}")
    for mode in timing.modes if best is not None else ():
        calls: Mapping[str, Call] = _captured(name, running, document) if mode.endswith("graph") else running
        if calls:
            samples = time_interleaved(
                calls,
                timing.clock,
                cold_l2=mode.startswith("cold"),
                repetitions=timing.repetitions,
                limit_s=timing.limit_s,
            )
            for entry in results(case, samples, best, GRAPH if mode.endswith("graph") else "stream"):
                document.add("results", entry)
                print(row(entry), flush=True)
    return [kernel for kernel in case.ours if kernel in failures]


def _captured(name: str, running: Mapping[str, Callable[[], object]], document: Document) -> dict[str, Call]:
    graphs = {}
    for system, call in running.items():
        try:
            graphs[system] = captured(call)
        except Exception as error:
            document.fail(name, f"{system}, as a {GRAPH}", error)
            torch.cuda.synchronize()
    return graphs


def results(case: Case, samples: Mapping[str, Sample], best: Ceilings, launch: str) -> list[dict[str, Any]]:
    """Make the results of one mode; the baseline is the fastest of those that do the same work."""
    baselines = [system for system in samples if system not in case.ours and system not in case.other_numbers]
    fastest = min(baselines, key=lambda system: samples[system].p50) if baselines else None
    floor = best.floor_ms(case.flops, case.moved_bytes)
    return [
        result(
            case_name(case),
            sample,
            system,
            baseline=fastest,
            ratio=sample.times(samples[fastest]) if fastest else None,
            tflops=case.flops / sample.p50 / 1e9,
            share_of_ceiling=floor / sample.p50,
            tb_s=case.moved_bytes / sample.p50 / 1e9,
            launch=launch,
            ours=system in case.ours,
        )
        for system, sample in samples.items()
    ]


HEADER = f"{'p50 ms':>10} {'p95 ms':>10} {'TFLOP/s':>8} {'share':>6} {'ratio':>6}  L2    what"


def row(entry: dict[str, Any]) -> str:
    """Format a result as a line under `HEADER`."""
    cold = {True: "cold", False: "warm", None: "?"}[entry["cold_l2"]]
    ratio = f"{entry['ratio']:6.2f}" if entry["ratio"] is not None else "     -"
    return (
        f"{entry['p50_ms']:10.4f} {entry['p95_ms']:10.4f} {entry['tflops']:8.1f} {entry['share_of_ceiling']:6.1%} "
        f"{ratio}  {cold:5} {entry['name']}: {entry['what_ran']} ({entry['launch']})"
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=list(SUITES), action="append", help="this op; may be given several times")
    options.add_argument("--quick", action="store_true", help="first shape only, no torch.compile, fewer repetitions")
    options.add_argument("--tiny", action="store_true", help="tiny shapes, on any device")
    options.add_argument("--emulated-build", type=Path, help="with --tiny: the folder with the emulated kernels")
    options.add_argument("--check", action="store_true", help="compare the systems once and time nothing")
    arguments = options.parse_args()
    if arguments.emulated_build and not arguments.tiny:
        options.error("--emulated-build: expected --tiny with it, got none: the time of an emulation means nothing")
    device = current_device(arguments.tiny, "--tiny")
    device = torch.device("cpu") if arguments.emulated_build else device
    torch.manual_seed(0)
    document = open_document(arguments.out)
    wrong = run_suites(document, device, arguments)
    finish(document)
    sys.exit(WRONG_KERNEL if wrong else 0)


def run_suites(document: Document, device: torch.device, arguments: argparse.Namespace) -> list[str]:
    """Run the suites that the arguments name; returns the kernels that failed."""
    short = arguments.quick or arguments.tiny
    best = None
    if not arguments.check:
        document.note_clocks(f"before {', '.join(arguments.only or ['kernels'])}")
        best = ceilings.of(document, device, **(ceilings.TINY if arguments.tiny else {}))
        print(HEADER)
    timing = Timing(clock_for(device), limit_s=1.5 if short else 3.0, repetitions=30 if short else 100)
    timing = timing if device.type == "cuda" else replace(timing, modes=("warm",))
    module = targets.emulated(arguments.emulated_build).module if arguments.emulated_build else None
    wrong = []
    for op, suite in SUITES.items():
        if arguments.only and op not in arguments.only:
            continue
        setting = Setting(device, suite.dtype, compiled=not short, extension=module)
        for shape in [suite.tiny] if arguments.tiny else suite.shapes[:1] if arguments.quick else suite.shapes:
            wrong += run(suite.build(shape, setting), document, best, timing)
    if not arguments.check:
        document.note_clocks(f"after {', '.join(arguments.only or ['kernels'])}")
    return wrong


@pytest.mark.parametrize(
    ("op", "shape"),
    [pytest.param(op, shape, id=f"{op}-{shape}") for op, suite in SUITES.items() for shape in suite.shapes],
)
def test_kernel(benchmark: Any, op: str, shape: tuple[int, ...]) -> None:
    """One case under pytest-benchmark, which knows only the wall clock.

    It times one call of our first kernel, or without one of the first baseline, and the wait for the GPU. The event
    times of all systems go to its `extra_info`.
    """
    if not torch.cuda.is_available():
        pytest.skip("no GPU: kernel timings need one; tests/bench/ runs these suites on the CPU, with tiny shapes")
    device, document = torch.device("cuda", torch.cuda.current_device()), Document.new("pytest bench/bench_kernels.py")
    case = SUITES[op].build(shape, Setting(device, SUITES[op].dtype))
    run(case, document, ceilings.of(document, device), Timing(clock_for(device), limit_s=10.0))
    timed = [entry["what_ran"] for entry in document.content["results"]]
    assert timed, document.content["failures"]
    system = next((name for name in case.ours if name in timed), timed[0])

    @torch.no_grad()
    def call_and_wait() -> None:
        case.systems[system]()
        torch.cuda.synchronize(device)

    benchmark.extra_info.update(system=system, **{key: document.content[key] for key in ("results", "failures")})
    benchmark.pedantic(call_and_wait, rounds=20, warmup_rounds=3)


if __name__ == "__main__":
    main()
