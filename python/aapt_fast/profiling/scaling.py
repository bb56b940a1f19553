# SPDX-License-Identifier: Apache-2.0
"""What one latent frame takes on 1, 2, 4 and 8 GPUs: the roofline of a step beside what the paper has published."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.vae.aapt import LIGHT
from aapt_fast.profiling.decoders import decoder_layers
from aapt_fast.profiling.roofline import GPUS, PAPER, Gpu, Step, exchanged_bytes, predict

COUNTS = (1, 2, 4, 8)
SCHEMES = ("sp", "tp")


@dataclass(frozen=True)
class Row:
    """One latent frame, decoder included; milliseconds. All but `paper_ms` is a prediction, not a measurement."""

    resolution: str
    past_frames: int
    gpu: str
    gpus: int
    scheme: str
    floor_ms: float
    target_ms: float
    exchange_ms: float
    sent_mib: float
    """That each GPU sends in a step."""
    paper_ms: float | None
    """Published for as many H100."""


def scaling_table(config: GeneratorConfig, prompt: int) -> list[Row]:
    """The rows for both sizes of the paper, each with its window; `config` is that of the 8 B model, at any size."""
    rows = []
    for published in PAPER:
        width, height = (length // 8 for length in published.size)
        at_size = dataclasses.replace(config, grid=(height, width), window=published.past_frames)
        step = Step(at_size, prompt, decoder_layers(LIGHT, height, width))
        for gpu in GPUS.values():
            for gpus in COUNTS:
                known = 1e3 * published.seconds if gpus == published.gpus and gpu is GPUS["h100"] else None
                schemes = SCHEMES if gpus > 1 else SCHEMES[:1]
                rows += [_row(step, published.size, gpu, gpus, scheme, known) for scheme in schemes]
    return rows


def _row(step: Step, size: tuple[int, int], gpu: Gpu, gpus: int, scheme: str, paper_ms: float | None) -> Row:
    found = predict(step, gpu, gpus, scheme)
    exchange = sum(share["target_ms"] for share in found["shares"] if share["name"] == "exchange")
    sent = exchanged_bytes(step.config, gpus, scheme) / 2**20 if gpus > 1 else 0.0
    return Row(
        resolution=f"{size[0]}x{size[1]}",
        past_frames=step.config.window,
        gpu=gpu.name,
        gpus=gpus,
        scheme=scheme if gpus > 1 else "",
        floor_ms=found["floor_ms"],
        target_ms=found["target_ms"],
        exchange_ms=exchange,
        sent_mib=sent,
        paper_ms=paper_ms,
    )
