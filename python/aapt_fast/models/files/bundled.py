# SPDX-License-Identifier: Apache-2.0
"""The models that come with the package, and the names of those that come without weights."""

from __future__ import annotations

from pathlib import Path

PRESETS = ("aapt-8b", "mini-person", "nano", "nano-text")
"""The keys of `aapt_fast.models.aapt.presets.GENERATORS`, for messages without torch; a test compares them."""


def assets() -> Path:
    """The folder of the bundled models."""
    return Path(__file__).parents[2] / "assets"


def bundled_models() -> dict[str, Path]:
    """The weight files of the bundled models by name."""
    files = {entry.name: entry / "model.safetensors" for entry in sorted(assets().iterdir())}
    return {name: file for name, file in files.items() if file.is_file()}


def bundled_vaes() -> dict[str, Path]:
    """The files that hold a VAE, by name: those of the bundled models, and `vae.safetensors` of VAEs alone."""
    alone = {entry.name: entry / "vae.safetensors" for entry in sorted(assets().iterdir())}
    return bundled_models() | {name: file for name, file in alone.items() if file.is_file()}


def list_models() -> dict[str, str]:
    """Names that `StreamModel.from_pretrained` takes without a file -> one sentence about each, from its model card."""
    return {name: _first_sentence(file.with_name("CARD.md")) for name, file in bundled_models().items()}


def _first_sentence(card: Path) -> str:
    """First sentence after the title of a model card; "" without a card."""
    if not card.is_file():
        return ""
    _, paragraph, *_ = card.read_text(encoding="utf-8").split("\n\n", 2)
    return " ".join(paragraph.split()).partition(". ")[0].removesuffix(".") + "."
