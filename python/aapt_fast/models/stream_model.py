# SPDX-License-Identifier: Apache-2.0
"""Generator, video VAE and, for prompts in words, a text encoder in one object, as a session needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy
import torch
from PIL import Image
from torch import Tensor

from aapt_fast.errors import require, require_plain, require_shape, require_type
from aapt_fast.media.first_picture import as_picture, require_size, warn_of_0_to_1
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.files.gallery import read_gallery
from aapt_fast.models.files.load_generator import load_generator
from aapt_fast.models.files.load_vae import load_vae
from aapt_fast.models.files.lora import LoraFiles
from aapt_fast.models.files.model_file import read_model, write_model
from aapt_fast.models.files.placement import DTYPES, checked_placement, require_usable_dtype
from aapt_fast.models.files.read import Cut
from aapt_fast.models.own_process import OwnProcess
from aapt_fast.models.protocols import GeneratorShape, VideoGenerator
from aapt_fast.models.resting import require_own_weights, rest_on_host
from aapt_fast.models.vae.video_stream import VideoDecoder, VideoVAE
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.world import Oddity, World

ImageLike: TypeAlias = Image.Image | numpy.ndarray | Tensor

NO_GALLERY = (
    "; save_pretrained and convert write none: copy the gallery.json of the model that it was made from, with its "
    "pictures, beside the file, or take a player of aapt_fast.worlds.WORLDS, which has the worlds by their names"
)


class StreamModel:
    """Generator and VAE that fit together, ready for `StreamSession`.

    Any number of sessions share one, also from threads of their own (docs/reference/threads.md): they change nothing.
    It serves the process that made it: after `os.fork()` all that computes with it raises RuntimeError in the child,
    where torch's threads do not exist. One that is unpickled in a process is made there.

    Frames, noise and controls are in float32, whatever the dtype of the generator. Inside of one in bfloat16 or
    float16, linear layers and attention compute in that dtype, by autocast, and the stream of tokens between them stays
    in float32. In half precision it would be a millisecond of 60 less for `aapt-8b` on an H200, by arithmetic.

    Args:
        generator: sessions run at its native grid.
        vae: of the latent space that the generator was trained in. Only its number of channels can be checked.
        name: shown to users.
        text_encoder: str -> embeddings [L, text_width]; for a generator with a text stream.
        grid: latent height and width. None is what the generator was trained at: an AAPT generator takes no other;
            for a Wan transformer it is 60 x 104 with a VAE of 8 pixels per latent cell, 44 x 80 with one of 16.
        world: whose videos the model was trained on, if it is one of `aapt_fast.worlds`.
        offload_text: move the weights that only a prompt runs through from the GPU to pinned host memory. They visit
            the GPU, layer by layer, whenever a prompt is prepared: when a session opens with one, or is reset to one.
            Videos stay the same, bit for bit. In `aapt-8b` these are 7.5 of 15.2 GiB in bfloat16.

    Raises:
        ValueError: the parts do not fit together, or lie on different devices; `offload_text` for a model without
            such weights, or one on a CPU.
    """

    def __init__(
        self,
        generator: VideoGenerator,
        vae: VideoVAE,
        name: str = "",
        text_encoder: Callable[[str], Tensor] | None = None,
        *,
        grid: tuple[int, int] | None = None,
        world: World | None = None,
        offload_text: bool = False,
    ) -> None:
        self._world, self._own_process = world, OwnProcess("model: it was made")
        self.generator, self.vae, self.name, self.text_encoder = generator, vae, name, text_encoder
        weight, self.grid = generator.weight, generator.fit_grid(grid, vae.spatial_factor)
        vae_weight = next(iter(vae.parameters()))
        self.device, self.dtype, self._vae_dtype = weight.device, weight.dtype, vae_weight.dtype
        channels = generator.config.latent_channels
        require(vae.latent_channels == channels, "vae", f"{channels} latent channels", vae.latent_channels)
        require(vae_weight.device == self.device, "vae", f"weights on {self.device}", vae_weight.device)
        fits = text_encoder is None or generator.config.text_width > 0
        require(fits, "text_encoder", "none: the generator has no text stream", "one")
        _check_offload(offload_text, self.device)
        if offload_text:
            modules = generator.text_modules
            require(len(modules) > 0, "offload_text", "False: this model has no text stream", True)
            require_own_weights("offload_text", modules, generator)
            rest_on_host(modules)

    def __repr__(self) -> str:
        height, width = self.video_size
        parts = f"{type(self.generator).__name__} in {self.dtype}, {type(self.vae).__name__} in {self._vae_dtype}"
        return f"StreamModel({self.name or 'without a name'}: {parts}, on {self.device}, video {width}x{height})"

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        vae: str | Path | VideoVAE | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
        *,
        grid: tuple[int, int] | None = None,
        text_encoder: Callable[[str], Tensor] | None = None,
        lora: LoraFiles | None = None,
        lora_scale: float | Sequence[float] = 1.0,
        offload_text: bool = False,
        cut: Cut | None = None,
    ) -> StreamModel:
        """A model from files, ready to stream.

            model = StreamModel.from_pretrained("mini-person")
            model = StreamModel.from_pretrained("self_forcing_dmd.pt", vae="Wan2.1_VAE.pth", dtype=torch.bfloat16)

        Args:
            path: a bundled model by name (`mini-person`, `mini-anyone`), a file of `save_pretrained` or the folder with
                one; with `vae` anything that `load_generator` reads.
            vae: None for the VAE in the file; else what `load_vae` reads, or a loaded VAE on `device`. Its latent space
                has to be that of the generator. Files do not name their space, so only the number of channels is
                checked: with another space the video is wrong.
            device: where the weights go.
            dtype: of the weights: float32, bfloat16 or float16, or the name of one. A loaded VAE keeps its own.
            grid, text_encoder, offload_text: as in the constructor; embeddings have the shape [L, text_width]. While
                a model is loaded, all of its weights are on `device`.
            lora, lora_scale: LoRA files for a Wan transformer, and their strength, as in `load_generator`.
            cut: for a generator that keeps a part of itself; `distributed.shard` calls this with one.

        Raises:
            ValueError: a name that is not bundled, a device that torch cannot use, another dtype, parts that do not fit
                together.
            TypeError: an argument of another type.
            CheckpointError: a bad file, or one of another kind; the message names file, key, expected and got.
        """
        device, dtype = checked_placement(path, device, require_usable_dtype(dtype), DTYPES)
        _check_offload(offload_text, device)
        if vae is None:
            require(not lora, "lora", "None: LoRA files are merged into Wan transformers, with vae=, only", lora)
            generator, own_vae, name = read_model(path, device=device, dtype=dtype, cut=cut)
            world = _world_of(path)
            return cls(generator, own_vae, name, text_encoder, grid=grid, world=world, offload_text=offload_text)
        if isinstance(vae, str | os.PathLike):
            vae = load_vae(vae, device=device, dtype=dtype)
        loaded = load_generator(path, device=device, dtype=dtype, lora=lora, lora_scale=lora_scale, cut=cut)
        world = _world_of(path) if isinstance(loaded, Generator) else None
        name = Path(path).name
        return cls(loaded, vae, name, text_encoder, grid=grid, world=world, offload_text=offload_text)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | str = torch.float16) -> None:
        """Write generator and VAE into one safetensors file, weights in `dtype`; a failed write leaves no file behind.

        The gallery of the model is not written: `load_gallery` of the new file is empty, and the model loaded from it
        has no `world`, unless the gallery's folder is copied beside it.
        Raises TypeError unless these are a `Generator` and a `MiniVAE`, ValueError for a dtype that is not of floats, a
        path that does not end in .safetensors, a folder, a device, or a file that is something else than a model of
        this package, which it would replace, and OSError where no file can be made.
        """
        self.require_own_process()
        write_model(path, self.generator, self.vae, self.name, dtype)

    @property
    def config(self) -> GeneratorShape:
        """Of the generator."""
        return self.generator.config

    @property
    def control(self) -> ControlConfig | None:
        """Control of a step, or None if there is none."""
        return self.generator.control

    @property
    def has_world(self) -> bool:
        """True if the model was trained on one of `aapt_fast.worlds`, which `world` gives."""
        return self._world is not None

    @property
    def world(self) -> World:
        """World of the model's videos, whose players make controls: `model.world.player(first, "walk")`.

        Raises ValueError for a model without one, such as a Wan transformer.
        """
        got = f"{self.name or 'a model'} without one{NO_GALLERY}"
        require(self._world is not None, "model.world", "a model with a gallery.json beside its file", got)
        assert self._world is not None
        return self._world

    def odd_controls(self, controls: Tensor) -> Oddity | None:
        """The fault of controls [N, J, 3] or [N, C, h, w] that nothing in the world of the model can have.

        None if they have none, and for a model without a world.
        """
        return None if self._world is None else self._world.odd_controls(controls.cpu())

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.generator.tokens(self.grid)

    @property
    def video_size(self) -> tuple[int, int]:
        """(H, W) of the video."""
        height, width = self.grid
        return self.vae.spatial_factor * height, self.vae.spatial_factor * width

    def autocast(self) -> torch.autocast:
        """The context in which sessions run the generator: autocast, if it is in half precision.

        Casts of weights are not kept: a CUDA graph would read a cast that was made, and goes, outside of it.
        """
        narrower = self.generator.autocasts and self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=narrower, cache_enabled=False)

    def require_own_process(self) -> None:
        """Raise RuntimeError in a child of the process that made the model: torch would never return there."""
        self._own_process.require()

    def encode_image(self, image: ImageLike) -> Tensor:
        """The latent frame of an image, float32 [1, C, 1, h, w].

        Args:
            image: a PIL image of any mode, as a viewer shows it: upright, 16 bits scaled, transparent parts white.
                Or uint8 [H, W, 3], 0 black and 255 white; or float [3, H, W], -1 black and 1 white. Tensors and
                arrays alike, of exactly `video_size`. A float picture without a value below 0 is taken in -1..1, too,
                with a UserWarning: it was probably meant in 0..1.

        Raises:
            TypeError: something else.
            ValueError: another shape, dtype or size, or values that are not in -1..1.
        """
        self.require_own_process()
        pixels = _pixels(image, self.video_size).to(self.device, self._vae_dtype)
        latents = self.vae.encode(pixels[None, :, None]).float()
        require_shape("latents of the image", latents, 1, self.config.latent_channels, 1, *self.grid)
        return latents

    def embed(self, prompt: str | Tensor) -> Tensor:
        """A prompt, or its embeddings [L, text_width] -> embeddings [1, L, text_width] for the generator.

        The generator's `prepare_prompt` has a say: a Wan transformer pads with zeros to its `text_length`.
        Raises ValueError without a text stream or, for a str, without a text encoder, and for another shape or values
        that are not finite; TypeError for something else.
        """
        self.require_own_process()
        width = self.config.text_width
        require(width > 0, "prompt", "none: this model has no text stream", type(prompt).__name__)
        if isinstance(prompt, str):
            require(self.text_encoder is not None, "prompt", "embeddings: this model has no text encoder", "a str")
            assert self.text_encoder is not None
            prompt = self.text_encoder(prompt)
        require_type("prompt", prompt, Tensor)
        require_plain("prompt", prompt)
        require_shape("prompt", prompt, "L", width)
        require(len(prompt) > 0, "prompt", "at least one token", "none")
        require(prompt.is_floating_point(), "prompt", "a floating-point tensor", prompt.dtype)
        require(bool(prompt.isfinite().all()), "prompt", "finite values", "nan or inf")
        embeddings = prompt[None].to(self.device, self.dtype, copy=True)
        return self.generator.prepare_prompt(embeddings)

    def decode(self, decoder: VideoDecoder, frame: Tensor) -> Tensor:
        """The next latent frame [1, C, 1, h, w] of a stream -> its video frames, uint8 [F, H, W, 3]."""
        self.require_own_process()
        return decoder.decode_uint8(frame.to(self._vae_dtype))[0]


def _check_offload(offload_text: bool, device: torch.device) -> None:
    require_type("offload_text", offload_text, bool)
    expected = "False: a model on a CPU has its weights in host memory"
    require(not offload_text or device.type != "cpu", "offload_text", expected, True)


def _world_of(path: str | Path) -> World | None:
    """The world that the gallery of a model is from, if this package has it; None without a gallery."""
    gallery = read_gallery(path)
    return None if gallery is None else WORLDS.get(gallery.world)


def _pixels(image: object, size: tuple[int, int]) -> Tensor:
    """An image -> float32 [3, H, W] in -1..1."""
    picture = as_picture(image)
    require_size(picture, size)
    warn_of_0_to_1(picture)
    return picture if picture.is_floating_point() else picture.permute(2, 0, 1).float() / 127.5 - 1
