# SPDX-License-Identifier: Apache-2.0
"""Time of a whole step: noise, generator, decoder, uint8 frames. Kernels on against kernels off.

    python -m bench.bench_frame [--out F] [--steps N] [--limit SECONDS] [--preset NAME] [--compiled]

Two systems: the bundled mini-person, and the 8 B preset at 736x416 with random weights and AAPT's light decoder. Sides:
    kernels off             torch compositions, launched one by one: the baseline
    kernels on              the package's kernels, launched one by one
    kernels on, recorded    the same as CUDA graphs, on a GPU
    torch.compile           with --compiled: plain torch, contiguous keys; takes minutes to compile

One side after the other has a session, takes its steps with a full window and is closed, so that two of them never
share the GPU's memory. A time is the user's: from the call of `step` until the frames are complete. A ratio compares
medians. Without a GPU the status is 3; `--preset nano` runs anywhere.
"""

from __future__ import annotations

import functools
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import aapt_fast
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.models.vae.aapt import LIGHT, AAPTVAEConfig
from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.profiling.decoders import VAEConfig, decoder_layers
from aapt_fast.profiling.document import DTYPE_NAMES, Document, result
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.profiling.kernels import working_kernels
from aapt_fast.profiling.roofline import Step
from aapt_fast.profiling.systems import PROMPT_TOKENS, random_model
from aapt_fast.profiling.timing import Sample
from aapt_fast.streaming.graph import RECORDERS
from aapt_fast.streaming.session import StreamSession
from aapt_fast.verification.compare import relative_l2
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.skeleton import Camera, forward_kinematics
from bench.baselines.compiled_step import CompiledSampler
from bench.harness import ceilings
from bench.harness.program import current_device, finish, open_document, parser

REAL_TIME_FPS = 24
FEWEST_STEPS, SETTLING_STEPS = 5, 2
TIMER = "wall clock of StreamSession.step, which waits for the frames"
ON, OFF, GRAPH, COMPILED = "kernels on", "kernels off", "kernels on, recorded", "torch.compile, contiguous keys"
LAUNCHES = {GRAPH: "CUDA graphs", COMPILED: "compiled by torch"}

Controls = Callable[[int], Tensor | None]
OpenSession = Callable[..., StreamSession]


@dataclass(frozen=True)
class Options:
    """Limits of each side: `steps` timed steps at most, fewer, but at least five, beyond `limit_s` seconds."""

    steps: int
    limit_s: float
    compiled: bool = False
    module: ModuleType | None = None


@dataclass(frozen=True)
class Measured:
    """One side: times with a full window, the latent frame of the first step on the host, bytes on the GPU at most."""

    sample: Sample
    first: Tensor
    peak_bytes: int | None


def measure(open_session: OpenSession, controls: Controls, warm_up: int, options: Options) -> Measured:
    """Open a session, take `warm_up` untimed steps until its window is full, time its steps, and close it."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    with open_session() as session:
        session.step(controls(0))
        first = session.frame.cpu()
        for number in range(1, warm_up + SETTLING_STEPS):
            session.step(controls(number))
        begun = time.perf_counter()
        for number in range(warm_up + SETTLING_STEPS, warm_up + SETTLING_STEPS + options.steps):
            started = time.perf_counter()
            session.step(controls(number))
            times.append(1e3 * (time.perf_counter() - started))
            if len(times) >= FEWEST_STEPS and time.perf_counter() - begun > options.limit_s:
                break
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return Measured(Sample(tuple(times), None, TIMER), first, peak)


def measure_sides(
    document: Document,
    name: str,
    open_session: functools.partial[StreamSession],
    controls: Controls,
    warm_up: int,
    options: Options,
) -> tuple[dict[str, Measured], tuple[str, ...]]:
    """Measure one side after the other; a side that fails is noted in the document. Also the kernels that are on."""
    names = usable_kernels(document, name, open_session, controls(0), options.module)
    sides: dict[str, OpenSession] = {OFF: open_session}
    if names:
        sides[ON] = open_session
    if open_session.args[0].device.type in RECORDERS:
        sides[GRAPH] = functools.partial(open_session, cuda_graph=True)
    if options.compiled:
        sides[COMPILED] = functools.partial(open_session, sampler=CompiledSampler())
    measured = {}
    for side, open_side in sides.items():
        kernels = names if side in (ON, GRAPH) and names else ("none",)
        try:
            with use_kernels(*kernels, extension=options.module):
                measured[side] = measure(open_side, controls, warm_up, options)
        except RuntimeError as error:
            print(f"{name}: {side}: no result: {document.fail(name, side, error)}", flush=True)
        free_memory()
    return measured, names


def free_memory() -> None:
    """Give the memory of closed sessions back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def usable_kernels(
    document: Document, name: str, open_session: OpenSession, control: Tensor | None, module: ModuleType | None
) -> tuple[str, ...]:
    """Find the kernels with which a step runs; the others become failures in the document."""
    with open_session() as session:
        found = working_kernels(session, control, module, KERNELS)
    free_memory()
    for kernel, obstacle in found.items():
        if obstacle is not None:
            print(f"{name}: {kernel}: {document.fail(name, kernel, obstacle)}", flush=True)
    return tuple(kernel for kernel, obstacle in found.items() if obstacle is None)


