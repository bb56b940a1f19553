# SPDX-License-Identifier: Apache-2.0
"""How long does a whole step take: noise, generator, decoder, uint8 frames? Kernels on against kernels off.

    python -m bench.bench_frame --out results.json [--steps N] [--limit SECONDS] [--preset NAME]

Two systems: the 8 B preset at 736x416 with random weights and the Wan 2.1 decoder, and the bundled mini-person. Both
sides of a comparison are forks of one session with a full window, and take their steps in turn. The time is the user's:
from the call of `step` until the frames are complete. A third side, on a GPU, is a session whose steps are CUDA graphs;
these two are launched kernel by kernel. With `--compiled` there is a fourth, the same step in plain torch with
contiguous keys and torch.compile, which takes minutes to compile. Without a GPU the exit status is 3; `--preset nano`
runs anywhere.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import aapt_fast
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.models.vae.wan import WanVAEConfig
from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.profiling.compiled import CompiledSampler
from aapt_fast.profiling.decoders import wan_decoder
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.profiling.kernels import working_kernels
from aapt_fast.profiling.roofline import Step
from aapt_fast.profiling.systems import PROMPT_TOKENS, random_model
from aapt_fast.profiling.timing import Sample
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.streaming.session import StreamSession
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import Camera, forward_kinematics
from bench.harness import ceilings
from bench.harness.cases import DTYPE_NAMES
from bench.harness.document import Document, clocks

REAL_TIME_FPS = 24

ON, OFF, GRAPH, COMPILED = "kernels on", "kernels off", "kernels on, recorded", "torch.compile, contiguous keys"
LAUNCHES = {GRAPH: "CUDA graphs", COMPILED: "compiled by torch"}
Controls = Callable[[int], Tensor | None]


def measure(
    session: StreamSession,
    controls: Controls,
    names: tuple[str, ...],
    *,
    others: dict[str, StreamSession] | None = None,
    module: ModuleType | None,
    warm_up: int,
    steps: int,
    limit_s: float,
) -> tuple[dict[str, Sample], dict[str, int]]:
    """Steps of two forks of `session` after `warm_up` steps, and of `others` by side, which have had theirs, in turn.

    Also the largest difference of a pixel from the side without kernels in the first of these steps, by side.
    """
    chosen = {ON: names, OFF: ("none",)} if names else {OFF: ("none",)}
    with use_kernels(*chosen[next(iter(chosen))], extension=module):
        for number in range(warm_up):
            session.step(controls(number))
    sessions = {side: session.fork() for side in chosen} | (others or {})
    chosen |= dict.fromkeys(others or {}, names or ("none",))
    times: dict[str, list[float]] = {side: [] for side in chosen}
    differences: dict[str, int] = {}
    begun = time.perf_counter()
    for number in range(warm_up, warm_up + steps + 2):
        turn = list(chosen) if number % 2 else list(chosen)[::-1]
        videos = {}
        for side in turn:
            with use_kernels(*chosen[side], extension=module):
                started = time.perf_counter()
                videos[side] = sessions[side].step(controls(number))
                if number >= warm_up + 2:  # the first two compile and load
                    times[side].append(1e3 * (time.perf_counter() - started))
        if number == warm_up:
            differences = {side: int((video.int() - videos[OFF].int()).abs().max()) for side, video in videos.items()}
        if len(times[OFF]) >= 5 and time.perf_counter() - begun > limit_s:
            break
    for side in sessions.values():
        side.close()
    timer = "wall clock of StreamSession.step, which waits for the frames"
    return {side: Sample(tuple(values), None, timer) for side, values in times.items()}, differences


def open_others(
    document: Document,
    name: str,
    open_session: functools.partial[StreamSession],
    controls: Controls,
    names: tuple[str, ...],
    *,
    module: ModuleType | None,
    warm_up: int,
    compiled: bool,
) -> dict[str, StreamSession]:
    """The sides that are no forks, after `warm_up` steps; one that fails is noted in the document."""
    ways: dict[str, Callable[[], StreamSession]] = {}
    if open_session.args[0].device.type in RECORDERS:
        ways[GRAPH] = functools.partial(open_session, cuda_graph=True)
    if compiled:
        ways[COMPILED] = functools.partial(open_session, sampler=CompiledSampler())
    others = {}
    for side, open_side in ways.items():
        try:
            with use_kernels(*(names or ("none",)), extension=module):
                others[side] = open_side()
                for number in range(warm_up):
                    others[side].step(controls(number))
        except RuntimeError as error:
            others.pop(side, None)
            document.fail(name, side, error)
            print(f"{name}: {side}: {document.content['failures'][-1]['reason']}", flush=True)
    return others


def report(
    document: Document,
    name: str,
    samples: dict[str, Sample],
    differences: dict[str, int],
    names: tuple[str, ...],
    flops: float | None,
    floor_ms: float | None,
    **facts: Any,
) -> None:
    """Write one result per side; the baseline is the side without kernels."""
    for side, sample in samples.items():
        used = names if side in (ON, GRAPH) else ()
        launches = LAUNCHES.get(side, "eager, no CUDA graph")
        what = f"{launches}; {side}: {', '.join(used) or 'torch compositions'}"
        entry = {
            "name": name,
            **sample.as_dict(),
            "tflops": flops / sample.p50 / 1e9 if flops else None,
            "share_of_ceiling": floor_ms / sample.p50 if floor_ms else None,
            "baseline": OFF,
            "ratio": sample.times(samples[OFF]),
            "what_ran": what,
            "ours": side in (ON, GRAPH),
            "video_fps": 4e3 / sample.p50,
            "real_time": 4e3 / sample.p50 / REAL_TIME_FPS,
            "largest_pixel_difference_from_baseline": differences.get(side),
            **facts,
        }
        document.add("results", entry)
        print(f"{name}: {side}: p50 {sample.p50:.2f} ms, {entry['video_fps']:.1f} fps, ratio {entry['ratio']:.2f}")


def frame(
    document: Document,
    preset: str,
    device: torch.device,
    *,
    steps: int,
    limit_s: float,
    vae: WanVAEConfig = WanVAEConfig(),
    dtype: torch.dtype | None = None,
    module: ModuleType | None = None,
    compiled: bool = False,
) -> None:
    """A preset with random weights and a full window; without a dtype in bfloat16 on a GPU, else in float32."""
    config = generator_preset(preset)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    model = random_model(config, vae, device, dtype)
    controls = random_controls(model, 1)
    control = controls[0].to(device) if controls[0] is not None else None
    prompt = random_prompt(model, PROMPT_TOKENS)
    open_session = functools.partial(StreamSession, model, random_image(model), prompt=prompt, seed=7)
    session = open_session()
    height, width = model.video_size
    name = f"frame/{preset}/{width}x{height}/{DTYPE_NAMES[dtype]}"
    names = _usable(document, name, session, control, module)
    options = {"module": module, "warm_up": config.window + 2}
    others = open_others(document, name, open_session, lambda number: control, names, compiled=compiled, **options)
    samples, differences = measure(
        session, lambda number: control, names, others=others, steps=steps, limit_s=limit_s, **options
    )
    work = Step(config, PROMPT_TOKENS if config.text_width else 0, wan_decoder(vae, *config.grid))
    flops = work.generator_flops + work.decoder_flops
    tiny = {"size": 256, "copy_bytes": 2**20} if device.type == "cpu" else {}
    floor = ceilings.of(document, device, **tiny).floor_ms(flops, 0)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    facts = {"keys": work.keys + work.prompt, "decoder": "Wan 2.1", "weights": "random", "peak_memory_bytes": memory}
    report(document, name, samples, differences, names, flops, floor, **facts)


def mini_person(
    document: Document,
    device: torch.device,
    *,
    steps: int,
    limit_s: float,
    module: ModuleType | None = None,
    compiled: bool = False,
) -> None:
    """The bundled model under a medley of motions, against the 24 frames per second that a viewer sees."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=dtype, device=device)
    warm_up = model.config.window + 2
    points = Camera().project(forward_kinematics(random_motion(1 + 4 * (warm_up + steps + 2), seed=0)))
    image = aapt_fast.load_gallery("mini-person")[0].image
    open_session = functools.partial(StreamSession, model, image, image_control=points[0], seed=0)
    session = open_session()

    def controls(number: int) -> Tensor:
        return points[1 + 4 * number : 5 + 4 * number]

    name = f"frame/mini-person/96x96/{DTYPE_NAMES[dtype]}"
    names = _usable(document, name, session, controls(0), module)
    options = {"module": module, "warm_up": warm_up}
    others = open_others(document, name, open_session, controls, names, compiled=compiled, **options)
    samples, differences = measure(session, controls, names, others=others, steps=steps, limit_s=limit_s, **options)
    report(document, name, samples, differences, names, None, None, weights="bundled")


