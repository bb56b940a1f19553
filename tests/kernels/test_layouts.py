# SPDX-License-Identifier: Apache-2.0
"""Swizzles, matrix descriptors, operands in shared memory and fragments of wgmma, compared with CuTe's own layouts."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from aapt_fast.testing.planting import CSRC
from aapt_fast.testing.targets import EMULATED_BUILD

COMPARED = (
    [f"swizzle {width}" for width in (0, 32, 64, 128)]
    + [f"{major}-major{what} {width}" for major in ("K", "MN") for what in ("", " descriptor") for width in (0, 128)]
    + [f"accumulators {columns}" for columns in (64, 96, 128, 192, 256)]
    + ["registers of A 16"]
)


def test_layouts_equal_those_of_cute(tmp_path, request):
    if not request.config.getoption("--full"):
        pytest.skip("compiling CuTe takes ten seconds or more; runs with --full")
    entries = json.loads((EMULATED_BUILD / "compile_commands.json").read_text())
    attention = next(entry for entry in entries if "paged_attention/instantiations/bf16_d64" in entry["file"])
    compiler, *options = shlex.split(attention["command"])
    included = [options[i + 1] for i, option in enumerate(options) if option == "-isystem"]  # CUTLASS and CUDA
    program = tmp_path / "layouts"
    command = [compiler, "-std=c++17", "-O0", "-w", f"-I{CSRC}", *(f"-isystem{folder}" for folder in included)]
    subprocess.run([*command, str(Path(__file__).with_name("layouts.cpp")), "-o", str(program)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    compared = dict(line.rsplit(": ", 1) for line in output.splitlines() if not line.startswith("ERROR"))
    assert compared == dict.fromkeys(COMPARED, "0")
