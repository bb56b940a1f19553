# SPDX-License-Identifier: Apache-2.0
"""Speed of a stream of `mini-person` on a CPU beside another busy process, by the way in which its steps use threads.

Each round starts one process per way, in turn, on a quiet machine and beside a process of this script's own that keeps
one core busy:
    steps             two torch threads per operator, one step after the other: session.frames(player)
    steps, spinning   likewise, with libgomp's default for threads that wait (GOMP_SPINCOUNT=300000 instead of 1000)
    steps, one        likewise, one torch thread
    ahead             the next frames are computed ahead, in two threads with one torch thread each:
                      session.frames(player, ahead=True), which `aapt-fast generate` uses on a CPU

    python -m bench.bench_busy [--rounds N] [--frames N]           a table, then the document

The first frame is timed from the opening of the session. Also: the seconds of `aapt-fast --help`, process start
included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from aapt_fast.profiling.document import result
from aapt_fast.profiling.timing import Sample
from bench.harness.program import ROOT, finish, open_document, parser

WAYS = {
    "steps": {},
    "steps, spinning": {"GOMP_SPINCOUNT": "300000"},
    "steps, one": {"OMP_NUM_THREADS": "1"},
    "ahead": {},
}
BASELINE = "steps"
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


def stream(frames: int, ahead: bool) -> dict[str, Any]:
    """Take the steps of `frames` video frames in this process; returns its times."""
    import torch

    import aapt_fast
    from aapt_fast.models.files.placement import fast_dtype

    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=fast_dtype(torch.device("cpu")))
    first = aapt_fast.load_gallery("mini-person")[0]
    begun = time.perf_counter()
    with aapt_fast.StreamSession(model, first) as session:
        videos = session.frames(model.world.player(first), frames // 4, ahead=ahead)
        next(videos)
        first_frame_s, started = time.perf_counter() - begun, time.perf_counter()
        shown = sum(len(video) for video in videos)
        fps = shown / (time.perf_counter() - started)
        return {"fps": fps, "first_frame_s": first_frame_s, **session.latency.step_ms}


def measure_process(way: str, frames: int) -> dict[str, Any]:
    """The times of `stream`, in a process of its own."""
    defaults = {"GOMP_SPINCOUNT": "1000"}  # as the command line sets it
    variables = {name: value for name, value in os.environ.items() if name not in CHOICES} | defaults | WAYS[way]
    command = [sys.executable, "-m", "bench.bench_busy", "--one", way, "--frames", str(frames)]
    done = subprocess.run(command, env=variables, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int, frames: int) -> list[dict[str, Any]]:
    """Make one result per way and neighbour."""
    places = {"quiet": contextlib.nullcontext, "beside a busy process": busy_process}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(place, way): [] for place in places for way in WAYS}
    for _ in range(rounds):
        for place, neighbour in places.items():
            for way in WAYS:
                with neighbour():
                    found[place, way].append(measure_process(way, frames))
    timed = {
        key: Sample(tuple(4e3 / each["fps"] for each in times), None, "wall clock") for key, times in found.items()
    }
    return [
        result(
            f"stream/mini-person/{place}/{way}",
            timed[place, way],
            way,
            baseline=BASELINE,
            ratio=timed[place, way].times(timed[place, BASELINE]),
            video_fps=4e3 / timed[place, way].p50,
            **{name: statistics.median(each[name] for each in times) for name in ("first_frame_s", "p50", "p99")},
        )
        for (place, way), times in found.items()
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
    options.add_argument("--frames", type=int, default=240, help="video frames of each process")
    options.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.one is not None:
        print(json.dumps(stream(arguments.frames, arguments.one == "ahead")))
        return
    document = open_document(arguments.out)
    for entry in measure(arguments.rounds, arguments.frames):
        document.add("results", entry)
        speed = f"{entry['video_fps']:7.1f} video frames per second, {entry['ratio']:5.2f} times"
        waits = f"step p50 {entry['p50']:.1f} ms, p99 {entry['p99']:.1f} ms, first frame {entry['first_frame_s']:.2f} s"
        print(f"{entry['name']:52} {speed}, {waits}")
    facts = {"help_s": help_seconds()}
    print(facts)
    document.set(**facts)
    finish(document)


if __name__ == "__main__":
    main()
