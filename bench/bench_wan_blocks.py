# SPDX-License-Identifier: Apache-2.0
"""Time of a block of a few-step causal Wan transformer, as Self-Forcing samples, without a VAE.

    python -m bench.bench_wan_blocks [--out F] [--blocks N] [--limit SECONDS] [--tiny]

Wan 2.1 1.3B at 832x480 with random weights: blocks of 3 latent frames (12 video frames), 4 evaluations and one for the
cache, a window of 21 frames. Two runs of one model take their blocks in turn, with the package's kernels and without.
The sixth block is the one that others report; `full` is the median of the blocks that see a full window. Time is wall
clock until the block is complete. Without a GPU the status is 3; --tiny runs anywhere.
"""

from __future__ import annotations

import dataclasses
import time
from types import ModuleType
from typing import Any

import torch

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops._load import extension_or_none
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.ops.window import WindowRule
from aapt_fast.profiling.document import DTYPE_NAMES, Document, result
from aapt_fast.profiling.timing import Sample
from aapt_fast.streaming.session import StreamSession
from aapt_fast.verification.case import obstacles
from aapt_fast.verification.compare import relative_l2
from bench.harness.program import current_device, finish, open_document, parser

WAN_1_3B, GRID = WanConfig(), (60, 104)
TINY, TINY_GRID = WanConfig(heads=2, head_dim=64, layers=2, ffn_width=96, text_width=16, text_length=8), (4, 6)
RULE = WindowRule(3, window=18)
SAMPLER = FewStepSampler(window=RULE)
USED = ("kv_write", "paged_attention", "philox_normal")  # ops of a block
SIXTH = 6
ON, OFF = "kernels on", "kernels off"


def build(config: WanConfig, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> StreamModel:
    """Make a model with random weights on the device; its small VAE is never called."""
    torch.manual_seed(0)
    with torch.device(device):
        generator, vae = WanTransformer(config).to(dtype), MiniVAE(MiniVAEConfig(latent_channels=config.out_channels))
    return StreamModel(generator.eval().requires_grad_(False), vae.to(dtype).eval().requires_grad_(False), grid=grid)


def wanted_kernels(module: ModuleType | None, device: torch.device) -> tuple[str, ...]:
    """List the kernels of the ops of a block that the module has for this device."""
    found = obstacles(module, device)
    return tuple(kernel for kernel, why in found.items() if why is None and kernel.split("/")[0] in USED)


@torch.no_grad()
def measure(
    model: StreamModel, kernels: tuple[str, ...], module: ModuleType | None, *, blocks: int, limit_s: float
) -> tuple[dict[str, list[float]], float]:
    """Time each block; returns milliseconds by side, and the relative difference (L2) of the sides' first blocks."""
    device, config = model.device, model.config
    chosen = {ON: kernels, OFF: ("none",)} if kernels else {OFF: ("none",)}
    prompt = torch.randn(config.text_length, config.text_width, device=device, dtype=model.dtype)
    sessions = {side: StreamSession(model, prompt=prompt, sampler=SAMPLER) for side in chosen}
    times: dict[str, list[float]] = {side: [] for side in chosen}
    first, begun = {}, time.perf_counter()
    for number in range(1, blocks + 1):
        for side in list(sessions) if number % 2 else list(sessions)[::-1]:
            marks: list[float] = []

            def mark(stage: str, marks: list[float] = marks) -> None:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                marks.append(time.perf_counter())

            sessions[side].on_stage = mark
            with use_kernels(*chosen[side], extension=module):
                sessions[side].step()
            times[side].append(1e3 * (marks[1] - marks[0]))
            if number == 1:
                first[side] = sessions[side].frame
        if number > SIXTH + 5 and time.perf_counter() - begun > limit_s:
            break
    return times, relative_l2(first[ON], first[OFF]) if kernels else 0.0


def report(
    document: Document, name: str, times: dict[str, list[float]], kernels: tuple[str, ...], **facts: Any
) -> None:
    """Add one result per side and phase: the sixth block, and those with a full window after the first of them."""
    assert RULE.capacity is not None
    full = RULE.capacity // RULE.frames + 1
    for phase, of_phase in (("sixth block", slice(SIXTH - 1, SIXTH)), ("full", slice(full, None))):
        samples = {side: Sample(tuple(values[of_phase]), None, "wall clock") for side, values in times.items()}
        for side, sample in samples.items():
            entry = result(
                f"{name}/{phase}",
                sample,
                f"eager launches; {side}: {', '.join(kernels if side == ON else ()) or 'torch compositions'}",
                baseline=OFF,
                ratio=sample.times(samples[OFF]),
                phase=phase,
                ours=side == ON,
                **facts,
            )
            document.add("results", entry)
            print(f"{name}: {phase}: {side}: p50 {sample.p50:.2f} ms, ratio {entry['ratio']:.2f}", flush=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--blocks", type=int, default=40, help="blocks of each side, at most")
    options.add_argument("--limit", type=float, default=60.0, help="seconds, about")
    options.add_argument("--tiny", action="store_true", help="a small model, to try the program out")
    arguments = options.parse_args()
    least = SIXTH + 3
    if arguments.blocks < least:
        options.error(f"--blocks: expected at least {least}, so that some see a full window, got {arguments.blocks}")
    device = current_device(arguments.tiny, "--tiny")
    config, grid = (TINY, TINY_GRID) if arguments.tiny else (WAN_1_3B, GRID)
    dtype, module = torch.bfloat16 if device.type == "cuda" else torch.float32, extension_or_none()
    document = open_document(arguments.out)
    document.note_clocks("before wan blocks")
    name = f"blocks/wan-{'tiny' if arguments.tiny else '1.3b'}/{8 * grid[1]}x{8 * grid[0]}/{DTYPE_NAMES[dtype]}"
    model, kernels = build(config, grid, device, dtype), wanted_kernels(module, device)
    times, difference = measure(model, kernels, module, blocks=arguments.blocks, limit_s=arguments.limit)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    schedule = {key: str(value) for key, value in dataclasses.asdict(SAMPLER).items()}
    facts = {"difference_of_the_sides": difference, "peak_memory_bytes": memory, "schedule": schedule}
    report(document, name, times, kernels, weights="random", **facts)
    document.note_clocks("after wan blocks")
    finish(document)


if __name__ == "__main__":
    main()
