# SPDX-License-Identifier: Apache-2.0
"""What is won by copying the frames of a step to the host while the next step is computed (`FrameDownloader`)?

Three forks of one session take the same steps, in turn, and have their frames in host memory at the end:
    at once       `session.step(control).cpu()`, into memory that is not pinned
    pinned        `out.submit(session.step(control)).result()`
    overlapped    the same, but the result is asked for after the next step

    python -m bench.bench_host_frames [--preset NAME] [--steps N]           table, then JSON as the last line

The weights are random. Without a GPU the 8 B preset is refused with status 3, and the times mean nothing: `--preset
nano` tries the program out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from aapt_fast import FrameDownloader, StreamSession
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.models.vae.wan import WanVAEConfig
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.profiling.systems import PROMPT_TOKENS, random_model
from aapt_fast.profiling.timing import Sample
from aapt_fast.streaming.downloads import PendingFrames
from aapt_fast.streaming.graph import RECORDERS
from bench.harness.cases import DTYPE_NAMES


def measure(preset: str, steps: int, device: torch.device) -> list[dict]:
    """Milliseconds from one step's frames to the next one's, both in host memory where the system says so."""
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
        {
            "name": f"host_frames/{preset}/{width}x{height}/{DTYPE_NAMES[dtype]}/{name}",
            **sample.as_dict(),
            "bytes": 4 * height * width * 3,
            "baseline": "at once",
            "ratio": sample.times(samples["at once"]),
        }
        for name, sample in samples.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="aapt-8b", help="aapt-8b, or a smaller one for a trial")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and arguments.preset == "aapt-8b":
        print("no GPU: the 8 B preset needs one. --preset nano tries the program out on any machine.")
        sys.exit(3)
    results = measure(arguments.preset, arguments.steps, device)
    for result in results:
        print(f"{result['name']:50} p50 {result['p50_ms']:8.2f} ms, {result['ratio']:5.3f} times as fast as at once")
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    ran = {"torch": torch.__version__, "device": device.type, "gpu": gpu}
    print(json.dumps({"schema": "aapt_fast.profiling/1", "results": results, "what_ran": ran}))


if __name__ == "__main__":
    main()
