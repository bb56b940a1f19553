# SPDX-License-Identifier: Apache-2.0
"""Say whether this machine is ready, what is installed, what each op would run and what is missing.

The exit status is 0, or 1 if something is installed wrongly: `faults` names it and what to type. A slow machine and a
GPU that `aapt-fast verify` has not seen are no faults.
"""

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
from aapt_fast.cli.busy import processes
from aapt_fast.cli.choices import FRAMES_PER_STEP
from aapt_fast.cli.device import usable_device
from aapt_fast.cli.doctor_installation import commit_of, extras, faults, module_fault, nccl_version, record_in_words
from aapt_fast.cli.doctor_memory import memory_needed
from aapt_fast.cli.doctor_text import MODEL, REAL_TIME, screen
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.models.files.placement import fast_dtype
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import KERNELS, Kernel, obstacle, record_for, running_kernel, selection
from aapt_fast.ops.record import driver_version
from aapt_fast.ops.registry import OPS, implementation
from aapt_fast.streaming.session import StreamSession

WARM_UP, TIMED = 6, 12  # steps
BY_TESTS = "the tests of the package compare it with each op's reference"


def run(arguments: argparse.Namespace) -> int:
    """Print the report, on one screen or as one JSON document; returns the exit status."""
    if arguments.plan is not None:
        plan.run(arguments)
        return 0
    device = usable_device(None)
    wrong = faults(device)
    broken = importable_fault()
    report: dict[str, Any] = {"verdict": verdict() if broken is None else not_ready(broken), "faults": wrong}
    if broken is None:
        report |= examine()
        report["memory"] = memory_needed(device, fast_dtype(device))
    print(json.dumps(report) if arguments.json else screen(report))
    return 1 if wrong else 0


def importable_fault() -> str | None:
    """Say why nothing can run: there is a compiled module that does not load. None without one, as torch runs then."""
    try:
        extension_or_none()
    except RuntimeError:
        return module_fault()
    return None


def not_ready(why: str) -> dict[str, Any]:
    """The verdict where nothing can run."""
    return {"ready": False, "why": why}


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


def examine() -> dict[str, Any]:
    """Facts about installation and machine, and what each op would run, as JSON-ready values."""
    module = extension_or_none()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = [
        {"name": torch.cuda.get_device_name(i), "capability": ".".join(map(str, torch.cuda.get_device_capability(i)))}
        for i in range(torch.cuda.device_count())
    ]
    return {
        "build": {**module.build_info(), "commit": commit_of(module)}
        if module
        else {"compiled module": "missing; pip install . builds it"},
        "python": {
            "version": platform.python_version(),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()),
        },
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda or "none",
            "nccl": nccl_version(),
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "gpu": gpus or {"found": "none"},
        "driver": driver_version() if gpus else "none",
        "ops": {op: implementation(op, device) for op in sorted(OPS)},
        "verified_by": {op: verified_by(op, device) for op in sorted(OPS)},
        "kernels": {name: examine_kernel(kernel, device) for name, kernel in KERNELS.items()},
        "record": {"kernels of this GPU": record_in_words(device) or "none: no GPU here"},
        "models": {"bundled": sorted(bundled_models())},
        "extras": extras(),
    }


def verified_by(op: str, device: torch.device) -> str:
    """Say what found the implementation right that a call of `op` on `device` chooses now."""
    kernel = running_kernel(op, device)
    if kernel is None:
        return BY_TESTS
    found = record_for(device, selection())
    tried = None if found is None or found.record is None else found.record.kernels.get(kernel)
    if tried is None or tried.fault is not None:
        return f"nothing: the choice {', '.join(selection().names)} runs it all the same"
    assert found is not None and found.record is not None
    return f"`aapt-fast verify` on this {found.gpu}, {found.record.date}"


def examine_kernel(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    """A kernel's state on this device and the reason, by the rule that calls of its op go by."""
    why = obstacle(kernel, device, selection())
    return {"on": why is None, "why": why or f"chosen by {', '.join(selection().names)}"}
