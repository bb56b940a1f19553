# SPDX-License-Identifier: Apache-2.0
"""Video VAEs from files: those of this package, of diffusers, and the original ones of Wan 2.1 and 2.2.

Every kind has the same interface: `encode` and `decode` for whole clips, `stream` for a decoder that takes latent
frames one by one. Latents are normalised, video is in -1..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aapt_fast.errors import CheckpointError, require
from aapt_fast.models.files.model_file import bundled_models, is_own_file, load_own_vae
from aapt_fast.models.files.named_weights import NamedWeights
from aapt_fast.models.files.placement import WAN_DTYPES, require_path, require_usable_device, require_usable_dtype
from aapt_fast.models.files.read import WEIGHT_SUFFIXES, computing_dtype, fill, read_config, read_tensors, weight_file
from aapt_fast.models.files.trainable import outside_inference_mode
from aapt_fast.models.vae.infer_wan_config import (
    DIFFUSERS_NAMES,
    RELEVANT,
    STATISTICS,
    UNUSED,
    configuration,
    facts_of_tensors,
    is_diffusers_layout,
    keys_of,
)
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig

DIFFUSERS_CLASS = "AutoencoderKLWan"
WRAPPER = "model."
"""Put before every name by a module around the original one; some files have it."""


@outside_inference_mode
def load_vae(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
) -> WanVAE | MiniVAE:
    """A video VAE, ready to decode, encode and stream.

    Args:
        path: a diffusers folder (`AutoencoderKLWan`, in shards or not, or a pipeline with a `vae` folder); an original
            file (`Wan2.1_VAE.pth`, `Wan2.2_VAE.pth`, the same tensors as safetensors) or a folder with one; a file of
            `save_pretrained` or the name of a bundled model.
        device: where the weights go.
        dtype: of the weights and the computation. None is that of the file; but float16 becomes float32 on the CPU,
            and so does a dtype that torch does not compute in.
        config: entries as in diffusers' configuration that are neither in the tensors nor in a `config.json` beside
            them: `latents_mean` and `latents_std` of a VAE that is not a published one.
    Returns:
        The VAE in evaluation mode, its weights without gradients.
    Raises:
        CheckpointError: a damaged file, a missing, extra or misshapen tensor, a configuration that contradicts the
            tensors; the message names file, key, expected and got.
        ValueError: an unknown entry of `config`, a `config` for a file of this package, which needs none; a device
            that torch cannot use; a dtype that the VAE does not compute in.
        TypeError: an argument of another type.

        vae = aapt_fast.load_vae(path)
        stream = vae.stream()
        for latents in frames:                                # [B, C, 1, h, w]
            show(stream.decode(latents, out="uint8"))         # [B, 1, H, W, 3], then [B, 4, H, W, 3]
    """
    require_path("path", path)
    require_usable_device(device)
    if dtype is not None:
        require_usable_dtype(dtype, WAN_DTYPES)
    _check_config(config)
    file = bundled_models().get(str(path)) or vae_file(Path(path))
    if is_own_file(file):
        require(config is None, "config", "none: the file holds its configuration", config)
        return load_own_vae(file, device=device, dtype=dtype)
    weights = open_wan_vae(file, config)
    with torch.device("meta"):
        vae = WanVAE(weights.config)
    vae = vae.to(computing_dtype(weights.tensors, device) if dtype is None else dtype)
    fill(vae, weights.tensors, weights.source, file_key=weights.file_key, device=device)
    return vae.to(device).eval().requires_grad_(False)


def open_wan_vae(file: Path, config: Mapping[str, Any] | None = None) -> NamedWeights[WanVAEConfig]:
    """The weights of a Wan VAE as `load_vae` finds them, and their configuration.

    `config` and errors are those of `load_vae`.
    """
    _check_config(config)
    tensors = read_tensors(file)
    wrapper = WRAPPER if all(name.startswith(WRAPPER) for name in tensors) else ""
    names = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    given = {"config.json": _config_beside(file), "config": config or {}}
    wan = configuration(facts_of_tensors(names, file), given, file)
    translate = keys_of(wan).to_diffusers if is_diffusers_layout(names) else str
    return NamedWeights(wan, tensors, file, lambda name: wrapper + translate(name))


def vae_file(path: Path) -> Path:
    """The file with the VAE's weights: of a folder the one that is a VAE's. Raises CheckpointError if none is."""
    if not path.exists():
        bundled = ", ".join(bundled_models()) or "none"
        raise CheckpointError(f"{path}: expected a file, a folder or a bundled model ({bundled}), got nothing there")
    if path.is_file():
        return path
    if (path / "vae").is_dir():
        return weight_file(path / "vae")
    config = read_config(path)
    if config is not None and config.get("_class_name") == DIFFUSERS_CLASS:
        return weight_file(path)
    named = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES and "vae" in file.name.lower())
    return named[0] if len(named) == 1 else weight_file(path)


def _config_beside(file: Path) -> Mapping[str, Any]:
    """The VAE's configuration beside its file; that of another model, as in the original folders, says nothing."""
    found = read_config(file) or {}
    name = str(found.get("_class_name", DIFFUSERS_CLASS))
    if name.startswith("Autoencoder") and name != DIFFUSERS_CLASS:
        raise CheckpointError(f"{file.with_name('config.json')}: _class_name: expected {DIFFUSERS_CLASS}, got {name}")
    is_ours = name == DIFFUSERS_CLASS and ("_class_name" in found or any(key in found for key in STATISTICS))
    return found if is_ours else {}


def _check_config(config: Mapping[str, Any] | None) -> None:
    """Raise ValueError for an entry of the user's configuration that is not known."""
    known = RELEVANT | set(DIFFUSERS_NAMES) | set(UNUSED)
    strangers = [key for key in config or {} if key not in known and not key.startswith("_")]
    require(not strangers, "config", f"entries among {', '.join(sorted(known))}", ", ".join(strangers))
