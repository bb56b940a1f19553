# SPDX-License-Identifier: Apache-2.0
"""The memory of one session, from the configuration of its model alone: nothing is loaded, nothing allocated.

    held all the time    weights, pages at the full window, keys of a prompt outside of pages, state of the decoder
    in a step            evaluation (attention and activations) or decoding, whichever takes more: one follows the other

Weights and pages are exact. State and work of the decoder come from decoding on the meta device, where tensors have
sizes and no memory. Attention and activations are estimates by the rules at `MemoryPlan`. Not in it are the working
memory of libraries, some hundred MiB on a GPU, and a text encoder: prompts come as embeddings.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from aapt_fast.models.autocast import without_autocast
from aapt_fast.models.sampling import Sampler
from aapt_fast.models.vae.packed_weights import PackedWeights
from aapt_fast.models.vae.ring_cache import RingCache
from aapt_fast.models.vae.video_stream import DecoderStream, LayeredDecoder, Memory
from aapt_fast.ops._checks import PAGE_SLOTS
from aapt_fast.streaming.pages import pool_bytes, session_pages

INDEX_BYTES = 32
"""Per key, of the numbers by which torch operators find it: four int64."""
STREAM_COPIES = 4
"""Tensors of the token stream, in float32, that are in memory at a time."""
HIDDEN_COPIES = 2
"""Outputs of the widest linear layer that are in memory at a time: before and after its activation function."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one session with a full window."""

    generator: int
    """Weights, without those that rest in host memory."""
    vae: int
    """Weights of encoder and decoder."""
    pages: int
    """Keys and values of all frames in sight, and of the prompt if it lies in pages, for every layer."""
    prompt: int
    """Keys and values of a prompt outside of pages."""
    decoder_state: int
    """Past features of the decoder's causal layers; with kernels see `rings`."""
    attention: int
    """Torch operators copy the keys and values that a layer attends to; kernels of this package read them in place."""
    activations: int
    """`STREAM_COPIES` of the token stream and `HIDDEN_COPIES` of the output of the widest linear layer."""
    decoding: int
    """Most that the layers of the decoder have in memory at a time."""
    rings: int
    """The decoder's state with its kernels: rings of frames, and its weights in another layout. Sessions of a model
    share the latter."""
    ring_decoding: int
    """`decoding` with the kernels."""
    on_host: int = 0
    """Weights of the text stream in host memory, with `offload_text`. One layer at a time visits, and not in a step."""

    def held(self, kernels: bool = False) -> int:
        """Bytes of an open session between two steps; `kernels`: with the decoder of this package."""
        return self.generator + self.vae + self.pages + self.prompt + (self.rings if kernels else self.decoder_state)

    def step(self, kernels: bool = False) -> int:
        """Bytes that a step takes for a while; `kernels`: with attention and decoder of this package."""
        if kernels:
            return max(self.activations, self.ring_decoding)
        return max(self.activations + self.attention, self.decoding)

    def total(self, kernels: bool = False) -> int:
        """Most bytes at a time; `kernels`: with attention and decoder of this package."""
        return self.held(kernels) + self.step(kernels)

    def parts(self) -> dict[str, int]:
        """Bytes of `total()` by parts: weights, pages and the prompt beside them, state of the decoder, a step."""
        return {
            "weights": self.generator + self.vae,
            "pages": self.pages + self.prompt,
            "decoder": self.decoder_state,
            "step": self.step(),
        }


def plan_memory(
    generator: Any,
    vae: Any,
    grid: tuple[int, int],
    *,
    prompt: int = 0,
    sampler: Sampler | None = None,
    offload_text: bool = False,
) -> MemoryPlan:
    """Compute the memory of a session of a model whose parts are on the meta device, in their final dtype.

    Args:
        generator: a `VideoGenerator`.
        vae: a `VideoVAE`.
        grid: latent height and width.
        prompt: tokens of the prompt, as the generator pads them.
        sampler: of the session; None for the generator's own choice.
        offload_text: as in `StreamModel`.
    """
    sampler = generator.default_sampler() if sampler is None else sampler
    config, dtype = generator.config, generator.weight.dtype
    frames = sampler.rule(generator).frames
    pages, tokens = session_pages(generator, grid, sampler, prompt), frames * generator.tokens(grid)
    width = config.heads * config.head_dim
    slot = 2 * width * dtype.itemsize  # bytes of its key and value in one layer
    slots = pages // sampler.caches * PAGE_SLOTS
    widest = max(layer.out_features for layer in generator.modules() if isinstance(layer, nn.Linear))
    state, decoding = decoder_memory(vae, grid, frames)
    rings, ring_decoding = (state, decoding)
    if isinstance(vae, LayeredDecoder):
        rings, ring_decoding = decoder_memory(vae, grid, frames, lambda: RingCache(PackedWeights()))
    on_host = sum(map(weight_bytes, generator.text_modules)) if offload_text else 0
    return MemoryPlan(
        generator=weight_bytes(generator) - on_host,
        vae=weight_bytes(vae),
        pages=pool_bytes(config.layers, pages, config.heads, config.head_dim, dtype),
        prompt=0 if generator.text_in_pages else config.layers * prompt * slot,
        decoder_state=state,
        attention=slots * (slot + INDEX_BYTES),
        activations=tokens * (STREAM_COPIES * 4 * width + HIDDEN_COPIES * widest * dtype.itemsize),
        decoding=decoding,
        rings=rings,
        ring_decoding=ring_decoding,
        on_host=on_host,
    )


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the parameters of a module."""
    return sum(parameter.nbytes for parameter in module.parameters())


def decoder_memory(
    vae: Any, grid: tuple[int, int], frames: int, memory: Callable[[], Memory] | None = None
) -> tuple[int, int]:
    """Bytes of a decoder's state, and most that it takes besides while it decodes `frames` latent frames at once.

    `vae` is on the meta device; `grid` is the latent height and width; `memory` is that of `DecoderStream`.
    """
    dtype = next(iter(vae.parameters())).dtype
    stream = DecoderStream(vae, memory)

    def decode(count: int) -> None:
        latents = torch.empty(1, vae.latent_channels, count, *grid, dtype=dtype, device="meta")
        stream.decode_uint8(latents)

    with without_autocast(torch.device("meta")), torch.no_grad(), _MetaMemory() as meta:
        decode(1)
        decode(1)  # some layers begin to look back here
        state = meta.bytes.peak = meta.bytes.live
        decode(frames)
        return state, meta.bytes.peak - state


class LiveBytes:
    """Bytes of tensors that were added: those that still live, most at a time, and all together.

    Tensors that share memory count once.
    """

    def __init__(self) -> None:
        self.live = self.peak = self.taken = 0
        self._known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def add(self, tensor: Tensor) -> None:
        """Add the memory of `tensor` [...] unless it is known already, until it is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known[storage._cdata] = storage
        self.live += storage.nbytes()
        self.taken += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, nbytes: int) -> None:
        self.live -= nbytes


class _MetaMemory(TorchDispatchMode):
    """Counts the bytes of new tensors on the meta device. Views are no new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = LiveBytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, Tensor):
                    self.bytes.add(tensor)
        return result
