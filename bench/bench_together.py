# SPDX-License-Identifier: Apache-2.0
"""How much is won by making the next frames of several sessions in one evaluation (`SessionBatch`)?

Two systems make the same frames, in turn, step after step, for 1, 2, 4 and 8 sessions of the bundled model:
    together     `SessionBatch(sessions).step(controls)`
    one by one   `session.step(control)` for each of them
On a GPU there is a third one:
    recorded     `SessionBatch(sessions, cuda_graph=True).step(controls)`

    python bench/bench_together.py [--sessions N ...] [--steps N] [--dtype float32|bfloat16] [--device cuda]
                                                         table, then JSON as the last line
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import aapt_fast
from aapt_fast.ops import implementations
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import Camera, forward_kinematics

WARM_UP = 12  # steps until the window is full and the sink has left it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(sessions: int, dtype: str, steps: int, device: str) -> list[dict]:
    """Milliseconds of a step of all sessions, over steps that the systems take in turn; a result for each but the last.

    The last is the baseline, one by one.
    """
    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=DTYPES[dtype], device=device)
    gallery = aapt_fast.load_gallery("mini-person")
    points = [
        Camera().project(forward_kinematics(random_motion(1 + 4 * (WARM_UP + steps), seed=row))).to(device)
        for row in range(sessions)
    ]

    def opened(**options: Any) -> list[aapt_fast.StreamSession]:
        options["pool"] = aapt_fast.PagePool.for_sessions(model, sessions)
        return [
            aapt_fast.StreamSession(model, gallery[row].image, image_control=points[row][0], seed=row, **options)
            for row in range(sessions)
        ]

    singles = opened()

    def one_by_one(controls: list[Tensor]) -> list[Tensor]:
        return [session.step(control) for session, control in zip(singles, controls, strict=True)]

    systems: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {"together": aapt_fast.SessionBatch(opened()).step}
    if model.device.type in RECORDERS:
        systems["recorded"] = aapt_fast.SessionBatch(opened(), cuda_graph=True).step
    systems["one by one"] = one_by_one
    times: dict[str, list[float]] = {name: [] for name in systems}
    worst = dict.fromkeys(systems, 0)
    for number in range(WARM_UP + steps):
        controls = [each[1 + 4 * number : 5 + 4 * number] for each in points]
        videos = {}
        for name in list(systems)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            videos[name] = systems[name](controls)
            if number >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - start))
        for name, made in videos.items():
            for one, other in zip(made, videos["one by one"], strict=True):
                worst[name] = max(worst[name], int((one.int() - other.int()).abs().max()))
    single = times.pop("one by one")
    return [
        {
            "name": f"{name}/mini-person/96x96/{dtype}/{sessions}",
            "sessions": sessions,
            "p50_ms": statistics.median(ours),
            "baseline": "one by one",
            "baseline_p50_ms": statistics.median(single),
            "ratio": statistics.median(b / t for b, t in zip(single, ours, strict=True)),
            "video_fps_of_all": 4000 * sessions / statistics.median(ours),
            "largest_pixel_difference": worst[name],
        }
        for name, ours in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    print(f"{'name':40} {'p50 ms':>8} {'one by one':>11} {'ratio':>6} {'fps of all':>11}")
    for dtype in arguments.dtype or DTYPES:
        for sessions in arguments.sessions:
            for result in measure(sessions, dtype, arguments.steps, arguments.device):
                times = f"{result['p50_ms']:8.2f} {result['baseline_p50_ms']:11.2f} {result['ratio']:6.2f}"
                print(f"{result['name']:40} {times} {result['video_fps_of_all']:11.1f}", flush=True)
                results.append(result)
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    ran = {"torch": torch.__version__, "machine": machine, "device": arguments.device, "ops": implementations()}
    print(json.dumps({"schema": "aapt_fast.profiling/1", "results": results, "what_ran": ran}))


if __name__ == "__main__":
    main()
