# SPDX-License-Identifier: Apache-2.0
"""Everything that `aapt-fast bench all` measures: one latent frame of each system, and of each decoder."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from aapt_fast.models.vae.aapt import LIGHT
from aapt_fast.profiling.decoder_steps import measure_decoder, result_name
from aapt_fast.profiling.decoders import decoder_layers
from aapt_fast.profiling.document import Document
from aapt_fast.profiling.frame import Choice, Measured, measure, results, verdict
from aapt_fast.profiling.roofline import PAPER, prediction
from aapt_fast.profiling.systems import CPU_FLOPS, System, find_system, obstacle
from aapt_fast.streaming.graph import RECORDERS

SCALE = 8
"""Pixels per latent cell of the decoders below, down and across."""


@dataclass(frozen=True)
class Plan:
    """Systems to measure, and limits of time. Sizes are (width, height) in pixels of the video."""

    device: torch.device
    dtype: torch.dtype
    target_s: float
    steps: int
    limit_s: float
    systems: tuple[System, ...]
    decoder_sizes: tuple[tuple[int, int], ...]


def plan(device: torch.device, dtype: torch.dtype, *, target_s: float, steps: int, limit_s: float) -> Plan:
    """The bundled model, which runs anywhere, and the paper's model and decoder at the paper's sizes and windows."""
    paper = tuple(find_system("aapt-8b", published.size, published.past_frames) for published in PAPER)
    sizes = tuple(published.size for published in PAPER)
    return Plan(device, dtype, target_s, steps, limit_s, (find_system("mini-person"), *paper), sizes)


def measure_machine(document: Document, todo: Plan) -> None:
    """Measure all of a plan, one part after the other.

    Adds a result of the full window per system, `frames` with verdict, memory and prediction, and results of decoders.
    A part that cannot be measured here becomes a failure, and the others go on.
    """
    document.set(frames=[])
    for system in todo.systems:
        document.note_clocks(f"before {name_of(system)}")
        document.set(frames=[*document.content["frames"], _frame(document, system, todo)])
        _free()
    for size in todo.decoder_sizes:
        document.note_clocks(f"before the decoder at {size[0]}x{size[1]}")
        _decoder(document, size, todo)
        _free()
    document.note_clocks("after everything")


def name_of(system: System) -> str:
    """Name a system as its results do, without the dtype."""
    width, height = system.size
    return f"frame/{system.preset}/{width}x{height}"


def _frame(document: Document, system: System, todo: Plan) -> dict[str, Any]:
    """Measure one system, and predict it; returns its entry of `frames`."""
    name = name_of(system)
    entry: dict[str, Any] = {
        "name": name,
        "verdict": None,
        "memory": None,
        "what_ran": None,
        "prediction": prediction(system.step, system.decoder, todo.target_s),
    }
    why = obstacle(system, todo.device, todo.dtype)
    if why is not None:
        document.fail(name, "nothing", why)
        return entry
    for recorded in (True, False) if todo.device.type in RECORDERS else (False,):
        choice = Choice(todo.device, todo.dtype, recorded)
        try:
            measured = measure(system, choice, steps=todo.steps, limit_s=todo.limit_s)
        except RuntimeError as error:  # of a recording, or out of memory
            document.fail(name, choice.in_words(), error)
            _free()
            continue
        return entry | _measured(document, system, choice, measured, todo.target_s)
    return entry


def _measured(
    document: Document, system: System, choice: Choice, measured: Measured, target_s: float
) -> dict[str, Any]:
    for each in results(system, choice, measured):
        if each["phase"] == "full":
            document.add("results", each)
    return {"verdict": verdict(measured, target_s), "memory": measured.memory, "what_ran": measured.what_ran}


def _decoder(document: Document, size: tuple[int, int], todo: Plan) -> None:
    flops = sum(layer.flops for layer in decoder_layers(LIGHT, size[1] // SCALE, size[0] // SCALE))
    name = result_name("light", size, todo.dtype)
    if todo.device.type == "cpu" and flops > CPU_FLOPS:
        needed = f"a latent frame is {flops / 1e12:.1f} TFLOP, a CPU is tried with at most {CPU_FLOPS / 1e12:g}"
        document.fail(name, "nothing", f"it needs a GPU: {needed}")
        return
    try:
        measure_decoder(document, "light", LIGHT, size, todo.device, todo.dtype, todo.limit_s)
    except RuntimeError as error:
        document.fail(name, "the decoder", error)


def _free() -> None:
    """Return the memory of the part before, so that the next one finds a GPU as it was."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
