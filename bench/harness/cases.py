# SPDX-License-Identifier: Apache-2.0
"""One op at one shape: our kernels and everything they compete with, checked against each other, then timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import KERNELS, runs_on, use_kernels
from aapt_fast.profiling.timing import Sample
from aapt_fast.testing.compare import relative_l2
from bench.harness.ceilings import Ceilings
from bench.harness.ceilings import of as ceilings_of
from bench.harness.document import Document
from bench.harness.timing import Call, Clock, captured, clock_for, time_interleaved

Result = Callable[[], Tensor | tuple[Tensor, ...]]

LARGEST_DIFFERENCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
"""Relative difference (L2) of two implementations above which one of them is wrong: it is not timed."""

DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Setting:
    """Where and with what a case is built."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    compiled: bool = True  # also the baselines of torch.compile
    extension: ModuleType | None = None  # None: aapt_fast._C

    def randn(self, *shape: int) -> Tensor:
        """Random numbers [*shape]."""
        return torch.randn(shape, device=self.device).to(self.dtype)

    def randn32(self, *shape: int) -> Tensor:
        """The same in float32."""
        return torch.randn(shape, device=self.device)

    def kernels(self, *names: str) -> AbstractContextManager[None]:
        """These kernels of the module of this setting, inside the block."""
        return use_kernels(*names, extension=self.extension)


@dataclass
class Case:
    """The systems that do the same work.

    `name`: like kernel/paged_attention/1196x35880x24x128/bf16. `flops` and `moved_bytes`: of the work itself, every
    input read and every output written once. `ours`: systems that are kernels of aapt_fast, the others are baselines.
    The first system of `systems` is the one all others must agree with, except those in `other_numbers`.
    """

    name: str
    op: str
    flops: float
    moved_bytes: float
    dtype: torch.dtype
    systems: dict[str, Result] = field(default_factory=dict)
    ours: list[str] = field(default_factory=list)
    other_numbers: set[str] = field(default_factory=set)
    unavailable: dict[str, str] = field(default_factory=dict)

    def add_kernels(self, setting: Setting, call: Result) -> None:
        """Each kernel there is for this op, as a system; the reason where it cannot run here."""
        module = setting.extension or extension_or_none()
        for kernel in (name for name in KERNELS if name.split("/")[0] == self.op):
            if module is None or not runs_on(module, setting.device):
                self.unavailable[kernel] = f"no compiled module with kernels for the device type {setting.device.type}"
            elif not hasattr(module, kernel.replace("/", "_")):
                self.unavailable[kernel] = "the compiled module does not have it"
            else:
                self.systems[kernel] = partial(_with_kernels, setting, kernel, call)
                self.ours.append(kernel)

    def add_composition(self, setting: Setting, call: Result) -> None:
        """The op as torch ops, as it runs where there is no kernel."""
        self.systems[f"torch composition of {self.op}, eager"] = partial(_with_kernels, setting, "none", call)

    def add_plain(self, setting: Setting, call: Result, what: str = "plain torch") -> None:
        """What a user of torch would write: eager and, if the setting says so, through torch.compile."""
        self.systems[f"{what}, eager"] = call
        if setting.compiled:
            self.systems[f"{what}, torch.compile"] = torch.compile(call, dynamic=False)


def _with_kernels(setting: Setting, name: str, call: Result) -> Tensor | tuple[Tensor, ...]:
    with setting.kernels(name):
        return call()


