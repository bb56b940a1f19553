# SPDX-License-Identifier: Apache-2.0
"""Say what is installed, what the machine has, which implementation each op will use and which kernels are on."""

from __future__ import annotations

import argparse
import json
import platform
from types import ModuleType
from typing import Any

import torch

from aapt_fast.models.files.model_file import assets
from aapt_fast.ops import implementations
from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import KERNELS, runs_on, selection
from aapt_fast.ops.machine_code import MachineCodeError, kernel_hash, machine_code
from aapt_fast.ops.verified import verification


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")


def run(arguments: argparse.Namespace) -> None:
    report = examine()
    if arguments.json:
        print(json.dumps(report))
        return
    for section, facts in report.items():
        print(section)
        items = facts.items() if isinstance(facts, dict) else enumerate(facts)
        for name, value in items:
            print(f"  {name}: {in_one_line(value) if section == 'kernels' else value}")


def examine() -> dict[str, Any]:
    """What is installed, what the machine has, and what each op will run, as JSON-ready values."""
    module = extension_or_none()
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "gpu": gpus or {"found": "none"},
        "ops": {name: by_device[device] for name, by_device in implementations().items()},
        "kernels": {kernel: examine_kernel(kernel, module, torch.device(device)) for kernel in KERNELS},
        "models": {"bundled": sorted(entry.name for entry in assets().iterdir() if entry.is_dir())},
    }


def examine_kernel(kernel: str, module: ModuleType | None, device: torch.device) -> dict[str, Any]:
    """Whether a kernel runs on this device, why, and the hashes of its machine code by architecture."""
    facts: dict[str, Any] = {"on": False, "why": "the compiled module is missing", "hashes": {}}
    if module is None:
        return facts
    try:
        architectures = machine_code(module).architectures(kernel)
        facts["hashes"] = {name: kernel_hash(kernel, module, name) for name in architectures}
    except (MachineCodeError, OSError):
        pass  # `verification` says it
    found, selected = verification(kernel, module, device), selection()
    if not runs_on(module, device):
        return {**facts, "why": found.why}
    if not hasattr(module, kernel.replace("/", "_")):
        return {**facts, "why": "the compiled module does not have it"}
    if selected.asks_for(kernel):
        return {**facts, "on": True, "why": f"asked for by name; {found.why}"}
    on = selected.allows(kernel, module, device)
    unwanted = "" if on or not found.verified else f", but AAPT_KERNELS is {','.join(selected.names)}"
    return {**facts, "on": on, "why": found.why + unwanted}


def in_one_line(facts: dict[str, Any]) -> str:
    """What `examine_kernel` found, with short hashes."""
    codes = ", ".join(f"{name} {digest[:12]}" for name, digest in facts["hashes"].items())
    return f"{'on' if facts['on'] else 'off'}: {facts['why']}" + (f" ({codes})" if codes else "")
