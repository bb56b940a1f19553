# SPDX-License-Identifier: Apache-2.0
"""Gain of making the next frames of several sessions in one evaluation (`SessionBatch`).

Two systems make the same frames, in turn, step after step, for 1, 2, 4 and 8 sessions of the bundled model:
    together     `SessionBatch(sessions).step(controls)`
    one by one   `session.step(control)` for each of them
On a GPU there is a third one:
    recorded     `SessionBatch(sessions, cuda_graph=True).step(controls)`

    python -m bench.bench_together [--sessions N ...] [--steps N] [--dtype float32|bfloat16] [--device cuda]
                                                         a table, then the document
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import aapt_fast
from aapt_fast.profiling.document import result
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import Camera, forward_kinematics
from bench.harness.program import finish, open_document, parser
from bench.harness.timing import Stream, time_streams

WARM_UP = 12  # steps until the window is full and the sink has left it
ONE_BY_ONE = "one by one"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(sessions: int, dtype: str, steps: int, device: str, warm_up: int = WARM_UP) -> list[dict[str, Any]]:
    """Make one result per system for a step of all sessions."""
    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=DTYPES[dtype], device=device)
    gallery = aapt_fast.load_gallery("mini-person")
    points = [
        Camera().project(forward_kinematics(random_motion(1 + 4 * (warm_up + steps), seed=row))).to(device)
        for row in range(sessions)
    ]

    def opened(**options: Any) -> list[aapt_fast.StreamSession]:
        options["pool"] = aapt_fast.PagePool.for_sessions(model, sessions)
        return [
            aapt_fast.StreamSession(model, gallery[row].image, image_control=points[row][0], seed=row, **options)
            for row in range(sessions)
        ]

    batch, singles = aapt_fast.SessionBatch(opened()), opened()

    def controls(number: int) -> list[Tensor]:
        return [each[1 + 4 * number : 5 + 4 * number] for each in points]

    def one_by_one(number: int) -> Tensor:
        pairs = zip(singles, controls(number), strict=True)
        return torch.stack([session.step(control) for session, control in pairs])

    systems: dict[str, Stream] = {"together": lambda number: torch.stack(batch.step(controls(number)))}
    if model.device.type in RECORDERS:
        recorded = aapt_fast.SessionBatch(opened(), cuda_graph=True)
        systems["recorded"] = lambda number: torch.stack(recorded.step(controls(number)))
    systems[ONE_BY_ONE] = one_by_one
    samples, differences = time_streams(systems, ONE_BY_ONE, warm_up=warm_up, steps=steps)
    return [
        result(
            f"together/mini-person/96x96/{dtype}/{sessions} sessions/{name}",
            sample,
            name,
            baseline=ONE_BY_ONE,
            ratio=sample.times(samples[ONE_BY_ONE]),
            video_fps_of_all=4e3 * sessions / sample.p50,
            largest_pixel_difference=differences[name],
        )
        for name, sample in samples.items()
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8])
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--dtype", choices=DTYPES, action="append")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    document = open_document(arguments.out)
    print(f"{'name':64} {'p50 ms':>8} {'ratio':>6} {'fps of all':>11}")
    for dtype in arguments.dtype or DTYPES:
        for sessions in arguments.sessions:
            for entry in measure(sessions, dtype, arguments.steps, arguments.device):
                document.add("results", entry)
                numbers = f"{entry['p50_ms']:8.2f} {entry['ratio']:6.2f} {entry['video_fps_of_all']:11.1f}"
                print(f"{entry['name']:64} {numbers}", flush=True)
    finish(document)


if __name__ == "__main__":
    main()