def case_name(op: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Like kernel/paged_attention/1196x35880x24x128/bf16."""
    return f"kernel/{op}/{'x'.join(map(str, shape))}/{DTYPE_NAMES[dtype]}"


@torch.no_grad()
def check(case: Case, document: Document) -> dict[str, Result]:
    """The systems that run and agree with the first one that does; the others become failures in words."""
    for system, reason in case.unavailable.items():
        document.fail(case.name, system, reason)
    running: dict[str, Result] = {}
    expected: tuple[Tensor, ...] | None = None
    for system, call in case.systems.items():
        try:
            result = _tensors(call())
            if expected is None and system not in case.other_numbers:
                require_finite(result)
                expected = tuple(tensor.clone() for tensor in result)
            elif expected is not None and system not in case.other_numbers:
                _require_agreement(result, expected, LARGEST_DIFFERENCE[case.dtype])
        except Exception as error:  # a library that does not do this shape is a result, too
            document.fail(case.name, system, error)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # an error that the context does not survive ends the process here
            continue
        running[system] = call
    return running


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def require_finite(result: tuple[Tensor, ...]) -> None:
    """Raise ValueError if the expected values [...] themselves are useless."""
    if not all(bool(tensor.isfinite().all()) for tensor in result):
        raise ValueError("the result has inf or nan")


def _require_agreement(result: tuple[Tensor, ...], expected: tuple[Tensor, ...], limit: float) -> None:
    for number, (tensor, other) in enumerate(zip(result, expected, strict=True)):
        difference = relative_l2(tensor, other.to(tensor.device))
        if not difference <= limit:  # nan never passes
            raise ValueError(
                f"output {number} differs by {difference:.2e} (relative, L2), at most {limit:.0e} expected"
            )


@torch.no_grad()
def run(
    case: Case,
    clock: Clock,
    ceilings: Ceilings,
    document: Document,
    *,
    modes: tuple[str, ...] = ("cold", "warm", "cold graph"),
    limit_s: float = 10.0,
    repetitions: int = 100,
) -> None:
    """Check and time a case, and write one result per system and mode.

    A mode is `cold` or `warm`, with ` graph` for calls that are replayed as a CUDA graph; `limit_s` is per mode.
    """
    running = check(case, document)
    for mode in modes:
        calls: dict[str, Call] = dict(running)
        if mode.endswith("graph"):
            calls = _capture(case, running, document)
        if calls:
            cold = mode.startswith("cold")
            samples = time_interleaved(calls, clock, cold_l2=cold, repetitions=repetitions, limit_s=limit_s)
            launch = "CUDA graph" if mode.endswith("graph") else "stream"
            for result in results(case, samples, ceilings, launch):
                document.add("results", result)


def _capture(case: Case, running: Mapping[str, Result], document: Document) -> dict[str, Call]:
    graphs: dict[str, Call] = {}
    for system, call in running.items():
        try:
            graphs[system] = captured(call)
        except Exception as error:
            document.fail(case.name, f"{system}, as a CUDA graph", error)
            torch.cuda.synchronize()
    return graphs


def results(case: Case, samples: Mapping[str, Sample], ceilings: Ceilings, launch: str) -> list[dict]:
    """Results of schema 1. The baseline is the fastest of those that do the same; ratio = its time / this time."""
    baselines = [system for system in samples if system not in case.ours and system not in case.other_numbers]
    best = min(baselines, key=lambda system: samples[system].p50) if baselines else None
    floor = ceilings.floor_ms(case.flops, case.moved_bytes)
    return [
        {
            "name": case.name,
            **sample.as_dict(),
            "tflops": case.flops / sample.p50 / 1e9,
            "tb_s": case.moved_bytes / sample.p50 / 1e9,
            "share_of_ceiling": floor / sample.p50,
            "baseline": best,
            "ratio": sample.times(samples[best]) if best else None,
            "what_ran": system,
            "launch": launch,
            "ours": system in case.ours,
        }
        for system, sample in samples.items()
    ]


def table(entries: list[dict]) -> str:
    """Results as text, one line each."""
    lines = [f"{'p50 ms':>10} {'p95 ms':>10} {'TFLOP/s':>8} {'share':>6} {'ratio':>6}  L2    what"]
    for entry in entries:
        cold = {True: "cold", False: "warm", None: "?"}[entry["cold_l2"]]
        ratio = f"{entry['ratio']:6.2f}" if entry["ratio"] is not None else "     -"
        lines.append(
            f"{entry['p50_ms']:10.4f} {entry['p95_ms']:10.4f} {entry['tflops']:8.1f} {entry['share_of_ceiling']:6.1%} "
            f"{ratio}  {cold:5} {entry['name']}: {entry['what_ran']} ({entry['launch']})"
        )
    return "\n".join(lines)


def benchmark_case(benchmark: Callable, case: Case, device: torch.device, document: Document) -> None:
    """A case under pytest-benchmark.

    pytest-benchmark knows only the wall clock, so what it times is one call of our first kernel (or, without one, of
    the first baseline) and the wait for the GPU. The event times of all systems go to its `extra_info`.
    """
    run(case, clock_for(device), ceilings_of(document, device), document)
    benchmark.extra_info["results"] = document.content["results"]
    benchmark.extra_info["failures"] = document.content["failures"]
    timed = {entry["what_ran"]: entry["p50_ms"] for entry in document.content["results"]}
    assert timed, document.content["failures"]
    system = next((name for name in case.ours if name in timed), next(iter(timed)))

    @torch.no_grad()
    def call_and_wait() -> None:
        case.systems[system]()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.extra_info["system"] = system
    benchmark.pedantic(call_and_wait, rounds=20, warmup_rounds=3)
