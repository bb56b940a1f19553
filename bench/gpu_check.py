# SPDX-License-Identifier: Apache-2.0
"""The stages of gpu_check.sh, which installs the package and then runs this.

    python -m bench.gpu_check --out FOLDER [--quick]    every stage, one after the other; 1 if one of them failed
    python -m bench.gpu_check --plan [--quick]          the stages and their time limits

Every stage runs in processes with a time limit, none stops the next, and the document FOLDER/gpu_check.json has the
findings of a stage when it ends. `--rehearse` runs the same on any machine, with tiny shapes and emulated kernels; its
document says so.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aapt_fast.profiling.document import Document, commit
from aapt_fast.verification.cases import SUITES
from aapt_fast.verification.processes import Outcome, end_all, run_limited
from bench.harness.processes import WRONG_KERNEL, Counts, counted
from bench.harness.program import ROOT

TOTAL_S, QUICK_TOTAL_S = 525, 225
DOCUMENT, LOG = "gpu_check.json", "gpu_check.log"
AT_ONCE = 4  # test files side by side; timings always run alone
ATTENTION = "paged_attention"
ATTENTION_SHARE = 0.45  # of the time for kernels
SANITIZER_ERROR = 99

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Run:
    """Options and folders that all stages share."""

    out: Path
    scratch: Path
    deadline: float  # of time.monotonic()
    quick: bool = False
    rehearse: bool = False
    emulated_build: Path | None = None

    @property
    def document(self) -> Document:
        """The document as it is on the disk now: the stages' processes write it, too."""
        return Document.open(self.out / DOCUMENT, "gpu_check")

    def module(self, name: str, *arguments: object, limit_s: float) -> Outcome:
        """Run a script of bench/ that adds to the document."""
        path = self.out / DOCUMENT
        return self.command([sys.executable, "-m", name, "--out", path, *arguments], limit_s)

    def command(self, command: Sequence[object], limit_s: float, environment: dict[str, str] | None = None) -> Outcome:
        """Run a command in the checkout, and append its output to the log."""
        words = [str(word) for word in command]
        sleepy = {"OMP_WAIT_POLICY": "passive"} if self.rehearse else {}  # idle threads leave the cores alone
        outcome = run_limited(words, limit_s, cwd=ROOT, environment={**sleepy, **(environment or {})})
        with (self.out / LOG).open("a") as log:
            print(f"$ {' '.join(words)}\n{outcome.output}[{outcome.status}, {outcome.seconds:.1f} s]\n", file=log)
        return outcome


@dataclass(frozen=True)
class Stage:
    """A stage and its limits in seconds; a quick run leaves out a stage whose quick limit is 0."""

    name: str
    limit_s: float
    quick_limit_s: float
    run: Callable[[Run, float], tuple[str, str]]  # (run, seconds) -> (status, detail)


def summary(outcome: Outcome) -> str:
    """`passed`, or the way it ended and the last line that it printed."""
    if outcome.status == PASSED:
        return PASSED
    lines = [line for line in outcome.output.splitlines() if line.strip()]
    return f"{outcome.status} after {outcome.seconds:.0f} s: {lines[-1][:200] if lines else 'no output'}"


def ended(outcome: Outcome) -> tuple[str, str]:
    """Status and detail of a stage that is one process."""
    return (PASSED, "") if outcome.status == PASSED else (FAILED, summary(outcome))


# ---- stages ----


def environment(run: Run, limit_s: float) -> tuple[str, str]:
    """The report of `aapt-fast doctor`."""
    outcome = run.command([sys.executable, "-m", "aapt_fast", "doctor", "--json"], limit_s)
    try:
        report = json.loads(outcome.output.splitlines()[-1])
    except (ValueError, IndexError):
        return FAILED, f"doctor: {summary(outcome)}"
    run.document.set(doctor=report)
    build = report.get("build", {})
    if not run.rehearse and not build.get("cuda"):
        return FAILED, f"the compiled module has no CUDA code: {build}"
    facts = [f"{key} {build[key]}" for key in ("compiler", "cuda_version", "cuda_archs") if build.get(key)]
    return PASSED, ", ".join(facts)


def kernel_tests(root: Path) -> list[Path]:
    """List the files of tests/kernels that run on a GPU, too: a test there takes the fixture `target` or `hopper`."""
    takes_target = re.compile(r"^def test_\w+\([^)]*\b(target|hopper)\b", re.MULTILINE)
    files = sorted((root / "tests" / "kernels").glob("test_*.py"))
    return [file for file in files if takes_target.search(file.read_text())]


def probes(run: Run, limit_s: float) -> tuple[str, str]:
    """The probes of single instructions do what the emulation says."""
    return run_tests(run, [file for file in kernel_tests(ROOT) if file.name.startswith("test_arch")], limit_s)


