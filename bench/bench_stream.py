# SPDX-License-Identifier: Apache-2.0
"""Speed of the bundled model on this machine, end to end: control in, four video frames out.

Two systems make the same frames, in turn, step after step:
    aapt_fast    `StreamSession.step`: paged cache, streaming decoder, uint8 frames
    plain cache  the same networks over the growing cache of training (keys and values concatenated every step)

Also: seconds from process start to the first four frames, and memory after 400 and after 2,000 video frames.

    python -m bench.bench_stream [--steps N] [--dtype float32|bfloat16]    a table, then the document
    pytest bench/bench_stream.py                                           the same systems under pytest-benchmark
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import aapt_fast
from aapt_fast.profiling.document import result
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import Camera, forward_kinematics
from bench.baselines.plain_cache import plain_cache_stream
from bench.harness.program import ROOT, finish, open_document, parser
from bench.harness.timing import Stream, time_streams

WARM_UP = 12  # steps until the window is full and the sink has left it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS, BASELINE = "aapt_fast", "plain cache"


def poses(steps: int) -> Tensor:
    """Make image points [1 + 4 steps, 19, 3] of a medley of motions."""
    return Camera().project(forward_kinematics(random_motion(1 + 4 * steps, seed=0)))


def session_stream(dtype: torch.dtype, points: Tensor) -> Stream:
    """Steps of a session under the image points [1 + 4 steps, 19, 3]."""
    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=dtype)
    image = aapt_fast.load_gallery("mini-person")[0].image
    session = aapt_fast.StreamSession(model, image, image_control=points[0], seed=0)
    return lambda step: session.step(points[1 + 4 * step : 5 + 4 * step])


def plain_stream(dtype: torch.dtype, points: Tensor) -> Stream:
    """Steps of the baseline under the image points [1 + 4 steps, 19, 3]."""
    image = torch.from_numpy(aapt_fast.load_gallery("mini-person")[0].image.copy())
    return plain_cache_stream(aapt_fast.StreamModel.from_pretrained("mini-person", dtype=dtype), image, points)


SYSTEMS: dict[str, Callable[[torch.dtype, Tensor], Stream]] = {OURS: session_stream, BASELINE: plain_stream}


def measure(dtype: str, steps: int) -> list[dict[str, Any]]:
    """Make one result per system."""
    points = poses(WARM_UP + steps)
    streams = {name: build(DTYPES[dtype], points) for name, build in SYSTEMS.items()}
    samples, differences = time_streams(streams, OURS, warm_up=WARM_UP, steps=steps)
    return [
        result(
            f"stream/mini-person/96x96/{dtype}/{name}",
            sample,
            name,
            baseline=BASELINE,
            ratio=sample.times(samples[BASELINE]),
            video_fps=4e3 / sample.p50,
            largest_pixel_difference_to_ours=differences[name],
        )
        for name, sample in samples.items()
    ]


def first_frame_seconds() -> float:
    """Time a whole `aapt-fast generate --frames 4`, process start and file included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "aapt_fast", "generate", "--frames", "4", "--out", f"{folder}/x"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def resident_megabytes(video_frames: tuple[int, ...]) -> dict[int, float]:
    """Measure the resident memory of a new process after so many streamed video frames."""
    program = (
        "import sys, torch\n"
        "from bench.bench_stream import poses, session_stream\n"
        "marks = [int(a) // 4 for a in sys.argv[1:]]\n"
        "step = session_stream(torch.float32, poses(max(marks)))\n"
        "for number in range(max(marks)):\n"
        "    step(number)\n"
        "    if number + 1 in marks:\n"
        "        pages = int(open('/proc/self/statm').read().split()[1])\n"
        "        print(4 * (number + 1), pages * 4096 / 2**20)\n"
    )
    command = [sys.executable, "-c", program, *map(str, video_frames)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return {int(line.split()[0]): round(float(line.split()[1]), 1) for line in printed.splitlines()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--dtype", choices=DTYPES, action="append")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    document = open_document(arguments.out)
    print(f"{'name':48} {'p50 ms':>8} {'p95 ms':>8} {'fps':>8} {'ratio':>7}")
    for dtype in arguments.dtype or DTYPES:
        for entry in measure(dtype, arguments.steps):
            document.add("results", entry)
            times = f"{entry['p50_ms']:8.2f} {entry['p95_ms']:8.2f} {entry['video_fps']:8.1f}"
            print(f"{entry['name']:48} {times} {entry['ratio']:7.2f}")
    facts = {"process_to_first_frames_s": first_frame_seconds(), "resident_mb": resident_megabytes((400, 2000))}
    print(facts)
    document.set(**facts)
    finish(document)


@pytest.mark.parametrize("system", SYSTEMS)
def test_step(benchmark, system: str) -> None:
    rounds = 20
    step = SYSTEMS[system](torch.float32, poses(WARM_UP + rounds + 1))
    for number in range(WARM_UP):
        step(number)
    numbers = iter(range(WARM_UP, WARM_UP + rounds + 1))
    video = benchmark.pedantic(lambda: step(next(numbers)), rounds=rounds)
    assert video.shape == (4, 96, 96, 3)


if __name__ == "__main__":
    main()
