# SPDX-License-Identifier: Apache-2.0
"""How fast does the bundled model stream on this machine, end to end: control in, four video frames out?

Two systems make the same frames, in turn, step after step:
    aapt_fast    `StreamSession.step`: paged cache, streaming decoder, uint8 frames
    plain cache  the same networks over the growing cache of training (keys and values concatenated every step)

Also: seconds from process start to the first four frames, and memory after 400 and after 2,000 video frames.

    python bench/bench_stream.py [--steps N] [--dtype float32|bfloat16]    table, then JSON as the last line
    pytest bench/bench_stream.py                                           the same systems under pytest-benchmark
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import aapt_fast
from aapt_fast.models.aapt.sampling import sample_frame
from aapt_fast.ops import implementations, philox_normal
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import Camera, forward_kinematics

WARM_UP = 12  # steps until the window is full and the sink has left it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = "aapt_fast"

Step = Callable[[int], Tensor]


def poses(steps: int) -> Tensor:
    """Image points [1 + 4 steps, 19, 3] of a medley of motions."""
    return Camera().project(forward_kinematics(random_motion(1 + 4 * steps, seed=0)))


def session_stream(dtype: torch.dtype, points: Tensor) -> Step:
    """Steps of a session."""
    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=dtype)
    image = aapt_fast.load_gallery("mini-person")[0].image
    session = aapt_fast.StreamSession(model, image, image_control=points[0], seed=0)
    return lambda step: session.step(points[1 + 4 * step : 5 + 4 * step])


def plain_stream(dtype: torch.dtype, points: Tensor) -> Step:
    """The same steps without pages: a cache that concatenates, and the decoder's stream."""
    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=dtype)
    pixels = torch.from_numpy(aapt_fast.load_gallery("mini-person")[0].image.copy())
    control = model.generator.config.control
    stream, cache, seed = model.vae.stream(), model.generator.new_cache(), torch.zeros(1, dtype=torch.int64)
    with torch.inference_mode():
        recycled = model.vae.encode((pixels.permute(2, 0, 1)[None, :, None] / 127.5 - 1).to(dtype))
        stream.decode(recycled)
    state = {"recycled": recycled}

    @torch.inference_mode()
    def step(number: int) -> Tensor:
        window = points[max(4 * number - 4, 0) : 5 + 4 * number]
        maps = clip_controls(window[None], control, model.generator.config.grid)[:, :, -1:].to(dtype)
        shape = tuple(state["recycled"].shape[i] for i in (1, 3, 4))
        noise = philox_normal(seed, torch.full((1,), number + 1), shape)[:, :, None].to(dtype)
        frame = sample_frame(model.generator, noise, state["recycled"], maps, [cache]).to(dtype)
        state["recycled"] = frame
        return ((stream.decode(frame).float() + 1) * 127.5).round().to(torch.uint8)[0].permute(1, 2, 3, 0)

    return step


SYSTEMS: dict[str, Callable[[torch.dtype, Tensor], Step]] = {OURS: session_stream, "plain cache": plain_stream}


def measure(dtype: str, steps: int) -> list[dict]:
    """One result per system: milliseconds per step over interleaved steps, video frames per second."""
    points = poses(WARM_UP + steps)
    streams = {name: build(DTYPES[dtype], points) for name, build in SYSTEMS.items()}
    times: dict[str, list[float]] = {name: [] for name in streams}
    worst = dict.fromkeys(streams, 0)
    for number in range(WARM_UP + steps):
        videos = {}
        for name, stream in streams.items():
            start = time.perf_counter()
            videos[name] = stream(number)
            if number >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - start))
        for name, video in videos.items():
            worst[name] = max(worst[name], int((video.int() - videos[OURS].int()).abs().max()))
    return [
        {
            "name": f"stream/mini-person/96x96/{dtype}/{name}",
            "p50_ms": statistics.median(values),
            "p95_ms": sorted(values)[int(0.95 * len(values))],
            "p99_ms": sorted(values)[int(0.99 * len(values))],
            "video_fps": 4000 / statistics.median(values),
            "baseline": "plain cache",
            "ratio": statistics.median(b / v for b, v in zip(times["plain cache"], values, strict=True)),
            "largest_pixel_difference_to_ours": worst[name],
        }
        for name, values in times.items()
    ]


def first_frame_seconds() -> float:
    """Wall time of a whole `aapt-fast generate --frames 4`, process start and file included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "aapt_fast.cli", "generate", "--frames", "4", "--out", f"{folder}/x"]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def resident_megabytes(video_frames: tuple[int, ...]) -> dict[int, float]:
    """Resident memory of a fresh process after that many streamed video frames."""
    program = (
        "import sys, torch\n"
        "from bench_stream import poses, session_stream\n"
        "marks = [int(a) // 4 for a in sys.argv[1:]]\n"
        "step = session_stream(torch.float32, poses(max(marks)))\n"
        "for number in range(max(marks)):\n"
        "    step(number)\n"
        "    if number + 1 in marks:\n"
        "        pages = int(open('/proc/self/statm').read().split()[1])\n"
        "        print(4 * (number + 1), pages * 4096 / 2**20)\n"
    )
    command = [sys.executable, "-c", program, *map(str, video_frames)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
    return {int(line.split()[0]): round(float(line.split()[1]), 1) for line in printed.splitlines()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = [result for dtype in arguments.dtype or DTYPES for result in measure(dtype, arguments.steps)]
    print(f"{'name':48} {'p50 ms':>8} {'p95 ms':>8} {'fps':>8} {'ratio':>7}")
    for result in results:
        times = f"{result['p50_ms']:8.2f} {result['p95_ms']:8.2f} {result['video_fps']:8.1f}"
        print(f"{result['name']:48} {times} {result['ratio']:7.2f}")
    facts = {"process_to_first_frames_s": first_frame_seconds(), "resident_mb": resident_megabytes((400, 2000))}
    print(facts)
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    ran = {"torch": torch.__version__, "machine": machine, "ops": implementations()}
    print(json.dumps({"schema": "aapt_fast.profiling/1", "results": results, **facts, "what_ran": ran}))


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
