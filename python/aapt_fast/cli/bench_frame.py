# SPDX-License-Identifier: Apache-2.0
"""Measure one latent frame of a preset on this machine, stage by stage, against a target."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

import torch

from aapt_fast.cli.busy import competition, processes
from aapt_fast.cli.checks import parse_size
from aapt_fast.cli.device import chosen_dtype
from aapt_fast.cli.doctor import examine
from aapt_fast.errors import require
from aapt_fast.profiling.document import DTYPE_NAMES, Document
from aapt_fast.profiling.frame import STAGES, Choice, measure, results, verdict
from aapt_fast.profiling.roofline import paper_check, prediction
from aapt_fast.profiling.systems import LARGE, System, find_system, obstacle
from aapt_fast.streaming.graph import RECORDERS

MET, MISSED, CANNOT_RUN = 0, 1, 2
SEVERAL = "a step on several GPUs is predicted, not measured"


def run(arguments: argparse.Namespace) -> int:
    """Measure or predict; returns the exit status."""
    system = find_system(arguments.preset, parse_size(arguments.resolution), arguments.window)
    choice = _choice(arguments)
    document = Document.new(shlex.join(["aapt-fast", *sys.argv[1:]]))
    document.set(doctor=examine(), question=_question(system, choice, arguments.target))
    why = SEVERAL if arguments.gpus > 1 else obstacle(system, choice.device, choice.dtype)
    if why is None:
        try:
            status = _measure(document, system, choice, arguments)
        except torch.OutOfMemoryError as error:
            why = f"out of memory: {error}"
    if why is not None:
        status = _predict(document, system, why, arguments)
    document.path = arguments.json
    document.save()
    print(document.line())
    return status


def _choice(arguments: argparse.Namespace) -> Choice:
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = chosen_dtype(arguments.dtype, device)
    expected = f"a GPU: steps on a {device.type} are not recorded"
    require(not arguments.cuda_graph or device.type in RECORDERS, "--cuda-graph", expected, f"the device {device.type}")
    return Choice(device, dtype, arguments.cuda_graph)


def _question(system: System, choice: Choice, target_s: float) -> dict[str, Any]:
    width, height = system.size
    return {
        "preset": system.preset,
        "resolution": f"{width}x{height}",
        "window": system.config.window,
        "target_s": target_s,
        "device": choice.device.type,
        "dtype": DTYPE_NAMES[choice.dtype],
        "how": choice.in_words(),
    }


def _measure(document: Document, system: System, choice: Choice, arguments: argparse.Namespace) -> int:
    """Measure, fill the document and print it; returns the exit status."""
    document.note_clocks("before frame")
    others = competition(processes())
    measured = measure(system, choice, steps=arguments.steps, limit_s=arguments.limit)
    document.note_clocks("after frame")
    found = verdict(measured, arguments.target)
    document.set(
        results=results(system, choice, measured),
        verdict=found,
        start=measured.start,
        memory=measured.memory,
        what_ran=measured.what_ran,
        prediction=None,
    )
    for entry in document.content["results"]:
        stages = ", ".join(f"{stage} {entry['stages'][stage]['p50_ms']:.2f}" for stage in STAGES)
        print(f"{entry['name']}: p50 {entry['p50_ms']:.2f} ms, p95 {entry['p95_ms']:.2f}, p99 {entry['p99_ms']:.2f}")
        print(f"  of that: {stages}")
    inside = document.content["results"][-1]["inside_generator"]
    parts = ", ".join(f"{part} {times['p50_ms']:.2f}" for part, times in inside.items())
    print(f"  inside the generator, launched one by one: {parts}")
    print(f"how: {choice.in_words()}{f'; {others}' if others else ''}")
    for op, what in measured.what_ran.items():
        print(f"  {op}: {what}")
    late, word = found["at_this_pace"], "met" if found["met"] else "missed"
    start = {name: seconds for name, seconds in measured.start.items() if seconds is not None}
    print(f"start: {', '.join(f'{name} {seconds:.2f}' for name, seconds in start.items())}")
    print(f"memory: {measured.memory['peak_bytes'] / 2**20:.0f} MiB at most, {measured.memory['peak_of']}")
    print(f"target {found['target_ms']:g} ms {word}: {found['judged_ms']:.2f} ms ({found['judged']})")
    print(
        f"jitter {found['jitter_ms']:.2f} ms; at the target's pace {late['late_steps']} of {late['steps']} steps late"
    )
    print(f"{found['last_to_first']:.3f}: {found['last_to_first_is']}")
    print(f"{found['outside_share']:.1%} {found['outside_is']}")
    return MET if found["met"] else MISSED


def _predict(document: Document, system: System, why: str, arguments: argparse.Namespace) -> int:
    """Print the reason why nothing was measured, and a roofline's prediction for two GPUs; returns the exit status."""
    target_s, gpus = arguments.target, arguments.gpus
    if gpus > 1:
        heads = system.config.heads
        require(heads % gpus == 0, "--gpus", f"a number that divides {heads} heads of {system.preset}", gpus)
    found = prediction(system.step, system.decoder, target_s, gpus, arguments.parallel)
    if system.preset in LARGE:
        found["paper"] = paper_check(system.config, system.prompt)
    why = document.fail(f"frame/{system.preset}", "nothing", why)
    document.set(verdict=None, prediction=found)
    work = found["work"]
    print(f"{system.preset} {'was not measured' if gpus > 1 else 'cannot run here'}: {why}")
    print(f"what follows is a {found['label']}")
    print(
        f"  a step: {work['linear_tflop']:.1f} + {work['attention_tflop']:.1f} TFLOP in linear layers and attention to "
        f"{work['keys']} keys, {work['prompt_attention_tflop']:.1f} to the prompt, {work['decoder_tflop']:.1f} in the "
        f"decoder ({work['decoder']})"
    )
    count = f"{gpus} " if gpus > 1 else ""
    for each in found["devices"].values():
        word = "would meet" if each["would_meet"] else "would miss"
        print(
            f"  {count}{each['gpu']}: at least {each['floor_ms']:.1f} ms, {each['target_ms']:.1f} ms with the best "
            f"public kernel rates, which {word} {1e3 * target_s:g} ms"
        )
    for row in found.get("paper", []):
        print(
            f"  the paper, {row['resolution']} on {row['gpus']} H100, light decoder: {row['paper_ms']:.0f} ms published"
            f" = {row['paper_tflops_per_gpu']:.0f} TFLOP/s per GPU; "
            f"predicted here: at least {row['floor_ms']:.0f}, {row['target_ms']:.0f} ms"
        )
    return CANNOT_RUN
