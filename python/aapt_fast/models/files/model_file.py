# SPDX-License-Identifier: Apache-2.0
"""Model files: one safetensors file holds generator, VAE and, in its metadata, their configurations.

Nothing is executed on loading, nothing is guessed: a damaged file, a missing, extra or misshapen tensor is refused by
name, and a model never keeps a random or empty tensor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from aapt_fast.errors import CheckpointError, require, require_type
from aapt_fast.models.aapt.config import generator_config_from_json, mini_vae_config_from_json, to_json
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.files.atomic import replacing
from aapt_fast.models.files.placement import WAN_DTYPES, require_path, require_usable_device, require_usable_dtype
from aapt_fast.models.files.read import computing_dtype, fill, open_safetensors, read_metadata
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE

FORMAT = "aapt_fast-1"


def save_model(path: Path, model: StreamModel, dtype: torch.dtype = torch.float16) -> None:
    """Write generator and VAE to `path`, weights in `dtype`; a failed write leaves no file behind.

    Raises TypeError if the model's VAE is not the small one, and ValueError for a dtype that is not of floats.
    """
    require_usable_dtype(dtype, WAN_DTYPES)
    require_type("model.vae", model.vae, MiniVAE)
    assert isinstance(model.vae, MiniVAE)
    tensors = {f"generator.{name}": value for name, value in model.generator.state_dict().items()}
    tensors |= {f"vae.{name}": value for name, value in model.vae.state_dict().items()}
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}
    configs = {"generator": to_json(model.generator.config), "vae": to_json(model.vae.config)}
    metadata = {"format": FORMAT, "name": model.name, "config": json.dumps(configs)}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def load_model(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StreamModel:
    """A bundled model by name (`mini-person`, `mini-anyone`) or a file written by `save_model`, ready to stream.

    Raises ValueError for a name that is not bundled, a device that torch cannot use, and a dtype other than float32,
    bfloat16 and float16; TypeError for an argument of another type; CheckpointError (file, key, expected, got) for a
    bad file.
    """
    require_usable_dtype(dtype)
    return load_own_model(source, device=device, dtype=dtype)


def load_own_model(source: str | Path, *, device: torch.device | str, dtype: torch.dtype) -> StreamModel:
    """`load_model` in any floating dtype, also one in which only a part of the model computes."""
    require_usable_device(device)
    path = model_path(source)
    metadata, configs, tensors = _read(path)
    try:
        generator = Generator(generator_config_from_json(configs["generator"])).to(dtype)
        vae = MiniVAE(mini_vae_config_from_json(configs["vae"])).to(dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected readable configurations in the metadata, got {error!r}") from error
    groups: dict[str, nn.Module] = {"generator": generator, "vae": vae}
    for prefix, module in groups.items():
        fill(module, _under(prefix, tensors), path, file_key=f"{prefix}.{{}}".format)
    return StreamModel(generator.to(device).eval(), vae.to(device).eval(), name=metadata.get("name", path.stem))


def load_own_vae(source: str | Path, *, device: torch.device | str, dtype: torch.dtype | None) -> MiniVAE:
    """The VAE of a model that `load_model` reads, without its generator; `dtype` None as in `computing_dtype`.

    Weights in float64, in which it does not compute, become float32. Raises as `load_model` does.
    """
    require_usable_device(device)
    if dtype is not None:
        require_usable_dtype(dtype)
    path = model_path(source)
    _, configs, tensors = _read(path)
    part = _under("vae", tensors)
    try:
        with torch.device("meta"):
            vae = MiniVAE(mini_vae_config_from_json(configs["vae"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected readable configurations in the metadata, got {error!r}") from error
    if dtype is None:
        found = computing_dtype(part, device)
        dtype = torch.float32 if found == torch.float64 else found
    vae = vae.to(dtype)
    fill(vae, part, path, file_key="vae.{}".format, device=device)
    return vae.eval().requires_grad_(False)


def is_own_file(path: Path) -> bool:
    """Whether a file was written by `save_model`."""
    return read_metadata(path).get("format") == FORMAT


def bundled_models() -> dict[str, Path]:
    """The weight files of the bundled models by name."""
    files = {entry.name: entry / "model.safetensors" for entry in sorted(assets().iterdir())}
    return {name: file for name, file in files.items() if file.is_file()}


def model_path(source: str | Path) -> Path:
    """The weight file of a bundled model's name or of a path. ValueError if there is neither, TypeError for no path."""
    require_path("source", source)
    bundled = bundled_models()
    if str(source) in bundled:
        return bundled[str(source)]
    path = Path(source)
    require(path.is_file(), "model", f"a bundled model ({', '.join(bundled) or 'none'}) or a file", str(source))
    return path


@dataclass(frozen=True)
class FirstFrame:
    """One picture of a model's gallery: uint8 [H, W, 3], and the pose and identity in `world` it was rendered from.

    The identity is None where it and the pose do not determine the whole picture: in company.
    """

    image: np.ndarray
    pose: tuple[float, ...]
    identity: int | None
    world: str = "person"


def load_gallery(source: str | Path) -> list[FirstFrame]:
    """The first frames that come with a model; empty if it has none. Raises CheckpointError for a damaged gallery."""
    index = model_path(source).with_name("gallery.json")
    if not index.is_file():
        return []
    try:
        content = json.loads(index.read_text())
        return [
            FirstFrame(
                np.asarray(Image.open(index.with_name(entry["image"])).convert("RGB")),
                tuple(entry["pose"]),
                None if entry["identity"] is None else int(entry["identity"]),
                content["world"],
            )
            for entry in content["first_frames"]
        ]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{index}: expected a gallery with image, pose and identity, got {error!r}") from error


def assets() -> Path:
    """The folder of the bundled models."""
    return Path(__file__).parents[2] / "assets"


def _read(path: Path) -> tuple[dict[str, str], dict[str, Any], dict[str, Tensor]]:
    """Metadata, configurations and tensors of a file, which are those of a generator and a VAE and no others."""
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        got = metadata.get("format", "none")
        if got != FORMAT:
            raise CheckpointError(f"{path}: expected metadata format {FORMAT}, got {got}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        configs = json.loads(metadata["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected readable configurations in the metadata, got {error!r}") from error
    strangers = [name for name in tensors if not name.startswith(("generator.", "vae."))]
    if strangers:
        raise CheckpointError(f"{path}: expected keys under generator. and vae., got {strangers[0]!r}")
    return metadata, configs, tensors


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}
