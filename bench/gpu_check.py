# SPDX-License-Identifier: Apache-2.0
"""Everything about this checkout that needs a GPU, in one command without network, within ten minutes.

    bench/gpu_check.sh [--wheel FILE] [--out FOLDER] [--seconds N] [--commit NAME]
    bench/gpu_check.sh --rehearse [--emulated-build FOLDER]   the same on any machine: tiny shapes, an emulated kernel

`aapt-fast verify` and whole steps come first, so that a run that is cut off after four minutes has them. Every stage is
a process with a time limit, and none stops the next. FOLDER has what was found whenever a stage ends: gpu_check.json,
the output of all stages in gpu_check.log, and in cache/ the record of `aapt-fast verify`, which grows kernel by kernel.
Status: 0 every stage passed or was skipped, 1 one failed or had no time, 2 a mistake in the arguments, 3 no GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import aapt_fast
from aapt_fast.profiling.document import Document, commit
from aapt_fast.verification.cases import SUITES
from aapt_fast.verification.one_kernel import Job
from aapt_fast.verification.processes import Outcome, end_all, run_limited
from bench.harness.program import NO_GPU, ROOT

TOTAL_S = 570.0
DOCUMENT, LOG, VERIFIED = "gpu_check.json", "gpu_check.log", "verify.json"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
REHEARSED = "philox_normal/portable"
SANITIZER_ERROR = 99


@dataclass(frozen=True)
class Stage:
    """A program, or the reason why it is skipped, and its least time in seconds."""

    name: str
    limit_s: float
    command: list[str] | str


def stages(out: Path, rehearse: bool, emulated_build: Path) -> list[Stage]:
    """The stages in their order, the most important ones first; results go to the folder `out`."""
    python, document = [sys.executable, "-m"], ["--out", str(out / DOCUMENT)]
    verify = [*python, "aapt_fast", "verify", "--json", str(out / VERIFIED)]
    tiny = []
    frame = ["--limit", "3"]
    if rehearse:
        module = next(map(str, emulated_build.glob("_C.*.so")), None)
        job = Job(REHEARSED, "cpu", (SUITES["philox_normal"].tiny,), module, compiled=False)
        verify = [*python, "aapt_fast.verification.one_kernel", json.dumps(asdict(job)), str(out / VERIFIED)]
        tiny = ["--tiny", "--only", "0"]
        frame = ["--limit", "0", "--preset", "nano", "--steps", "5"]
    return [
        Stage("doctor", 20, [*python, "aapt_fast", "doctor", "--json"]),
        Stage("verify", 150, verify),
        Stage("frame", 60, [*python, "bench.bench_frame", *document, *frame]),
        Stage("memcheck", 45, sanitizer("memcheck", rehearse)),
        Stage("racecheck", 45, sanitizer("racecheck", rehearse)),
        Stage("tests", 150, [*python, "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "tests/gpu"]),
        Stage("hardware", 60, [*python, "bench.measure_ceilings", *document, *tiny]),
    ]


def sanitizer(tool: str, rehearse: bool) -> list[str] | str:
    """One call of every kernel on tiny shapes under a tool of compute-sanitizer, or the reason why there is none."""
    program = shutil.which("compute-sanitizer")
    if rehearse or program is None:
        return "an emulated kernel has no machine code" if rehearse else "compute-sanitizer is not in PATH"
    options = ["--tool", tool, "--error-exitcode", str(SANITIZER_ERROR), "--kernel-regex", "kns=aapt"]
    return [program, *options, sys.executable, "-m", "bench.bench_kernels", "--tiny", "--check"]


def run_stages(document: Document, todo: Sequence[Stage], deadline: float) -> bool:
    """Run the stages one after the other, until `deadline` of `time.monotonic()`; True if none failed.

    A stage gets its limit and all the time that those before it have saved, but never what later ones need.
    """
    good = True
    for number, stage in enumerate(todo):
        left = deadline - time.monotonic()
        limit = min(left, max(stage.limit_s, left - sum(later.limit_s for later in todo[number + 1 :])))
        seconds = 0.0
        if isinstance(stage.command, str):
            status, detail = SKIPPED, stage.command
        elif limit < 2:
            status, detail = FAILED, "no time left"
        else:
            outcome = run(document, stage.command, limit)
            document.content = Document.open(document.path, "").content  # the program may have added to it
            detail, seconds = keep(document, stage.name, outcome), outcome.seconds
            status = PASSED if outcome.status == PASSED else FAILED
        good = good and status != FAILED
        entry = {"name": stage.name, "status": status, "seconds": round(seconds, 1), "limit_s": round(limit, 1)}
        document.add("stages", {**entry, "detail": detail})
        print(f"{stage.name:10} {status:8} {seconds:6.1f} s  {detail}", flush=True)
    return good


def run(document: Document, command: list[str], limit_s: float) -> Outcome:
    """Run a program in the checkout, and append its output to the log beside the document."""
    folder = document.path.parent
    # Without torch's cache every tensor is an allocation of its own, so that memcheck sees its end.
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if "--error-exitcode" in command else {}
    outcome = run_limited(command, limit_s, cwd=ROOT, environment={"XDG_CACHE_HOME": str(folder / "cache"), **apart})
    with (folder / LOG).open("a") as log:
        print(f"$ {' '.join(command)}\n{outcome.output}[{outcome.status}, {outcome.seconds:.1f} s]\n", file=log)
    return outcome


def last_line(outcome: Outcome) -> str:
    """The last line that a program printed and, where it did not pass, the way it ended."""
    lines = [line for line in outcome.output.splitlines() if line.strip()]
    line = lines[-1][:200] if lines else "no output"
    return line if outcome.status == PASSED else f"{outcome.status} after {outcome.seconds:.0f} s: {line}"


def keep(document: Document, stage: str, outcome: Outcome) -> str:
    """Take the report of `doctor` and the findings of `verify` into the document; returns the outcome in words."""
    file = document.path.with_name(VERIFIED)
    if stage == "doctor" and outcome.status == PASSED:
        report = json.loads(outcome.output.splitlines()[-1])
        document.set(doctor=report)
        return ", ".join(f"{name} {value}" for name, value in report["build"].items())[:200]
    if stage == "verify" and file.exists():
        content = json.loads(file.read_text())
        document.set(verified=content.get("verified", content))
        if "on" in content.get("verified", {}):
            return f"on from now on: {', '.join(content['verified']['on']) or 'no kernel'}"
    return last_line(outcome)


def end_processes(number: int, _: object) -> None:
    """End all processes and this one; the folder has everything up to here."""
    end_all()
    sys.exit(128 + number)


def main() -> None:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for the document and the log")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for everything (default: %(default)s)")
    parser.add_argument("--commit", help="of the checkout, where git cannot say it")
    parser.add_argument("--rehearse", action="store_true", help="try the stages out on any machine")
    parser.add_argument("--emulated-build", type=Path, default=ROOT / "build/emulated", help="with --rehearse")
    parser.add_argument("--package", type=Path, help="folder that aapt_fast has to come from")
    arguments = parser.parse_args()
    found = Path(aapt_fast.__file__).parents[1]
    if arguments.package not in (None, found):  # an editable installation comes before PYTHONPATH
        parser.error(f"--wheel: expected a Python that imports aapt_fast from it, got one that takes {found}")
    if not arguments.rehearse and not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds none")
        sys.exit(NO_GPU)
    out = arguments.out.resolve()
    for name in (DOCUMENT, LOG, VERIFIED):
        (out / name).unlink(missing_ok=True)
    facts = {"commit": arguments.commit or commit(ROOT), **({"rehearsal": True} if arguments.rehearse else {})}
    document = Document.new("bench/gpu_check.sh", out / DOCUMENT, **facts)
    signal.signal(signal.SIGTERM, end_processes)
    good = run_stages(document, stages(out, arguments.rehearse, arguments.emulated_build), begun + arguments.seconds)
    print(f"{document.path}: {'every stage passed or was skipped' if good else 'not every stage passed'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
