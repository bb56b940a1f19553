# SPDX-License-Identifier: Apache-2.0
"""The stages of gpu_check.sh, which installs the package and then runs this.

    python -m bench.gpu_check plan [--quick]                what would run, and its time limits
    python -m bench.gpu_check begin --out FOLDER            is there a GPU? 3 if not. Begins FOLDER/gpu_check.json
    python -m bench.gpu_check run --out FOLDER [--quick]    every stage, one after the other; 1 if one of them failed

Every stage runs in processes with a time limit, none stops the next, and what a stage has found is in the document
when it ends. `--rehearse` runs the same on any machine, with tiny shapes and emulated kernels; its document says so.
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
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.harness.document import ROOT, Document, gpu
from bench.harness.processes import WRONG_KERNEL, Counts, Outcome, counted, end_all, run_limited

NO_GPU = 3
TOTAL_S, QUICK_TOTAL_S = 525, 225
DOCUMENT = "gpu_check.json"
AT_ONCE = 4  # test files side by side; timings always run alone
ATTENTION_SHARE = 0.45  # of the time for kernels
SANITIZER_ERROR = 99

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Stage:
    """`limit_s` and `quick_limit_s` in seconds; a stage without a quick limit is left out of a quick run."""

    name: str
    limit_s: float
    quick_limit_s: float
    log: str
    run: Callable[[Run, float], tuple[str, str]]  # (run, seconds) -> (status, detail)


@dataclass
class Run:
    """What all stages know."""

    out: Path
    scratch: Path
    quick: bool
    rehearse: bool
    emulated_build: Path | None
    deadline: float  # of time.monotonic()
    log: Path

    @property
    def document(self) -> Document:
        """As it is on the disk now: the stages' processes write it, too."""
        return Document.open(self.out / DOCUMENT, "gpu_check")

    def module(self, name: str, *arguments: object, limit_s: float) -> Outcome:
        """Run a program of bench/ that adds to the document."""
        path = self.out / DOCUMENT
        return self.command([sys.executable, "-m", name, "--out", path, *arguments], limit_s)

    def command(self, command: Sequence[object], limit_s: float, environment: dict[str, str] | None = None) -> Outcome:
        """Run a command in the checkout, and put what it printed in the log of the stage."""
        words = [str(word) for word in command]
        sleepy = {"OMP_WAIT_POLICY": "passive"} if self.rehearse else {}  # idle threads leave the cores alone
        outcome = run_limited(words, limit_s, cwd=ROOT, environment={**sleepy, **(environment or {})})
        with self.log.open("a") as log:
            print(f"$ {' '.join(words)}\n{outcome.output}[{outcome.status}, {outcome.seconds:.1f} s]\n", file=log)
        return outcome


def summary(outcome: Outcome) -> str:
    """`passed`, or how it ended and the last line that it printed."""
    if outcome.status == PASSED:
        return PASSED
    lines = [line for line in outcome.output.splitlines() if line.strip()]
    return f"{outcome.status} after {outcome.seconds:.0f} s: {lines[-1][:200] if lines else 'no output'}"


# ---- stages ----


def environment(run: Run, limit_s: float) -> tuple[str, str]:
    """What is installed and what the machine has."""
    outcome = run.command([sys.executable, "-m", "aapt_fast.cli", "doctor", "--json"], limit_s)
    try:
        report = json.loads(outcome.output.splitlines()[-1])
    except (ValueError, IndexError):
        return FAILED, f"doctor: {summary(outcome)}"
    document = run.document
    document.set("environment", report)
    build = report.get("build", {})
    if not run.rehearse and not build.get("cuda"):
        return FAILED, f"the compiled module has no CUDA code: {build}"
    return PASSED, ", ".join(
        f"{key} {build[key]}" for key in ("compiler", "cuda_version", "cuda_archs") if build.get(key)
    )


