# SPDX-License-Identifier: Apache-2.0
"""Say what is installed, what the machine has, and which implementation each op will use."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

import torch

from aapt_fast.models.checkpoint import assets
from aapt_fast.ops import implementations
from aapt_fast.ops._load import extension_or_none


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
            print(f"  {name}: {value}")


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
        "verified on a GPU": {"kernels": "none: this version has no CUDA kernel"},
        "models": {"bundled": sorted(entry.name for entry in assets().iterdir() if entry.is_dir())},
    }
