# SPDX-License-Identifier: Apache-2.0
"""Say whether this machine is ready, what is installed, what each op would run and which kernels are on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from typing import Any

import torch

from aapt_fast.cli import plan
from aapt_fast.cli.busy import competition, processes
from aapt_fast.cli.choices import FRAMES_PER_STEP
from aapt_fast.cli.device import usable_device
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.models.files.placement import fast_dtype
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import GPU_WITHOUT_CUDA, KERNELS, Kernel, no_kernel_runs, obstacle, record_for, selection
from aapt_fast.ops.registry import OPS, implementation
from aapt_fast.streaming.session import StreamSession

MODEL = "mini-person"
REAL_TIME = 24.0  # video frames per second
WARM_UP, TIMED = 6, 12  # steps
BUILD_WITH_CUDA = "where nvcc is installed, `AAPT_CUDA=ON pip install .` in a checkout of aapt_fast builds it with CUDA"


def run(arguments: argparse.Namespace) -> None:
    if arguments.plan is not None:
        plan.run(arguments)
        return
    found = verdict()
    report = {"verdict": found, **examine()}
    if arguments.json:
        print(json.dumps(report))
        return
    print("\n".join(in_words(found)))
    for section, facts in report.items():
        if section == "verdict":
            continue
        print(section)
        items = facts.items() if isinstance(facts, dict) else enumerate(facts)
        for name, value in items:
            print(f"  {name}: {in_one_line(value) if section == 'kernels' else value}")


def verdict() -> dict[str, Any]:
    """Stream the bundled model for a moment on the best device here; returns JSON-ready values.

    `video_fps` is from the median time of a step, `busy` the number of processes that wanted a core in the last minute
    (None where the system does not say), `kernels` the state of the record of a GPU's kernels in words (None on a CPU).
    """
    device = usable_device(None)
    dtype = fast_dtype(device)
    model = StreamModel.from_pretrained(MODEL, device=device, dtype=dtype)
    first = load_gallery(MODEL)[0]
    player = model.world.player(first, "walk")
    times = []
    with StreamSession(model, first, seed=0) as session:
        for _ in range(WARM_UP + TIMED):
            control = player.next(FRAMES_PER_STEP)
            begun = time.perf_counter()
            frames = session.step(control).cpu()
            times.append(time.perf_counter() - begun)
    fps = len(frames) / statistics.median(times[WARM_UP:])
    return {
        "ready": round(fps) >= REAL_TIME,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "video_fps": round(fps, 1),
        "busy": processes(),
        "mp4": importlib.util.find_spec("av") is not None,
        "kernels": record_in_words(device),
    }


def in_words(found: dict[str, Any]) -> list[str]:
    """Lines for a person: first the verdict, then advice where there is any."""
    word = "Ready" if found["ready"] else "Slower than real time"
    mp4 = "yes" if found["mp4"] else "no (pip install 'aapt_fast[video]')"
    lines = [
        f"{word} on this {found['device']}: {MODEL} makes about {found['video_fps']:.0f} video frames per second in "
        f"{found['dtype']} (real time is {REAL_TIME:.0f}); mp4: {mp4}"
    ]
    if found["device"] == "CPU":
        if others := competition(found["busy"]):
            lines.append(f"{others[0].upper()}{others[1:]}.")
        lines.append(
            "Your own programs stay fast beside other processes with session.frames(player, ahead=True), as generate "
            "does."
        )
    else:
        lines.append(f"Kernels: {found['kernels']}.")
    return lines


def examine() -> dict[str, Any]:
    """Facts about installation and machine, and what each op would run, as JSON-ready values."""
    module = extension_or_none()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = [
        {"name": torch.cuda.get_device_name(i), "capability": ".".join(map(str, torch.cuda.get_device_capability(i)))}
        for i in range(torch.cuda.device_count())
    ]
    return {
        "build": module.build_info() if module else {"compiled module": "missing; pip install . builds it"},
        "python": {"version": platform.python_version(), "machine": platform.machine()},
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda or "none",
            "nccl": nccl_version(),
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "gpu": gpus or {"found": "none"},
        "ops": {op: implementation(op, device) for op in sorted(OPS)},
        "kernels": {name: examine_kernel(kernel, device) for name, kernel in KERNELS.items()},
        "record": {"kernels of this GPU": record_in_words(device) or "none: no GPU here"},
        "models": {"bundled": sorted(bundled_models())},
    }


def nccl_version() -> str:
    """Version of the NCCL with which several GPUs exchange; "none" in a torch without it."""
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return "none"
    return ".".join(map(str, torch.cuda.nccl.version()))


def record_in_words(device: torch.device) -> str | None:
    """One sentence about the record of a GPU's kernels, or why none can run and what helps; None on a CPU."""
    if device.type != "cuda":
        return None
    found = record_for(device, selection())
    if found is not None:
        return found.in_words()
    why = no_kernel_runs(device, selection())
    if why is None:
        return "this GPU or this build can run none"
    return f"none can run: {why}" + (f"; {BUILD_WITH_CUDA}" if why == GPU_WITHOUT_CUDA else "")


def examine_kernel(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    """A kernel's state on this device and the reason, by the rule that calls of its op go by."""
    why = obstacle(kernel, device, selection())
    return {"on": why is None, "why": why or f"chosen by {', '.join(selection().names)}"}


def in_one_line(facts: dict[str, Any]) -> str:
    """The findings of `examine_kernel` in words."""
    return f"{'on' if facts['on'] else 'off'}: {facts['why']}"
