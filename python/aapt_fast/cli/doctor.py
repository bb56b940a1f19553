# SPDX-License-Identifier: Apache-2.0
"""Say what is installed, what the machine has, what each op would run and which kernels are on."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import torch

from aapt_fast.models.files.bundled import assets
from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import KERNELS, Kernel, obstacle, selection
from aapt_fast.ops.registry import OPS, implementation


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
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "gpu": gpus or {"found": "none"},
        "ops": {op: implementation(op, device) for op in sorted(OPS)},
        "kernels": {name: examine_kernel(kernel, device) for name, kernel in KERNELS.items()},
        "models": {"bundled": sorted(entry.name for entry in assets().iterdir() if entry.is_dir())},
    }


def examine_kernel(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    """A kernel's state on this device and the reason, by the rule that calls of its op go by."""
    why = obstacle(kernel, device, selection())
    return {"on": why is None, "why": why or f"chosen by {', '.join(selection().names)}"}


def in_one_line(facts: dict[str, Any]) -> str:
    """The findings of `examine_kernel` in words."""
    return f"{'on' if facts['on'] else 'off'}: {facts['why']}"
