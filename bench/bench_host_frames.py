# SPDX-License-Identifier: Apache-2.0
"""Gain of copying the frames of a step to the host while the next step is computed (`FrameDownloader`).

Three forks of one session take the same steps, in turn, and have their frames in host memory at the end:
    at once       `session.step(control).cpu()`, into memory that is not pinned
    pinned        `out.submit(session.step(control)).result()`
    overlapped    the same, but `result()` is called after the next step

    python -m bench.bench_host_frames [--preset NAME] [--steps N]           a table, then the document

The weights are random. Without a GPU the 8 B preset is refused with status 3, and the times mean nothing: `--preset
nano` tries the program out.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from aapt_fast import FrameDownloader, StreamSession
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.models.vae.wan import WanVAEConfig
from aapt_fast.profiling.document import DTYPE_NAMES, result
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.profiling.systems import PROMPT_TOKENS, random_model
from aapt_fast.profiling.timing import Sample
from aapt_fast.streaming.downloads import PendingFrames
from aapt_fast.streaming.graph import RECORDERS
from bench.harness.program import current_device, finish, open_document, parser


def measure(preset: str, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Make one result per system: the time from one step's frames in host memory to the next one's."""
    config = generator_preset(preset)
    on_gpu = device.type == "cuda"
    vae, dtype = (WanVAEConfig(), torch.bfloat16) if on_gpu else (WanVAEConfig(base_dim=8), torch.float32)
    model = random_model(config, vae, device, dtype)
    control = random_controls(model, 1)[0]
    control = None if control is None else control.to(device)
    options = {"prompt": random_prompt(model, PROMPT_TOKENS), "cuda_graph": device.type in RECORDERS}
    names = ("at once", "pinned", "overlapped")
    with StreamSession(model, random_image(model), seed=7, **options) as session:
        for _ in range(config.window + 2):
            session.step(control)
        forks = {name: session.fork() for name in names}
    out = {name: FrameDownloader() for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    pending: PendingFrames | None = None
    for number in range(steps + 2):  # the first two load and allocate
        for name in names[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            video = forks[name].step(control)
            if name == "at once":
                video.cpu()
            elif name == "pinned":
                out[name].submit(video).result()
            else:
                if pending is not None:
                    pending.result()
                pending = out[name].submit(video)
            if number >= 2:
                times[name].append(1e3 * (time.perf_counter() - started))
    samples = {name: Sample(tuple(each), None, "wall clock") for name, each in times.items()}
    height, width = model.video_size
    return [
        result(
            f"host_frames/{preset}/{width}x{height}/{DTYPE_NAMES[dtype]}/{name}",
            sample,
            name,
            baseline="at once",
            ratio=sample.times(samples["at once"]),
            bytes=4 * height * width * 3,
        )
        for name, sample in samples.items()
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--preset", default="aapt-8b", help="aapt-8b, or a smaller one for a trial")
    options.add_argument("--steps", type=int, default=100)
    arguments = options.parse_args()
    device = current_device(arguments.preset != "aapt-8b", "--preset nano")
    document = open_document(arguments.out)
    for entry in measure(arguments.preset, arguments.steps, device):
        document.add("results", entry)
        print(f"{entry['name']:50} p50 {entry['p50_ms']:8.2f} ms, {entry['ratio']:5.3f} times as fast as at once")
    finish(document)


if __name__ == "__main__":
    main()
