# SPDX-License-Identifier: Apache-2.0
"""The report of `aapt-fast doctor` on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from aapt_fast.cli.busy import competition
from aapt_fast.cli.plan import gib

MODEL = "mini-person"
REAL_TIME = 24.0
"""Video frames per second of the bundled models."""

WIDTH, NAME = 120, 9
"""Columns of the screen, and of a subject's name."""


def screen(report: Mapping[str, Any]) -> str:
    """Write the report of `doctor.run` for a person: the verdict, the faults, then one paragraph per subject."""
    lines = in_words(report["verdict"])
    lines += [f"Wrong: {fault}." for fault in report["faults"] if fault != report["verdict"].get("why")]
    paragraphs = [textwrap.fill(line, WIDTH, subsequent_indent="  ", break_long_words=False) for line in lines]
    if "build" in report:
        for name, text in facts(report):
            space = " " * NAME
            paragraphs.append(
                textwrap.fill(f"{name:{NAME}}{text}", WIDTH, subsequent_indent=space, break_long_words=False)
            )
    return "\n".join(paragraphs)


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Lines for a person: first the verdict, then advice where there is any."""
    if "why" in found:
        return [f"Not ready: {found['why']}"]
    word = "Ready" if found["ready"] else "Slower than real time"
    mp4 = "yes" if found["mp4"] else "no (pip install 'aapt_fast[video]')"
    lines = [
        f"{word} on this {found['device']}: {MODEL} makes about {found['video_fps']:.0f} video frames per second "
        f"in {found['dtype']} (real time is {REAL_TIME:.0f}); mp4: {mp4}"
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


def facts(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Subjects and what there is to say about each."""
    python, torch = report["python"], report["torch"]
    yield "build", _build(report["build"])
    yield "python", f"{python['version']} on {python['machine']}, {python['libc']}"
    yield (
        "torch",
        f"{torch['version']}, CUDA {torch['cuda']}, NCCL {torch['nccl']}, {torch['threads']} threads, {torch['cpu']}",
    )
    yield "gpu", _gpus(report)
    have = [extra for extra, there in report["extras"].items() if there]
    lack = [extra for extra, there in report["extras"].items() if not there]
    get = f"; missing: `pip install 'aapt_fast[{','.join(lack)}]'`" if lack else ""
    yield "extras", f"{', '.join(have) or 'none'}{get}"
    yield "models", ", ".join(report["models"]["bundled"])
    for running, ops in _grouped((op, _how(report, op)) for op in report["ops"]):
        yield "ops", f"{running}: {', '.join(ops)}"
    for state, kernels in _grouped((name, in_one_line(each)) for name, each in report["kernels"].items()):
        yield "kernels", f"{state}: {', '.join(kernels)}"
    yield from _memory(report["memory"])


def in_one_line(kernel: Mapping[str, Any]) -> str:
    """The state of a kernel and the reason, in words."""
    return f"{'on' if kernel['on'] else 'off'}: {kernel['why']}"


def _build(build: Mapping[str, Any]) -> str:
    if "version" not in build:
        return f"compiled module {build['compiled module']}"
    cuda = f"CUDA {build['cuda_version']} for {build['cuda_archs']}, CUTLASS {build['cutlass_version']}"
    with_cuda = cuda if build["cuda"] else "without CUDA"
    return f"{build['version']}, commit {build['commit']}, {build['compiler']}, {build['build_type']}, {with_cuda}"


def _gpus(report: Mapping[str, Any]) -> str:
    if not isinstance(report["gpu"], list):
        return "none"
    names = (f"{gpu['name']} ({gpu['capability']})" for gpu in report["gpu"])
    return f"{', '.join(names)}, driver {report['driver']}"


def _how(report: Mapping[str, Any], op: str) -> str:
    return f"{report['ops'][op]} ({report['verified_by'][op]})"


def _grouped(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    """The names that have the same text, by text, in the order of the first name."""
    groups: dict[str, list[str]] = {}
    for name, text in pairs:
        groups.setdefault(text, []).append(name)
    return groups.items()


def _memory(memory: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    free = memory["available_bytes"]
    here = "this system does not say what is free" if free is None else f"{gib(free)} are free"
    sessions = (
        f"{each['preset']} at {each['resolution']} {gib(each['needed_bytes'])}"
        + (" (does not fit)" if each["fits"] is False else "")
        for each in memory["sessions"]
    )
    yield (
        "memory",
        f"{here}; a session in {memory['dtype']} needs: {', '.join(sessions)}. `aapt-fast doctor --plan PRESET` has "
        "the parts, and what helps",
    )