def _usable(
    document: Document, name: str, session: StreamSession, control: Tensor | None, module: ModuleType | None
) -> tuple[str, ...]:
    found = working_kernels(session, control, module, KERNELS)
    for kernel, obstacle in found.items():
        if obstacle is not None:
            document.fail(name, kernel, obstacle)
            print(f"{name}: {kernel}: {obstacle}", flush=True)
    return tuple(kernel for kernel, obstacle in found.items() if obstacle is None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="document to write or to add to")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each side, at most")
    parser.add_argument("--limit", type=float, default=15.0, help="seconds of timed steps per system, about")
    parser.add_argument("--preset", default="aapt-8b", help="aapt-8b, or a smaller one for a trial")
    parser.add_argument("--compiled", action="store_true", help="against plain torch under torch.compile as well")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and arguments.preset == "aapt-8b":
        print("no GPU: the 8 B preset needs one. --preset nano tries the program out on any machine.")
        sys.exit(3)
    document = Document.open(arguments.out, shlex.join(sys.argv))
    vae = WanVAEConfig() if device.type == "cuda" else WanVAEConfig(base_dim=8)
    options = {"steps": arguments.steps, "limit_s": arguments.limit, "compiled": arguments.compiled}
    options["module"] = extension_or_none()
    document.add("clocks", {"before": "frame", "clocks": clocks()})
    status = 0
    for name, program in (
        ("mini-person", lambda: mini_person(document, device, **options)),
        (arguments.preset, lambda: frame(document, arguments.preset, device, vae=vae, **options)),
    ):
        try:
            program()
        except Exception as error:
            document.fail(f"frame/{name}", "bench_frame", error)
            print(f"frame/{name}: no result: {document.content['failures'][-1]['reason']}", flush=True)
            status = 1
            if device.type == "cuda":
                torch.cuda.synchronize()  # ends the process if the context did not survive
    document.add("clocks", {"after": "frame", "clocks": clocks()})
    sys.exit(status)


if __name__ == "__main__":
    main()
