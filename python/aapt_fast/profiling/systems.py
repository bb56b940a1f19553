# SPDX-License-Identifier: Apache-2.0
"""Systems of `aapt-fast bench frame`: a preset at a size, with a decoder that fits it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from aapt_fast.errors import require
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.models.files.bundled import bundled_models
from aapt_fast.models.files.model_file import read_configs
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.aapt import LIGHT
from aapt_fast.models.vae.mini import MiniVAEConfig
from aapt_fast.profiling.decoders import Layer, VAEConfig, decoder_layers, make_vae
from aapt_fast.profiling.memory import MemoryPlan, plan_memory
from aapt_fast.profiling.roofline import Step

LARGE = ("aapt-8b",)  # with AAPT's light decoder; the others have the package's small one
PROMPT_TOKENS = 128
CPU_FLOPS = 1e12
"""FLOP of a step that a CPU does in a few seconds; a system with more is not tried on one."""


@dataclass(frozen=True)
class System:
    """A preset at a size. Sizes are in pixels of the video, (width, height)."""

    preset: str
    config: GeneratorConfig
    vae: VAEConfig
    decoder: str
    bundled: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the video."""
        (height, width), scale = self.config.grid, self.vae.spatial_factor
        return scale * width, scale * height

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return PROMPT_TOKENS if self.config.text_width else 0

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """Layers of the decoder."""
        return decoder_layers(self.vae, *self.config.grid)

    @property
    def step(self) -> Step:
        """The work of one step."""
        return Step(self.config, self.prompt, self.layers)

    def build(self, device: torch.device, dtype: torch.dtype) -> StreamModel:
        """Load the bundled model, or make random weights."""
        if self.bundled:
            return StreamModel.from_pretrained(self.preset, device=device, dtype=dtype)
        return random_model(self.config, self.vae, device, dtype)

    def memory(self, dtype: torch.dtype, offload_text: bool = False) -> MemoryPlan:
        """Compute the memory of a session, without allocating it."""
        with torch.device("meta"):
            generator, vae = Generator(self.config), make_vae(self.vae)
        parts = generator.to("meta", dtype), vae.to("meta", dtype)
        return plan_memory(*parts, self.config.grid, prompt=self.prompt, offload_text=offload_text)


def find_system(preset: str, size: tuple[int, int] | None = None, window: int | None = None) -> System:
    """Find a preset or a bundled model at `size` = (width, height) in pixels, with `window` past frames.

    None keeps its own size or window.

    Raises ValueError for an unknown preset, for a size that is not a multiple of what the model needs, and for another
    size or window than those that a bundled model was trained with.
    """
    bundled, large = preset in bundled_models(), preset in LARGE
    config: GeneratorConfig
    vae: VAEConfig
    if bundled:
        config, vae = read_configs(preset)
    else:
        config, vae = generator_preset(preset), LIGHT if large else MiniVAEConfig()
    scale = vae.spatial_factor
    native = (scale * config.grid[1], scale * config.grid[0])
    width, height = size or native
    multiple = scale * config.patch
    for name, length in (("width", width), ("height", height)):
        why = f"a positive multiple of {multiple} = {scale} pixels per cell x patches of {config.patch}"
        require(length > 0 and length % multiple == 0, f"resolution {name}", why, length)
    if bundled:
        expected = f"{native[0]}x{native[1]}, that of the bundled {preset}"
        require((width, height) == native, "resolution", expected, f"{width}x{height}")
        require(window in (None, config.window), "window", f"{config.window}, that of the bundled {preset}", window)
    grid = (height // scale, width // scale)
    config = dataclasses.replace(config, grid=grid, window=config.window if window is None else window)
    return System(preset, config, vae, "AAPT's light one" if large else "the package's small one", bundled)


def obstacle(system: System, device: torch.device, dtype: torch.dtype) -> str | None:
    """Give the reason why this system cannot be measured on this device, or None. Nothing is allocated."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device on this machine"
    if device.type == "cpu":
        flops = system.step.generator_flops + system.step.decoder_flops
        if flops > CPU_FLOPS:
            return (
                f"it needs a GPU: a step is {flops / 1e12:.1f} TFLOP, a CPU is tried with at most {CPU_FLOPS / 1e12:g}"
            )
        return None
    plan = system.memory(dtype)
    needed, (free, total) = plan.total(), torch.cuda.mem_get_info(device)
    if needed <= free:
        return None
    amounts = ", ".join(f"{name} {amount / 2**30:.1f}" for name, amount in plan.parts().items())
    return f"it needs about {needed / 2**30:.1f} GiB ({amounts}); {free / 2**30:.1f} of {total / 2**30:.1f} are free"


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make this the dtype of new floating point tensors inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_model(config: GeneratorConfig, vae: VAEConfig, device: torch.device, dtype: torch.dtype) -> StreamModel:
    """Make a model with random weights on `device`: eight billion of them would take minutes on a CPU.

    Parameters that start at zero get small random numbers, so that every layer has something to compute.
    """
    torch.manual_seed(0)
    with device, default_dtype(dtype), torch.no_grad():
        generator = Generator(config).eval().requires_grad_(False)
        decoder = make_vae(vae).eval().requires_grad_(False)
        for parameter in generator.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return StreamModel(generator.to(dtype), decoder.to(dtype))  # constants are made in float32