def kernel_tests(root: Path) -> list[Path]:
    """The files of tests/kernels that run on a GPU, too: those with a test that takes the fixture `target`."""
    takes_target = re.compile(r"^def test_\w+\([^)]*\btarget\b", re.MULTILINE)
    files = sorted((root / "tests" / "kernels").glob("test_*.py"))
    return [file for file in files if takes_target.search(file.read_text())]


def test_files(probes: bool) -> list[Path]:
    """Files of tests/kernels: the probes of single instructions, or all others and tests/gpu."""
    chosen = [file for file in kernel_tests(ROOT) if file.name.startswith("test_arch") == probes]
    # tests/gpu/test_suites.py would run the files of tests/kernels once more.
    others = [file for file in sorted((ROOT / "tests" / "gpu").glob("test_*.py")) if file.name != "test_suites.py"]
    return chosen if probes else chosen + others


def run_tests(run: Run, files: list[Path], limit_s: float) -> tuple[str, str]:
    """Each file in a process of its own; the counts go to `tests` in the document."""
    if not files:
        return SKIPPED, "there are no such tests"
    until = time.monotonic() + limit_s
    target = ["--target", "cuda"]
    if run.rehearse:
        target = ["--emulated-build", str(run.emulated_build)] if run.emulated_build else []

    from aapt_fast.ops.kernels import KERNELS  # not at the top: `begin` runs before the package is installed

    def junit_of(file: Path) -> Path:
        return run.scratch / f"{file.stem}.xml"

    def one(file: Path) -> tuple[Path, Outcome, Counts]:
        junit = junit_of(file)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={junit}"]
        outcome = run.command([*command, str(file.relative_to(ROOT)), *target], max(until - time.monotonic(), 1))
        return file, outcome, counted(junit)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(one, files))
    document, failed = run.document, []
    tests = document.content.get("tests", {})
    for file, outcome, counts in ended:
        good = outcome.status == PASSED and counts.good
        by_kernel = {kernel: counted(junit_of(file), kernel) for kernel in KERNELS if junit_of(file).exists()}
        empty = outcome.status == PASSED and counts.only_skipped
        tests[str(file.relative_to(ROOT))] = {
            "good": good,
            "passed": counts.passed,
            "failed": counts.failed,
            "skipped": counts.skipped,
            "seconds": round(outcome.seconds, 1),
            "ended": summary(outcome),
            "kernels": {  # tests that have the name of a kernel in theirs
                kernel: {"passed": own.passed, "failed": own.failed}
                for kernel, own in by_kernel.items()
                if own.passed or own.failed
            },
        }
        if not good and not empty:
            failed.append(file.name)
    document.set("tests", tests)
    passed, skipped = (sum(getattr(counts, kind) for _, _, counts in ended) for kind in (PASSED, SKIPPED))
    if failed:
        return FAILED, f"{len(failed)} of {len(files)} files: {', '.join(failed)}"
    return PASSED if passed else SKIPPED, f"{len(files)} files, {passed} tests passed, {skipped} skipped"


def probes(run: Run, limit_s: float) -> tuple[str, str]:
    """Single instructions do what the emulation says."""
    return run_tests(run, test_files(probes=True), limit_s)


def tests(run: Run, limit_s: float) -> tuple[str, str]:
    """The kernels, and whole steps."""
    return run_tests(run, test_files(probes=False), limit_s)


def ceilings(run: Run, limit_s: float) -> tuple[str, str]:
    """Matrix and copy rates, which later stages refer to."""
    return _ended(run.module("bench.measure_ceilings", "--only", 0, *_tiny(run), limit_s=limit_s))


