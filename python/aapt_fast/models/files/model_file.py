# SPDX-License-Identifier: Apache-2.0
"""Model files: one safetensors file holds generator, VAE and, in its metadata, their configurations.

Nothing is executed on loading, nothing is guessed: a damaged file, a missing, extra or misshapen tensor is refused by
name, and a model never keeps a random or empty tensor.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aapt_fast.atomic import replacing
from aapt_fast.errors import CheckpointError, require, require_type
from aapt_fast.limits import require_file_target
from aapt_fast.media.pictures import read_picture
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.files.find import model_path, require_path
from aapt_fast.models.files.gallery import read_gallery
from aapt_fast.models.files.placement import DTYPES, WAN_DTYPES, require_usable_dtype
from aapt_fast.models.files.read import (
    Cut,
    computing_dtype,
    fill,
    open_safetensors,
    read_metadata,
    require_finite,
)
from aapt_fast.models.files.recognise import EMPTY, OWN, VAE, recognise, recognise_tensors
from aapt_fast.models.files.trainable import outside_inference_mode
from aapt_fast.models.files.write import write_safetensors
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.world import FirstFrame

FORMAT = "aapt_fast-1"
ENDING = ".safetensors"

Module = TypeVar("Module", bound=nn.Module)


def write_model(path: str | Path, generator: nn.Module, vae: nn.Module, name: str, dtype: torch.dtype | str) -> None:
    """Write generator and VAE to `path`, weights in `dtype`; a failed write leaves no file behind.

    Raises TypeError for parts other than a `Generator` and a `MiniVAE`, ValueError for a dtype that is not of floats, a
    path that does not end in .safetensors, a folder or a device, and a file that is something else than a model of
    this package, OSError for a path in a folder that cannot be written to, CheckpointError for a weight that is not
    finite, or not in `dtype`.
    """
    _write_parts(path, {"model.generator": (generator, Generator), "model.vae": (vae, MiniVAE)}, name, dtype)


def write_vae(path: str | Path, vae: nn.Module, name: str, dtype: torch.dtype | str) -> None:
    """Write a VAE alone, for `load_vae`. Raises as `write_model` does."""
    _write_parts(path, {"vae": (vae, MiniVAE)}, name, dtype)


def _write_parts(
    path: str | Path, given: Mapping[str, tuple[nn.Module, type]], name: str, dtype: torch.dtype | str
) -> None:
    """Write the modules of arguments `given`, which say the types that they must have; keys end in the part's name."""
    require_path("path", path)
    path = Path(path)
    require_file_target("path", path)
    require(path.suffix == ENDING, "path", f"a name that ends in {ENDING}", path)
    _require_replaceable(path)
    dtype = require_usable_dtype(dtype, WAN_DTYPES)
    for argument, (module, kind) in given.items():
        require_type(argument, module, kind)
    parts: dict[str, Any] = {argument.rpartition(".")[2]: module for argument, (module, _) in given.items()}
    tensors = {
        f"{part}.{key}": value.detach().to("cpu", dtype).contiguous()
        for part, module in parts.items()
        for key, value in module.state_dict().items()
    }
    for key, tensor in tensors.items():
        require_finite(tensor, key, path)
    configs = {part: dataclasses.asdict(module.config) for part, module in parts.items()}
    metadata = {"format": FORMAT, "name": name, "config": json.dumps(configs)}
    with replacing(path) as partial:
        write_safetensors(partial, tensors, metadata)


def _require_replaceable(path: Path) -> None:
    """Raise ValueError if a file that `write_model` would replace is something else than a model of this package."""
    if path.exists():
        found = recognise(path)
        if found.kind == VAE and is_own_file(path):
            return
        expected = "a new file, or a model of this package to replace"
        require(
            found.kind in (OWN, EMPTY), "path", expected, f"{path}: {found.what}; delete it first, or take another name"
        )


@outside_inference_mode
def read_model(
    path: str | Path, *, device: torch.device | str, dtype: torch.dtype, cut: Cut | None = None
) -> tuple[Generator, MiniVAE, str]:
    """Generator, VAE and name of a bundled model or of a file of `write_model`, in any floating `dtype`.

    `cut` is for a generator that keeps a part of itself.
    Raises ValueError for a name that is not bundled; TypeError for a path of another type; CheckpointError (file, key,
    expected, got) for a bad file.
    """
    file = _OwnFile(model_path(path))
    return file.generator(dtype, device, cut), file.vae(dtype, device), file.name


