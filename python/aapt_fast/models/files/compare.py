# SPDX-License-Identifier: Apache-2.0
"""Comparison of the models in two files: same class, same configuration, same output, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.files.load_generator import load_generator
from aapt_fast.models.files.load_vae import load_vae
from aapt_fast.models.vae.aapt import AAPTVAE
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.vae.wan import WanVAE
from aapt_fast.models.wan.transformer import PATCH, WanTransformer

SMALL = 200_000_000
"""Parameters of a model whose forward takes seconds on a CPU."""


def require_equal_models(
    kind: str,
    source: Path,
    result: Path,
    config: Mapping[str, Any] | None,
    dtype: torch.dtype | None,
) -> None:
    """Load both, as `dtype` (as they are for float64), and run them on the same small input, in float32.

    `kind` is "generator", "vae", or anything else for a file with both. Raises CheckpointError where they differ.
    """
    dtype = None if dtype == torch.float64 else dtype  # narrowed below; small VAEs do not compute in it
    loaders: dict[str, Any] = {"generator": load_generator, "vae": load_vae}
    for part, load in loaders.items():
        if kind not in loaders or part == kind:
            _require_equal(load(source, config=config, dtype=dtype), load(result, dtype=dtype), result)


def _require_equal(theirs: nn.Module, ours: nn.Module, result: Path) -> None:
    if type(ours) is not type(theirs) or ours.config != theirs.config:
        raise CheckpointError(f"{result}: expected {theirs.config}, as in the source, got {ours.config}")
    with torch.inference_mode():
        outputs = OUTPUTS[type(ours)]
        expected, got = outputs(theirs.float()), outputs(ours.float())
    for name, value in expected.items():
        if not torch.equal(value, got[name]):
            off = float((value - got[name]).abs().max())
            raise CheckpointError(f"{result}: {name}: expected the output of the source, got a difference of {off:g}")


def _vae(model: WanVAE | MiniVAE | AAPTVAE) -> dict[str, Tensor]:
    height, width = model.spatial_factor, 2 * model.spatial_factor
    return {
        "decode": model.decode(_random(1, model.latent_channels, 2, 1, 2)),
        "encode": model.encode(_random(1, 3, 5, height, width).clamp(-1, 1)),
    }


def _wan_transformer(model: WanTransformer) -> dict[str, Tensor]:
    config = model.config
    frames = config.window_rule.frames + 1  # so that a block has a past
    image = _random(1, 3, config.image_width) if config.image_width else None
    text = model.prepare_prompt(_random(1, 2, config.text_width))
    hidden = _random(1, config.in_channels, frames, 2 * PATCH, PATCH)
    return {"velocity": model(hidden, torch.tensor([500.0], dtype=torch.float32), text, image, causal=True)}


def _generator(model: Generator) -> dict[str, Tensor]:
    config = model.config
    t = torch.tensor([0.5], dtype=torch.float32)
    text = model.encode_text(_random(1, 2, config.text_width), t) if config.text_width else None
    noised = _random(1, config.latent_channels, 1, *config.grid)
    recycled, control = (noised, None) if config.autoregressive else (None, None)
    if config.control is not None and config.autoregressive:
        control = _random(1, config.control.step_channels, 1, *config.grid)
    cache = model.new_cache(text=text) if config.autoregressive else model.whole_clip_cache(text=text)
    return {"frame": model(noised, recycled, control, t, cache)}


OUTPUTS: dict[type[nn.Module], Callable[[Any], dict[str, Tensor]]] = {
    Generator: _generator,
    WanTransformer: _wan_transformer,
    MiniVAE: _vae,
    WanVAE: _vae,
    AAPTVAE: _vae,
}
"""Class of a model -> the outputs [...] by name that are compared."""


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