def tests(run: Run, limit_s: float) -> tuple[str, str]:
    """The tests of kernels, and tests/gpu."""
    files = [file for file in kernel_tests(ROOT) if not file.name.startswith("test_arch")]
    # tests/gpu/test_suites.py would run the files of tests/kernels once more.
    files += [file for file in sorted((ROOT / "tests" / "gpu").glob("test_*.py")) if file.name != "test_suites.py"]
    return run_tests(run, files, limit_s)


def run_tests(run: Run, files: list[Path], limit_s: float) -> tuple[str, str]:
    """Run each file in a process of its own; the counts go to `tests` in the document."""
    if not files:
        return SKIPPED, "there are no such tests"
    until = time.monotonic() + limit_s
    target = ["--target", "cuda"]
    if run.rehearse:
        target = ["--emulated-build", str(run.emulated_build)] if run.emulated_build else []

    def one(file: Path) -> tuple[Outcome, Counts]:
        junit = run.scratch / f"{file.stem}.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={junit}"]
        outcome = run.command([*command, str(file.relative_to(ROOT)), *target], max(until - time.monotonic(), 1))
        return outcome, counted(junit)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(files, pool.map(one, files), strict=True))
    document = run.document
    entries, failed = document.content.get("tests", {}), []
    for file, (outcome, counts) in found.items():
        good = outcome.status == PASSED and (counts.good or counts.only_skipped)
        entries[str(file.relative_to(ROOT))] = {
            "good": good,
            "passed": counts.passed,
            "failed": counts.failed,
            "skipped": counts.skipped,
            "seconds": round(outcome.seconds, 1),
            "ended": summary(outcome),
        }
        failed += [] if good else [file.name]
    document.set(tests=entries)
    if failed:
        return FAILED, f"{len(failed)} of {len(files)} files: {', '.join(failed)}"
    passed = sum(counts.passed for _, counts in found.values())
    skipped = sum(counts.skipped for _, counts in found.values())
    return PASSED if passed else SKIPPED, f"{len(files)} files, {passed} tests passed, {skipped} skipped"


def ceilings(run: Run, limit_s: float) -> tuple[str, str]:
    """Matrix and copy rates, which later stages refer to."""
    return ended(run.module("bench.measure_ceilings", "--only", 0, *_tiny(run), limit_s=limit_s))


def kernels(run: Run, limit_s: float) -> tuple[str, str]:
    """Every kernel against its best baselines.

    Attention has a process of its own, all others share one. Ops behind one that ended the process run in a new one.
    """
    until, wrong, pending = time.monotonic() + limit_s, [], list(SUITES)
    options = [*(["--quick"] if run.quick else []), *_tiny(run)]
    if run.rehearse and run.emulated_build:
        options += ["--emulated-build", str(run.emulated_build)]
    while pending:
        left = until - time.monotonic()
        if left < 2:
            wrong.append(f"{', '.join(pending)}: no time left")
            break
        ops, share = ([ATTENTION], ATTENTION_SHARE) if pending[0] == ATTENTION else (pending, 1.0)
        only = [word for op in ops for word in ("--only", op)]
        outcome = run.module("bench.bench_kernels", *only, *options, limit_s=left * share)
        if outcome.status != PASSED:
            wrong.append(f"{', '.join(ops)}: {summary(outcome)}")
        complete = outcome.returncode in (0, WRONG_KERNEL)
        pending = pending[len(ops) if complete else _begun(run.document, ops) :]
    return (FAILED, "; ".join(wrong)) if wrong else (PASSED, f"{len(SUITES)} ops")


def _begun(document: Document, ops: list[str]) -> int:
    """The number of ops, in their order, up to the last one that has an entry in the document; at least 1."""
    entries = [*document.content["results"], *document.content["failures"]]
    seen = {entry["name"].split("/")[1] for entry in entries if entry["name"].startswith("kernel/")}
    return max([number for number, op in enumerate(ops, 1) if op in seen], default=1)


def frame(run: Run, limit_s: float) -> tuple[str, str]:
    """Whole steps of the 8 B preset and of mini-person."""
    options: list[object] = ["--limit", 0 if run.rehearse else min(max(limit_s / 12, 1), 5)]
    if run.rehearse:
        options += ["--preset", "nano", "--steps", 5]
    return ended(run.module("bench.bench_frame", *options, limit_s=limit_s))


def measurements(run: Run, limit_s: float) -> tuple[str, str]:
    """Assumptions of the design about the hardware."""
    only = [word for number in range(1, 7) for word in ("--only", number)]
    return ended(run.module("bench.measure_ceilings", *only, *_tiny(run), limit_s=limit_s))