def kernels(run: Run, limit_s: float) -> tuple[str, str]:
    """Every kernel against its best baselines.

    Attention has a process of its own, all others share one. Ops behind one that ended the process run in a new one.
    """
    from bench.kernels.__main__ import OPS  # not at the top: `begin` runs before the package is installed

    until, wrong = time.monotonic() + limit_s, []
    options = [*(["--quick"] if run.quick else []), *_tiny(run)]
    if run.rehearse and run.emulated_build:
        options += ["--emulated-build", str(run.emulated_build)]
    groups = [[OPS[0]], list(OPS[1:])]
    while groups:
        pending = groups.pop(0)
        left = until - time.monotonic()
        if left < 2:
            wrong.append(f"{', '.join(pending)}: no time left")
            continue
        earlier = _entries(run.document)
        only = [word for op in pending for word in ("--only", op)]
        outcome = run.module("bench.kernels", *only, *options, limit_s=left * ATTENTION_SHARE if groups else left)
        if outcome.status != PASSED:
            wrong.append(f"{', '.join(pending)}: {summary(outcome)}")
        if outcome.returncode not in (0, WRONG_KERNEL):
            new = _entries(run.document) - earlier
            last = max((number for number, op in enumerate(pending) if new[op]), default=0)
            groups += [pending[last + 1 :]] if pending[last + 1 :] else []
    return (FAILED, "; ".join(wrong)) if wrong else (PASSED, f"{len(OPS)} ops")


def _entries(document: Document) -> Counter[str]:
    """How many results and failures each op has in the document."""
    names = [entry["name"].split("/") for section in ("results", "failures") for entry in document.content[section]]
    return Counter(parts[1] for parts in names if parts[0] == "kernel")


def frame(run: Run, limit_s: float) -> tuple[str, str]:
    """Whole steps of the 8 B preset and of mini-person."""
    options = ["--limit", min(max(limit_s / 5, 2), 15) if not run.rehearse else 1]
    if run.rehearse:
        options += ["--preset", "nano", "--steps", 5]
    return _ended(run.module("bench.bench_frame", *options, limit_s=limit_s))


def measurements(run: Run, limit_s: float) -> tuple[str, str]:
    """What the design assumes about the hardware."""
    only = [word for number in range(1, 8) for word in ("--only", number)]
    return _ended(run.module("bench.measure_ceilings", *only, *_tiny(run), limit_s=limit_s))