def read_configs(path: str | Path) -> tuple[GeneratorConfig, MiniVAEConfig]:
    """The configurations in a model that `read_model` reads; no weight is read. Raises as `read_model` does."""
    file = model_path(path)
    metadata = read_metadata(file)
    try:
        configs = json.loads(metadata["config"])
        return GeneratorConfig.from_json(configs["generator"]), MiniVAEConfig.from_json(configs["vae"])
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(file, error) from error


def load_own_vae(path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None) -> MiniVAE:
    """The VAE of a file of `write_model` or `write_vae`, or of a bundled model; `dtype` None as in `computing_dtype`.

    Weights in float64, in which it does not compute, become float32. Raises as `read_model` does.
    """
    if dtype is not None:
        require_usable_dtype(dtype, DTYPES)
    file = _OwnFile(model_path(path))
    if dtype is None:
        found = computing_dtype(file.tensors["vae"], device)
        dtype = torch.float32 if found == torch.float64 else found
    return file.vae(dtype, device).requires_grad_(False)


def is_own_file(path: Path) -> bool:
    """True for a file of `write_model`."""
    return read_metadata(path).get("format") == FORMAT


def load_gallery(path: str | Path) -> list[FirstFrame]:
    """First frames that come with a model, with their controls if this package has their world; empty without any.

    Raises CheckpointError for a damaged gallery, and for a file that is no model.
    """
    gallery = read_gallery(path)
    if gallery is None:
        return []
    try:
        world, frames = WORLDS.get(gallery.world), []
        for entry in gallery.entries:
            image = read_picture(gallery.index.with_name(entry["image"]), "image").pixels
            pose, scene = tuple(entry["pose"]), None if entry["identity"] is None else int(entry["identity"])
            known = world.from_gallery(image, pose, scene) if world else FirstFrame(image, pose=pose, scene=scene)
            frames.append(known)
        return frames
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise gallery.damaged(error) from error


class _OwnFile:
    """The contents of a file of `write_model`: tensors and configurations of a generator and a VAE, and no others.

    Raises CheckpointError (file, key, expected, got) for a bad file, on opening or when a part is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_safetensors(path) as file:
            metadata: dict[str, str] = file.metadata() or {}
            said = metadata.get("format", "none")
            if said != FORMAT:
                found = recognise_tensors(file.keys())
                got = f"metadata format {said}" if found.kind == OWN else found
                raise CheckpointError(f"{path}: expected a model of this package (metadata format {FORMAT}), got {got}")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.name = metadata.get("name", path.stem)
        self.tensors: dict[str, dict[str, Tensor]] = {"generator": {}, "vae": {}}
        for key, tensor in tensors.items():
            part = key.partition(".")[0]
            if part not in self.tensors:
                raise CheckpointError(f"{path}: expected keys under generator. and vae., got {key!r}")
            self.tensors[part][key] = tensor
        try:
            self._configs: dict[str, Any] = json.loads(metadata["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(self.path, error) from error

    def generator(self, dtype: torch.dtype, device: torch.device | str, cut: Cut | None = None) -> Generator:
        return self._part("generator", lambda data: Generator(GeneratorConfig.from_json(data)), dtype, device, cut)

    def vae(self, dtype: torch.dtype, device: torch.device | str) -> MiniVAE:
        return self._part("vae", lambda data: MiniVAE(MiniVAEConfig.from_json(data)), dtype, device)

    def _part(
        self,
        part: str,
        build: Callable[[Any], Module],
        dtype: torch.dtype,
        device: torch.device | str,
        cut: Cut | None = None,
    ) -> Module:
        try:
            with torch.device("meta"):
                module = build(self._configs[part]).to(dtype)
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(self.path, error) from error
        fill(module, self.tensors[part], self.path, file_key=f"{part}.{{}}".format, device=device, cut=cut)
        return module.eval()


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: expected readable configurations in the metadata, got {error!r}")