def sanitizer(run: Run, limit_s: float) -> tuple[str, str]:
    """One call of every kernel on tiny shapes under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return SKIPPED, "compute-sanitizer is not in PATH"

    def one(name: str) -> Outcome:
        options = ["--tiny", "--check", "--out", run.scratch / f"{name}.json"]
        program = [sys.executable, "-m", "bench.bench_kernels", *options]
        base = [tool, "--tool", name, "--error-exitcode", SANITIZER_ERROR]
        # Without torch's cache every tensor is an allocation of its own, so that memcheck sees its end.
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        until = time.monotonic() + limit_s
        outcome = run.command([*base, "--kernel-regex", "kns=aapt", *program], limit_s, apart)
        if "kernel-regex" in outcome.output and outcome.seconds < 5:  # a version that does not know the option
            outcome = run.command([*base, *program], max(until - time.monotonic(), 1), apart)
        return outcome

    names = ("memcheck", "racecheck")
    with ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    wrong = [f"{name}: {summary(outcome)}" for name, outcome in found.items() if outcome.status != PASSED]
    return (FAILED, "; ".join(wrong)) if wrong else (PASSED, ", ".join(names))


def _tiny(run: Run) -> list[str]:
    return ["--tiny"] if run.rehearse else []


STAGES = (
    Stage("environment", 25, 20, environment),
    Stage("probes", 40, 30, probes),
    Stage("tests", 100, 55, tests),
    Stage("ceilings", 20, 15, ceilings),
    Stage("kernels", 95, 35, kernels),
    Stage("frame", 80, 40, frame),
    Stage("measurements", 75, 0, measurements),
    Stage("sanitizer", 50, 0, sanitizer),
)
INSTALL_S, QUICK_INSTALL_S = 40, 30
BUILD_S = 200
"""Seconds for a build from source instead of a wheel; the total stays, and the last stages get the rest."""


# ---- the program ----


def plan(quick: bool) -> str:
    """Describe the stages with their limits."""
    install = QUICK_INSTALL_S if quick else INSTALL_S
    lines = [f"  {'install':14} {install:4} s  from a wheel; up to {BUILD_S} s from source, at the others' expense"]
    for stage in STAGES:
        limit = stage.quick_limit_s if quick else stage.limit_s
        what = (stage.run.__doc__ or "").splitlines()[0]
        lines.append(f"  {stage.name:14} " + (f"{limit:4} s  {what}" if limit else "   -    left out of a quick run"))
    return "\n".join([f"at most {QUICK_TOTAL_S if quick else TOTAL_S} s in all", *lines])


def run_stages(run: Run, stages: Sequence[Stage]) -> bool:
    """Run the stages one after the other; True if none failed.

    A stage gets its limit and all the time that those before it have saved, but never what later ones need.
    """
    good = True
    limits = [stage.quick_limit_s if run.quick else stage.limit_s for stage in stages]
    for number, stage in enumerate(stages):
        begun = time.monotonic()
        left = run.deadline - begun
        limit = max(min(limits[number], left), left - sum(limits[number + 1 :]))
        if not limits[number]:
            status, detail = SKIPPED, "left out of a quick run"
        elif left < 2:
            status, detail = SKIPPED, "no time left"
            good = False
        else:
            try:
                status, detail = stage.run(run, limit)
            except Exception as error:  # a mistake in one stage must not cost the others
                status, detail = FAILED, f"{type(error).__name__}: {error}"
        good = good and status != FAILED
        seconds = round(time.monotonic() - begun, 1)
        entry = {"name": stage.name, "status": status, "seconds": seconds, "limit_s": round(limit, 1), "detail": detail}
        run.document.add("stages", entry)
        print(f"{stage.name:14} {status:8} {seconds:6.1f} s  {detail}", flush=True)
    return good


def end_processes(number: int, _: object) -> None:
    """End all processes and this one; the document has everything up to here."""
    end_all()
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the document and the log")
    parser.add_argument("--plan", action="store_true", help="print the stages and their limits, and run nothing")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="try the stages out on any machine")
    parser.add_argument("--emulated-build", type=Path, help="of a rehearsal: the folder with the emulated module")
    parser.add_argument("--commit", help="of the checkout, where git cannot say it")
    parser.add_argument("--elapsed", type=float, default=0.0, help="seconds that the installation took")
    arguments = parser.parse_args()
    if arguments.plan:
        print(plan(arguments.quick))
        return
    out = arguments.out.resolve()
    for name in (DOCUMENT, LOG):
        (out / name).unlink(missing_ok=True)
    kind = f"{' --quick' if arguments.quick else ''}{' --rehearse' if arguments.rehearse else ''}"
    facts = {"commit": arguments.commit or commit(ROOT), **({"rehearsal": True} if arguments.rehearse else {})}
    document = Document.new(f"bench/gpu_check.sh{kind}", out / DOCUMENT, **facts).content
    print(f"gpu: {document['gpu']}, driver {document['driver']}, torch {document['torch']}")
    print(plan(arguments.quick), flush=True)
    signal.signal(signal.SIGTERM, end_processes)
    total = QUICK_TOTAL_S if arguments.quick else TOTAL_S
    deadline = time.monotonic() + total - arguments.elapsed
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(out, Path(scratch), deadline, arguments.quick, arguments.rehearse, arguments.emulated_build)
        good = run_stages(run, STAGES)
    print(f"{out / DOCUMENT}: {'every stage passed or was left out' if good else 'not every stage passed'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