def report(
    document: Document,
    name: str,
    measured: dict[str, Measured],
    names: tuple[str, ...],
    flops: float | None,
    floor_ms: float | None,
    **facts: Any,
) -> None:
    """Add one result per side; the baseline is the side without kernels."""
    off = measured.get(OFF)
    for side, each in measured.items():
        used = names if side in (ON, GRAPH) else ()
        p50 = each.sample.p50
        difference = relative_l2(each.first, off.first) if off else None
        entry = result(
            name,
            each.sample,
            f"{LAUNCHES.get(side, 'eager, no CUDA graph')}; {side}: {', '.join(used) or 'torch compositions'}",
            baseline=OFF,
            ratio=off.sample.p50 / p50 if off else None,
            tflops=flops / p50 / 1e9 if flops else None,
            share_of_ceiling=floor_ms / p50 if floor_ms else None,
            ours=side in (ON, GRAPH),
            video_fps=4e3 / p50,
            real_time=4e3 / p50 / REAL_TIME_FPS,
            difference_of_the_first_frame=difference,
            peak_memory_bytes=each.peak_bytes,
            **facts,
        )
        document.add("results", entry)
        ratio = "-" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
        print(f"{name}: {side}: p50 {p50:.2f} ms, {entry['video_fps']:.1f} fps, ratio {ratio}", flush=True)


SMALL = AAPTVAEConfig(encoder_widths=(32,) * 4, decoder_widths=(32,) * 4, decoder_blocks=1)
"""For a trial on a CPU."""


def frame(
    document: Document,
    preset: str,
    device: torch.device,
    options: Options,
    *,
    vae: VAEConfig = LIGHT,
    dtype: torch.dtype | None = None,
) -> None:
    """Measure a preset with random weights; without a dtype in bfloat16 on a GPU, else in float32."""
    config = generator_preset(preset)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    model = random_model(config, vae, device, dtype)
    control = random_controls(model, 1)[0]
    control = control.to(device) if control is not None else None
    prompt = random_prompt(model, PROMPT_TOKENS)
    open_session = functools.partial(StreamSession, model, random_image(model), prompt=prompt, seed=7)
    height, width = model.video_size
    name = f"frame/{preset}/{width}x{height}/{DTYPE_NAMES[dtype]}"
    measured, names = measure_sides(document, name, open_session, lambda number: control, config.window + 2, options)
    work = Step(config, PROMPT_TOKENS if config.text_width else 0, decoder_layers(vae, *config.grid))
    flops = work.generator_flops + work.decoder_flops
    best = ceilings.of(document, device, **(ceilings.TINY if device.type == "cpu" else {}))
    facts = {"keys": work.keys + work.prompt, "decoder": "AAPT's light one", "weights": "random"}
    report(document, name, measured, names, flops, best.floor_ms(flops, 0), **facts)


def mini_person(document: Document, device: torch.device, options: Options) -> None:
    """Measure the bundled model under a medley of motions, against the 24 frames per second that a viewer sees."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = aapt_fast.StreamModel.from_pretrained("mini-person", dtype=dtype, device=device)
    warm_up = model.config.window + 2
    steps = warm_up + SETTLING_STEPS + options.steps
    points = Camera().project(forward_kinematics(random_motion(1 + 4 * steps, seed=0)))
    image = aapt_fast.load_gallery("mini-person")[0].image
    open_session = functools.partial(StreamSession, model, image, image_control=points[0], seed=0)

    def controls(number: int) -> Tensor:
        return points[1 + 4 * number : 5 + 4 * number]

    name = f"frame/mini-person/96x96/{DTYPE_NAMES[dtype]}"
    measured, names = measure_sides(document, name, open_session, controls, warm_up, options)
    report(document, name, measured, names, None, None, weights="bundled")


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--steps", type=int, default=100, help="timed steps of each side, at most")
    command.add_argument("--limit", type=float, default=5.0, help="seconds of timed steps of each side, about")
    command.add_argument("--preset", default="aapt-8b", help="aapt-8b, or a smaller one for a trial")
    command.add_argument("--compiled", action="store_true", help="against plain torch under torch.compile as well")
    arguments = command.parse_args()
    device = current_device(arguments.preset != "aapt-8b", "--preset nano")
    document = open_document(arguments.out)
    vae = LIGHT if device.type == "cuda" else SMALL
    options = Options(arguments.steps, arguments.limit, arguments.compiled, extension_or_none())
    document.note_clocks("before frame")
    status = 0
    systems: dict[str, Callable[[], None]] = {
        "mini-person": lambda: mini_person(document, device, options),
        arguments.preset: lambda: frame(document, arguments.preset, device, options, vae=vae),
    }
    for name, program in systems.items():
        try:
            program()
        except Exception as error:
            print(f"frame/{name}: no result: {document.fail(f'frame/{name}', 'bench_frame', error)}", flush=True)
            status = 1
            if device.type == "cuda":
                torch.cuda.synchronize()  # ends the process if the context did not survive
        free_memory()
    document.note_clocks("after frame")
    finish(document)
    sys.exit(status)


if __name__ == "__main__":
    main()
