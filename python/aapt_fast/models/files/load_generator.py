# SPDX-License-Identifier: Apache-2.0
"""Generators from files of this package, of diffusers and in the original layout."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import CheckpointError, require
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.models.files.find import weight_file
from aapt_fast.models.files.lora import LoraFiles, merged
from aapt_fast.models.files.model_file import is_own_file, read_model
from aapt_fast.models.files.named_weights import NamedWeights, read_part
from aapt_fast.models.files.placement import WAN_DTYPES, checked_placement
from aapt_fast.models.files.read import Cut, read_config
from aapt_fast.models.files.recognise import TRANSFORMER
from aapt_fast.models.files.trainable import outside_inference_mode
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.infer_config import wan_config
from aapt_fast.models.wan.keys import (
    diffusers_to_wan_key,
    is_diffusers_layout,
    is_unused,
    wan_to_diffusers_key,
    without_wrappers,
)
from aapt_fast.models.wan.layers import Head
from aapt_fast.models.wan.transformer import WanBlock, WanTransformer

PIPELINE_PART = "transformer"
EXPERTS = (("transformer", "transformer_2"), ("high_noise_model", "low_noise_model"))
"""Folders of the two halves of one model, for high and low noise, in diffusers and in the original layout."""
GROUPS = ("generator_ema", "generator")


@outside_inference_mode
def load_generator(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    config: Mapping[str, Any] | None = None,
    lora: LoraFiles | None = None,
    lora_scale: float | Sequence[float] = 1.0,
    cut: Cut | None = None,
) -> Generator | WanTransformer:
    """The generator in a file or folder, in evaluation mode.

    Args:
        path: a bundled model's name or a file of `save_pretrained`; or a Wan 2.1 or 2.2 transformer: a folder of
            diffusers (also that of a whole pipeline, and sharded), a file or folder in the original layout
            (safetensors, also sharded), or a file of `torch.save` with a state dict, maybe under `generator_ema` or
            `generator` and with the prefixes of training wrappers; or an all-in-one checkpoint. Weights in float8 with
            scales (`scaled_fp8`) are multiplied by them in float32. Of the two experts of Wan 2.2 A14B one has to be
            named.
        device: where the weights go.
        dtype: of the weights, or torch's name of it; None keeps that of the file (float32 for our own files). A Wan
            transformer keeps norms, modulation and the embedding of timesteps in float32 if dtype is smaller, as
            diffusers does.
        config: entries that are neither in the tensors nor in a `config.json` beside them, under diffusers' or the
            original names: the heads (default: as many as have a width of 128), `eps`, and the frames that a step of
            a causal model sees (`num_frame_per_block`, `local_attn_size`, `sink_size`).
        lora: LoRA files to merge into a Wan transformer, one or several.
        lora_scale: strength of all of them, or one number for each.
        cut: for a generator that keeps a part of itself (`read.Cut`); None for all of it.

    Raises:
        CheckpointError: file, key, expected and got: a damaged file, a missing, extra or misshapen tensor, a
            configuration that contradicts the tensors or `config`, a LoRA that does not fit. A file of another kind
            is named, with the call that reads it.
        ValueError: an unknown name in `config`; `config` or `lora` for a file of our own; a device that torch cannot
            use; a dtype that is not of floats.
        TypeError: an argument of another type.
    """
    device, dtype = checked_placement(path, device, dtype)
    folder = Path(path)
    for experts in EXPERTS:
        if all(os.path.isdir(folder / name) for name in experts):
            raise CheckpointError(f"{path}: expected one transformer, got {' and '.join(experts)}; name one of them")
    if os.path.isdir(folder / PIPELINE_PART):
        folder = folder / PIPELINE_PART
    bundled = bundled_models()
    expected = f"a file, a folder or a bundled model ({', '.join(bundled)}) with a generator"
    file = bundled.get(str(path)) or weight_file(folder, expected)
    if is_own_file(file):
        require(not config, "config", "None: files of our own say everything", config)
        require(not lora, "lora", "None: LoRA files are merged into Wan transformers only", lora)
        return read_model(file, device=device, dtype=dtype or torch.float32, cut=cut)[0]
    weights = open_wan_transformer(folder, config)
    model = meta_wan_transformer(weights, dtype)
    if lora is not None:
        weights = merged(weights, model.state_dict(), lora, lora_scale)
    weights.fill(model, device, cut)
    return model.eval()


def open_wan_transformer(path: str | Path, config: Mapping[str, Any] | None = None) -> NamedWeights[WanConfig]:
    """The weights of a Wan transformer as `load_generator` finds them, and their configuration.

    `path` is a file or the folder with it, `config` and errors are those of `load_generator`.
    """
    source = weight_file(path)
    tensors, changes = read_part(source, TRANSFORMER, GROUPS)
    names = _own_names(tensors, source)
    renamed = {ours: tensors[theirs] for ours, theirs in names.items()}
    diffusers = is_diffusers_layout(map(without_wrappers, tensors))

    def file_key(name: str) -> str:
        return names.get(name) or (wan_to_diffusers_key(name) if diffusers else name)

    settings = wan_config(renamed, source, read_config(path), config, file_key=file_key)
    wanted = {key: tensor for key, tensor in tensors.items() if not is_unused(without_wrappers(key))}
    return NamedWeights(settings, wanted, source, file_key, changes)


def meta_wan_transformer(weights: NamedWeights[WanConfig], dtype: torch.dtype | None) -> WanTransformer:
    """The module for `weights` on the meta device, in `dtype`; None is that of the file.

    Small and sensitive parts stay in float32 if the dtype is smaller. Raises CheckpointError for a file in a dtype that
    generators do not run in.
    """
    dtype = dtype or weights.tensors[weights.file_key("patch_embedding.weight")].dtype
    if dtype not in WAN_DTYPES:
        expected = " or ".join(map(str, WAN_DTYPES))
        raise CheckpointError(f"{weights.source}: expected {expected}, got {dtype}; convert it, as dtype=")
    with torch.device("meta"):
        model = WanTransformer(weights.config).to(dtype)
    if dtype.itemsize < torch.float32.itemsize:
        model.time_embedding.float()
        for module in model.modules():
            if isinstance(module, WanBlock | Head):
                module.modulation.data = module.modulation.data.float()
            if isinstance(module, WanBlock) and module.norm3 is not None:
                module.norm3.float()
    return model


def _own_names(tensors: Mapping[str, Tensor], source: object) -> dict[str, str]:
    """Original name -> name in the file, of the tensors [...] that are used."""
    diffusers = is_diffusers_layout(map(without_wrappers, tensors))
    names: dict[str, str] = {}
    for key in tensors:
        name = without_wrappers(key)
        if is_unused(name):
            continue
        try:
            name = diffusers_to_wan_key(name) if diffusers else name
        except CheckpointError as error:
            raise CheckpointError(f"{source}: expected no key {key}, got one ({error})") from error
        if name in names:
            raise CheckpointError(f"{source}: expected one tensor {name}, got {names[name]} and {key}")
        names[name] = key
    return names
