# SPDX-License-Identifier: Apache-2.0
"""Speed of `aapt-fast generate` beside another busy process, by the way in which idle threads wait.

Each round starts one process per way, in turn, on a quiet machine and beside a process of this script's own that keeps
one core busy:
    spinning       libgomp's default: a waiting thread spins for milliseconds (GOMP_SPINCOUNT=300000)
    aapt-fast      the command line's default: it sleeps after microseconds (GOMP_SPINCOUNT=1000)
    sleeping       it sleeps at once (OMP_WAIT_POLICY=passive)
    one thread     there is no second one (OMP_NUM_THREADS=1)

    python -m bench.bench_busy [--rounds N] [--frames N]           a table, then the document

Also: the seconds of `aapt-fast --help`, process start included.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from aapt_fast.profiling.document import result
from aapt_fast.profiling.timing import Sample
from bench.harness.program import ROOT, finish, open_document, parser

WAYS = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "aapt-fast": {},
    "sleeping": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BASELINE = "spinning"
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def video_fps(way: str, frames: int) -> float:
    """Run `aapt-fast generate` in the given way; returns the video frames per second of its steps alone."""
    variables = {name: value for name, value in os.environ.items() if name not in CHOICES} | WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "aapt_fast",
            "generate",
            "--quiet",
            "--frames",
            str(frames),
            "--scale",
            "1",
        ]
        done = subprocess.run(
            [*command, "--out", f"{folder}/x"], env=variables, cwd=ROOT, check=True, capture_output=True, text=True
        )
    return json.loads(done.stdout.splitlines()[-1])["step_fps"]


def measure(rounds: int, frames: int) -> list[dict[str, Any]]:
    """Make one result per way and neighbour."""
    places = {"quiet": contextlib.nullcontext, "beside a busy process": busy_process}
    samples: dict[tuple[str, str], list[float]] = {(place, way): [] for place in places for way in WAYS}
    for _ in range(rounds):
        for place, neighbour in places.items():
            for way in WAYS:
                with neighbour():
                    samples[place, way].append(4e3 / video_fps(way, frames))
    timed = {key: Sample(tuple(times), None, "wall clock") for key, times in samples.items()}
    return [
        result(
            f"generate/mini-person/{place}/{way}",
            sample,
            way,
            baseline=BASELINE,
            ratio=sample.times(timed[place, BASELINE]),
            video_fps=4e3 / sample.p50,
        )
        for (place, way), sample in timed.items()
    ]


def help_seconds(repetitions: int = 5) -> float:
    """Time `aapt-fast --help`, the median of whole processes."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "aapt_fast", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--frames", type=int, default=120, help="video frames of each process")
    arguments = options.parse_args()
    document = open_document(arguments.out)
    for entry in measure(arguments.rounds, arguments.frames):
        document.add("results", entry)
        print(f"{entry['name']:52} {entry['video_fps']:8.1f} video frames per second, {entry['ratio']:5.2f} times")
    facts = {"help_s": help_seconds()}
    print(facts)
    document.set(**facts)
    finish(document)


if __name__ == "__main__":
    main()
