# SPDX-License-Identifier: Apache-2.0
"""Video VAEs from files: those of this package, of diffusers, the original ones of Wan 2.1 and 2.2, that of SeedVR.

Every kind has the same interface: `encode` and `decode` for whole clips, `stream` for a decoder that takes latent
frames one by one. Latents are normalised, video is in -1..1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aapt_fast.errors import CheckpointError, require
from aapt_fast.models.files.bundled import bundled_vaes
from aapt_fast.models.files.find import weight_file
from aapt_fast.models.files.model_file import is_own_file, load_own_vae
from aapt_fast.models.files.named_weights import NamedWeights, read_part
from aapt_fast.models.files.placement import checked_placement
from aapt_fast.models.files.read import computing_dtype, read_config
from aapt_fast.models.files.recognise import VAE, WEIGHT_SUFFIXES
from aapt_fast.models.files.trainable import outside_inference_mode
from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.infer_aapt_config import ENTRIES, aapt_configuration, file_name, is_aapt_layout
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
WRAPPERS = ("model.", "vae.", "first_stage_model.")
"""Put before every name by a module around the original one, or in an all-in-one checkpoint."""
WAN_ENTRIES = RELEVANT | frozenset(DIFFUSERS_NAMES) | frozenset(UNUSED)
"""Known entries of the configuration of a Wan VAE."""


@outside_inference_mode
def load_vae(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    config: Mapping[str, Any] | None = None,
) -> WanVAE | MiniVAE | AAPTVAE:
    """A video VAE, ready to decode, encode and stream.

    Args:
        path: a diffusers folder (`AutoencoderKLWan`, in shards or not, or a pipeline with a `vae` folder); an original
            file (`Wan2.1_VAE.pth`, `Wan2.2_VAE.pth`, SeedVR's `ema_vae.pth`, the same tensors as safetensors) or a
            folder with one; a file of `save_pretrained`, or one that training leaves in its folder `codec`; the name of
            a bundled model or VAE; an all-in-one checkpoint.
        device: where the weights go.
        dtype: of the weights and the computation, or torch's name of it. None is that of the file; but float16 becomes
            float32 on the CPU, and so does a dtype that torch does not compute in.
        config: entries as in diffusers' configuration that are neither in the tensors nor in a `config.json` beside
            them: `latents_mean` and `latents_std` of a Wan VAE that is not a published one; for the family of SeedVR
            `norm_num_groups` and `scaling_factor`, if they are not 32 and 0.9152.
    Returns:
        The VAE in evaluation mode, its weights without gradients.
    Raises:
        CheckpointError: a damaged file, a missing, extra or misshapen tensor, a configuration that contradicts the
            tensors, a file of another kind; the message names file, key, expected and got.
        ValueError: an unknown entry of `config`, a `config` for a file of this package, which needs none; a device
            that torch cannot use; a dtype that the VAE does not compute in.
        TypeError: an argument of another type.

        vae = aapt_fast.load_vae(path)
        stream = vae.stream()
        for latents in frames:                                # [B, C, 1, h, w]
            show(stream.decode(latents, out="uint8"))         # [B, 1, H, W, 3], then [B, 4, H, W, 3]
    """
    device, dtype = checked_placement(path, device, dtype)
    _check_config(config, WAN_ENTRIES | ENTRIES)
    file = bundled_vaes().get(str(path)) or vae_file(Path(path))
    if is_own_file(file):
        require(config is None, "config", "none: the file holds its configuration", config)
        return load_own_vae(file, device=device, dtype=dtype)
    weights = open_vae(file, config)
    with torch.inference_mode(False):  # for the buffers with statistics; `fill` sees to the weights
        vae = meta_vae(weights.config)
        vae = vae.to(computing_dtype(weights.tensors, device) if dtype is None else dtype)
        weights.fill(vae, device)
        return vae.to(device).eval().requires_grad_(False)


def open_vae(file: Path, config: Mapping[str, Any] | None = None) -> NamedWeights[WanVAEConfig | AAPTVAEConfig]:
    """The weights of a VAE of Wan or SeedVR as `load_vae` finds them, and their configuration.

    `config` and errors are those of `load_vae`.
    """
    _check_config(config, WAN_ENTRIES | ENTRIES)
    tensors, changes = read_part(file, VAE)
    wrapper = next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in tensors)), "")
    names = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    found: WanVAEConfig | AAPTVAEConfig
    if is_aapt_layout(names):
        _check_config(config, ENTRIES)
        found = aapt_configuration(names, {"config.json": read_config(file) or {}, "config": config or {}}, file)
        return NamedWeights(found, tensors, file, lambda name: wrapper + file_name(name, names), changes)
    _check_config(config, WAN_ENTRIES)
    given = {"config.json": _config_beside(file), "config": config or {}}
    found = configuration(facts_of_tensors(names, file), given, file)
    translate = keys_of(found).to_diffusers if is_diffusers_layout(names) else str
    return NamedWeights(found, tensors, file, lambda name: wrapper + translate(name), changes)


def meta_vae(config: WanVAEConfig | AAPTVAEConfig) -> WanVAE | AAPTVAE:
    """A VAE without memory for its weights."""
    with torch.device("meta"):
        return AAPTVAE(config) if isinstance(config, AAPTVAEConfig) else WanVAE(config)


def vae_file(path: Path) -> Path:
    """The file with the VAE's weights: of a folder the one that is a VAE's. Raises CheckpointError if none is."""
    expected = f"a file, a folder or a bundled model ({', '.join(bundled_vaes())}) with a VAE"
    if not os.path.isdir(path):
        return weight_file(path, expected)
    if (path / "vae").is_dir():
        return weight_file(path / "vae", expected)
    config = read_config(path)
    if config is not None and config.get("_class_name") == DIFFUSERS_CLASS:
        return weight_file(path, expected)
    named = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES and "vae" in file.name.lower())
    return named[0] if len(named) == 1 else weight_file(path, expected)


def _config_beside(file: Path) -> Mapping[str, Any]:
    """The VAE's configuration beside its file; that of another model, as in the original folders, says nothing."""
    found = read_config(file) or {}
    name = str(found.get("_class_name", DIFFUSERS_CLASS))
    if name.startswith("Autoencoder") and name != DIFFUSERS_CLASS:
        raise CheckpointError(f"{file.with_name('config.json')}: _class_name: expected {DIFFUSERS_CLASS}, got {name}")
    is_ours = name == DIFFUSERS_CLASS and ("_class_name" in found or any(key in found for key in STATISTICS))
    return found if is_ours else {}


def _check_config(config: Mapping[str, Any] | None, known: frozenset[str]) -> None:
    """Raise ValueError for an entry of the user's configuration that is not known."""
    strangers = [key for key in config or {} if key not in known and not key.startswith("_")]
    require(not strangers, "config", f"entries among {', '.join(sorted(known))}", ", ".join(strangers))