def sanitizer(run: Run, limit_s: float) -> tuple[str, str]:
    """One call of every kernel on tiny shapes under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return SKIPPED, "compute-sanitizer is not in PATH"

    def one(name: str) -> Outcome:
        program = [sys.executable, "-m", "bench.kernels", "--tiny", "--check", "--out", run.scratch / f"{name}.json"]
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
        ended = dict(zip(names, pool.map(one, names), strict=True))
    wrong = [f"{name}: {summary(outcome)}" for name, outcome in ended.items() if outcome.status != PASSED]
    return (FAILED, "; ".join(wrong)) if wrong else (PASSED, ", ".join(names))


def _ended(outcome: Outcome) -> tuple[str, str]:
    return (PASSED, "") if outcome.status == PASSED else (FAILED, summary(outcome))


def _tiny(run: Run) -> list[str]:
    return ["--tiny"] if run.rehearse else []


STAGES = (
    Stage("environment", 25, 20, "environment.log", environment),
    Stage("probes", 40, 30, "tests.log", probes),
    Stage("tests", 100, 55, "tests.log", tests),
    Stage("ceilings", 20, 15, "measurements.log", ceilings),
    Stage("kernels", 105, 35, "kernels.log", kernels),
    Stage("frame", 70, 40, "frame.log", frame),
    Stage("measurements", 75, 0, "measurements.log", measurements),
    Stage("sanitizer", 50, 0, "sanitizer.log", sanitizer),
)
INSTALL_S, QUICK_INSTALL_S = 40, 30
BUILD_S = 200
"""A build from source instead of a wheel takes longer; the total stays, and the last stages get what is left."""


def plan(quick: bool) -> str:
    """The stages with their limits, in words."""
    install = QUICK_INSTALL_S if quick else INSTALL_S
    lines = [f"  {'install':14} {install:4} s  from a wheel; up to {BUILD_S} s from source, at the others' expense"]
    for stage in STAGES:
        limit = stage.quick_limit_s if quick else stage.limit_s
        what = (stage.run.__doc__ or "").splitlines()[0]
        lines.append(f"  {stage.name:14} " + (f"{limit:4} s  {what}" if limit else "   -    left out of a quick run"))
    return "\n".join([f"at most {QUICK_TOTAL_S if quick else TOTAL_S} s in all", *lines])


def run_stages(run: Run, stages: Sequence[Stage] = STAGES) -> bool:
    """Run the stages one after the other; True if none failed.

    A stage gets its limit and all the time that those before it have saved, but never what later ones need.
    """
    good = True
    limits = [stage.quick_limit_s if run.quick else stage.limit_s for stage in stages]
    for number, stage in enumerate(stages):
        begun = time.monotonic()
        left = run.deadline - begun
        limit = max(min(limits[number], left), left - sum(limits[number + 1 :]))
        run.log = run.out / stage.log
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


# ---- the program ----


def begin(arguments: argparse.Namespace) -> int:
    """Start the document; 3 if there is no GPU to check."""
    command = f"bench/gpu_check.sh{' --quick' if arguments.quick else ''}{' --rehearse' if arguments.rehearse else ''}"
    path = arguments.out / DOCUMENT
    path.unlink(missing_ok=True)
    for stage in STAGES:
        (arguments.out / stage.log).unlink(missing_ok=True)
    document = Document.create(path, command, arguments.commit, arguments.rehearse)
    if gpu() is None and not arguments.rehearse:
        why = f"torch {torch.__version__} finds no GPU (built for CUDA {torch.version.cuda or 'none'})"
        driver = document.content["driver"]
        why += f", though nvidia-smi answers (driver {driver})" if driver else ", and nvidia-smi does not answer"
        document.add("stages", {"name": "gpu", "status": FAILED, "seconds": 0.0, "limit_s": 0, "detail": why})
        print(f"no GPU: {why}. Nothing was checked; {path} says so.")
        return NO_GPU
    print(f"gpu: {document.content['gpu']}, driver {document.content['driver']}, torch {document.content['torch']}")
    print(plan(arguments.quick), flush=True)
    return 0


def asked_to_end(number: int, _: object) -> None:
    """Leave no process behind; the document has everything up to here."""
    end_all()
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["plan", "begin", "run"])
    parser.add_argument("--out", type=Path, help="folder for the document and the logs")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="try the stages out on any machine")
    parser.add_argument("--emulated-build", type=Path, help="of a rehearsal: the folder with the emulated module")
    parser.add_argument("--commit", help="of the checkout, where git cannot say it")
    parser.add_argument("--elapsed", type=float, default=0.0, help="seconds that the installation took")
    parser.add_argument("--stage", choices=[stage.name for stage in STAGES], action="append", help="only this one")
    arguments = parser.parse_args()
    if arguments.action == "plan":
        print(plan(arguments.quick))
        return
    if arguments.out is None:
        parser.error("--out is needed")
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.action == "begin":
        sys.exit(begin(arguments))
    total = QUICK_TOTAL_S if arguments.quick else TOTAL_S
    stages = [stage for stage in STAGES if not arguments.stage or stage.name in arguments.stage]
    signal.signal(signal.SIGTERM, asked_to_end)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(
            out=arguments.out,
            scratch=Path(scratch),
            quick=arguments.quick,
            rehearse=arguments.rehearse,
            emulated_build=arguments.emulated_build,
            deadline=time.monotonic() + total - arguments.elapsed,
            log=arguments.out / "environment.log",
        )
        good = run_stages(run, stages)
    print(f"{arguments.out / DOCUMENT}: {'every stage passed or was left out' if good else 'not every stage passed'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
