# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast doctor --plan PRESET`: memory that a session needs, against that of this machine. Nothing is loaded."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from aapt_fast.cli.checks import parse_size
from aapt_fast.cli.device import chosen_dtype, usable_device
from aapt_fast.errors import require
from aapt_fast.limits import memory_left
from aapt_fast.profiling.memory import HIDDEN_COPIES, STREAM_COPIES, MemoryPlan
from aapt_fast.profiling.systems import LARGE, System, find_system
from aapt_fast.streaming.pages import pages_for, pool_bytes

TEXT_ENCODER = "none: prompts come as embeddings, and an encoder of yours adds its weights"


def run(arguments: argparse.Namespace) -> None:
    """Print the plan, in words or as one JSON document."""
    device = usable_device(None)
    dtype = chosen_dtype(arguments.dtype, device)
    system = find_system(arguments.plan, parse_size(arguments.resolution), arguments.window)
    if arguments.offload_text:
        require(system.prompt > 0, "offload_text", f"a preset with a text stream, such as {LARGE[0]}", system.preset)
        require(device.type != "cpu", "offload_text", "a GPU: on a CPU all weights are in host memory", "none here")
    found = make_plan(system, dtype, device, arguments.offload_text)
    print(json.dumps(found) if arguments.json else "\n".join(in_words(found)))


def make_plan(system: System, dtype: torch.dtype, device: torch.device, offload_text: bool = False) -> dict[str, Any]:
    """Plan a session of `system` with weights in `dtype` on `device`; JSON-ready values.

    `parts` has [bytes, the rule in words] by name, `available_bytes` is None where the system does not say.
    """
    plan, free = system.memory(dtype, offload_text), memory_left(device)
    fits = None if free is None else plan.total() <= free
    width, height = system.size
    return {
        "verdict": judge(system, dtype, plan, device, free),
        "fits": fits,
        "preset": system.preset,
        "resolution": f"{width}x{height}",
        "window": system.config.window,
        "dtype": str(dtype).removeprefix("torch."),
        "device": _name(device),
        "available_bytes": free,
        "needed_bytes": plan.total(),
        "needed_bytes_with_kernels": plan.total(kernels=True),
        "host_bytes": plan.on_host,
        "parts": explain(system, plan),
        "text_encoder": TEXT_ENCODER,
    }


def judge(system: System, dtype: torch.dtype, plan: MemoryPlan, device: torch.device, free: int | None) -> str:
    """One sentence: whether the session fits into the `free` bytes of the device and, if not, what helps."""
    needs = f"a session of {system.preset} needs about {gib(plan.total())}"
    if free is None:
        return f"Unknown: {needs}, and this system does not say how much memory is available"
    here = f"{gib(free)} that are free on this {_name(device)}"
    if plan.total() <= free:
        return f"Fits: {needs} of the {here}"
    helps = ", or ".join(_remedies(system, dtype, plan, device, free))
    return f"Does not fit: {needs}, more than the {here}; what helps: {helps}"


def _remedies(system: System, dtype: torch.dtype, plan: MemoryPlan, device: torch.device, free: int) -> list[str]:
    """Changes, each of which is enough for itself; if there is none, more memory."""
    found = []
    with_kernels = plan.total(kernels=True)
    if device.type == "cuda" and with_kernels <= free:
        found.append(f"kernels that `aapt-fast verify` has found right and fast: {gib(with_kernels)}")
    config, offloads = system.config, plan.on_host > 0
    half = system.memory(torch.bfloat16, offloads).total() if dtype == torch.float32 else plan.total()
    if half <= free:
        found.append(f"--dtype bfloat16: {gib(half)}")
    if device.type == "cuda" and config.text_width and not offloads:
        offloaded = system.memory(dtype, offload_text=True)
        if offloaded.total() <= free:
            found.append(f"--offload-text: {gib(offloaded.total())}, and {gib(offloaded.on_host)} of host memory")
    frame = pool_bytes(config.layers, pages_for(config.tokens), config.heads, config.head_dim, dtype)
    window = config.window + (free - plan.total()) // frame  # rounded down: fewer frames than are too many
    if window >= 1 and not system.bundled:
        found.append(f"--window {window}")
    return found or ["a device with more memory" + ("" if system.bundled else ", a smaller --resolution and --window")]


def explain(system: System, plan: MemoryPlan) -> dict[str, tuple[int, str]]:
    """Parts of the plan: bytes and, in words, the rule behind them, by name."""
    config = system.config
    prompt = f" and a prompt of {system.prompt} tokens" if system.prompt else ""
    rule = config.window_rule
    on_host = f" (text stream, {gib(plan.on_host)} in host memory, not counted)" if plan.on_host else ""
    return {
        "weights": (
            plan.generator + plan.vae,
            f"generator {gib(plan.generator)}{on_host}, VAE {gib(plan.vae)}, decoder: {system.decoder}",
        ),
        "pages": (plan.pages, f"keys and values of {rule.capacity} frames{prompt} in {config.layers} layers"),
        "decoder state": (plan.decoder_state, "past features of its causal layers"),
        "attention": (
            plan.attention,
            "torch's code copies the keys and values of a layer; our kernels need none of it",
        ),
        "activations": (
            plan.activations,
            f"estimate: {STREAM_COPIES} of all tokens in float32, {HIDDEN_COPIES} of the widest layer's output",
        ),
        "decoding": (plan.decoding, "most that the decoder's layers have at a time; follows the evaluation"),
    }


def in_words(found: dict[str, Any]) -> list[str]:
    """Lines for a person, the verdict first."""
    lines = [
        f"{found['verdict']}.",
        f"{found['preset']} at {found['resolution']}, window {found['window']}, weights in {found['dtype']}:",
        *(f"  {name:15}{gib(size):>10}  {rule}" for name, (size, rule) in found["parts"].items()),
        f"  {'text encoder':15}{'':10}  {found['text_encoder']}",
        f"  {'sum':15}{gib(found['needed_bytes']):>10}  of all, but attention and activations or decoding only",
        f"  {'with kernels':15}{gib(found['needed_bytes_with_kernels']):>10}  without attention's copies, with the "
        "decoder's frames in rings",
    ]
    return [*lines, "Not counted: working memory of torch's libraries, on a GPU some hundred MiB."]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def gib(count: int) -> str:
    """Bytes in GiB or, below a tenth, in MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"
