# SPDX-License-Identifier: Apache-2.0
"""A generator that computes a part of each frame, and the whole frame together with the other ranks.

    noise, recycled frame, control     the same on every rank
    first layer                        all tokens on every rank (3 % of a block's work)
    blocks                             own tokens; attention by heads, over the rank's own cache; see the schemes
    last layer                         own tokens, then gathered: every rank has the frame, with the same bits

The network stays the module that it was; hooks on its layers, which `layout.py` names, exchange what has to be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aapt_fast.distributed.choice import best_scheme, whole_decoder_is_faster
from aapt_fast.distributed.layout import Layout, layout_of
from aapt_fast.distributed.sequence_parallel import SequenceParallel
from aapt_fast.distributed.spatial_decoder import RowShards, ShardedVAE
from aapt_fast.distributed.tensor_parallel import TensorParallel
from aapt_fast.distributed.token_shards import TokenShards
from aapt_fast.distributed.transport import Transport, require_agreement
from aapt_fast.errors import require, require_type
from aapt_fast.models.files.read import Change
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import LayeredDecoder
from aapt_fast.ops.cache import Cache, KeysAndValues
from aapt_fast.profiling.document import package_version
from aapt_fast.streaming.saved import fingerprint_of


class Scheme(Protocol):
    """What differs between the ways to share the work of a block."""

    name: str

    def cut(self, generator: Any, layout: Layout, shards: TokenShards) -> dict[str, Change]:
        """Keep this rank's part of the weights, if it has one: functions from whole parameters [...] to parts."""

    def cache(self, cache: Cache, shards: TokenShards, eps: float, across: bool) -> Any:
        """What an attention layer sees of the cache of this rank's heads."""


SCHEMES: dict[str, type[Any]] = {"sp": SequenceParallel, "tp": TensorParallel}
CHOICES = ("auto", *SCHEMES)


class ShardedShape:
    """The configuration of a generator with as many heads as one rank has; all else is that of the whole one."""

    def __init__(self, config: Any, ranks: int) -> None:
        self.heads, self._whole = config.heads // ranks, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


class ShardedGenerator:
    """A `VideoGenerator` made of one that has been cut; all that is not defined here is the latter's own."""

    def __init__(self, generator: Any, transport: Transport) -> None:
        self.whole, self.transport = generator, transport
        self.config = ShardedShape(generator.config, transport.size)

    def __call__(self, *arguments: Any) -> Any:
        """As the generator's `forward`."""
        return self.whole(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def encode_text(self, text: Tensor, t: Tensor) -> list[KeysAndValues]:
        """As the generator's, for own heads: per layer [B, L, H / n, D]. Computed whole on every rank, per prompt."""
        own, first = self.config.heads, self.transport.rank * self.config.heads
        whole = self.whole.encode_text(text, t)
        return [(k.narrow(2, first, own).contiguous(), v.narrow(2, first, own).contiguous()) for k, v in whole]


def shard(
    model: StreamModel | str | Path,
    transport: Transport,
    scheme: str = "auto",
    *,
    whole_decoder: bool | None = None,
    **options: Any,
) -> StreamModel:
    """The model of this rank, for sessions on all ranks under the same controls.

    Args:
        model: what `StreamModel.from_pretrained` takes as `path`: each rank reads its part of the weights only. Or a
            `StreamModel`, the same on every rank, on this rank's device; it is used up.
        transport: to the other ranks.
        scheme: "sp" (sequence parallel), "tp" (tensor parallel), or "auto": the faster one by the roofline of
            `aapt-fast bench scaling` whose memory every rank has.
        whole_decoder: True: decode every frame on every rank. False: each rank decodes some rows of the picture, if
            the decoder has layers that can be cut (those of Wan and AAPT) and the latents have a row for each rank.
            None: the faster of both by the roofline.
        options: of `from_pretrained`, for a path.

    Returns:
        A model whose sessions give the same frames as those of `model`, up to rounding, with 1 / n of its heads in
        their pages.

    Raises:
        TypeError: something else than a model or a path; options beside a `StreamModel`.
        ValueError: another scheme, a generator of another kind, or with heads that the ranks do not divide; ranks that
            were given different models, weights or schemes. All ranks raise the same error, and no generator has been
            read or changed then.
        CheckpointError: as `from_pretrained`.
    """
    require_type("model", model, StreamModel, str, os.PathLike)
    require(scheme in CHOICES, "scheme", " or ".join(CHOICES), repr(scheme))
    asked = {"scheme": scheme, "whole_decoder": str(whole_decoder)}
    if isinstance(model, StreamModel):
        if options:
            raise TypeError(f"options: expected none beside a model that is loaded, got {', '.join(options)}")
        facts = asked | {"grid": str(model.grid), "dtype": str(model.dtype)}
        generator: Any = model.generator
        _cut(generator, generator.state_dict(), transport, model.device, model.grid, facts)
        kept = model
    else:
        device, grid = torch.device(options.get("device", "cpu")), options.get("grid")
        facts = asked | {name: str(options.get(name)) for name in ("grid", "dtype")}
        cut = partial(_cut, transport=transport, device=device, grid=grid, facts=facts)
        kept = StreamModel.from_pretrained(model, cut=cut, **options)
    vae: Any = kept.vae
    require_agreement(transport, {"weights of the VAE": fingerprint_of(sorted(vae.state_dict().items()))})
    if isinstance(vae, LayeredDecoder) and kept.grid[0] >= transport.size:
        if whole_decoder is None:
            whole_decoder = whole_decoder_is_faster(vae, kept.grid, transport.size, kept.device)
        if not whole_decoder:
            vae = ShardedVAE(vae, RowShards(transport, kept.grid[0]))
    parts = ShardedGenerator(kept.generator, transport), vae, kept.name, kept.text_encoder
    return StreamModel(*parts, grid=kept.grid, world=kept.world if kept.has_world else None)


def decoding_alone(model: StreamModel) -> StreamModel:
    """A model of `shard` that decodes whole frames without the other ranks, for pictures that one rank looks at.

    Its generator still needs them.
    """
    vae: Any = model.vae
    parts = model.generator, vae.whole if isinstance(vae, ShardedVAE) else vae, model.name, model.text_encoder
    return StreamModel(*parts, grid=model.grid, world=model.world if model.has_world else None)


def _cut(
    generator: Any,
    weights: Mapping[str, Tensor],
    transport: Transport,
    device: torch.device,
    grid: tuple[int, int] | None,
    facts: dict[str, str],
) -> Mapping[str, Change]:
    """Cut a generator, which may have no values yet; the functions to the parts of its `weights` [...], by name.

    A `read.Cut` but for its last arguments. Raises the same ValueError on every rank, having changed nothing.
    """
    kind, config = type(generator).__name__, generator.config
    of_all = {"generator": f"{kind} {config}", "weights": fingerprint_of(sorted(weights.items()))}
    require_agreement(transport, facts | of_all | versions(device))
    layout = layout_of(generator)
    divisors = [n for n in range(1, config.heads + 1) if config.heads % n == 0]
    expected = f"a number that divides {config.heads} heads: {', '.join(map(str, divisors))}"
    require(transport.size in divisors, "ranks", expected, transport.size)
    scheme = facts["scheme"]
    if scheme == "auto":
        proposed = transport.gather(best_scheme(generator, grid, transport.size, device))
        scheme = "tp" if "tp" in proposed else "sp"  # a rank with little memory left has a say
    rule, shards = SCHEMES[scheme](), TokenShards(transport)
    parts = rule.cut(generator, layout, shards)
    exchange_tokens(generator, layout, rule, shards)
    return parts


def versions(device: torch.device) -> dict[str, str]:
    """What ranks need in common to compute the same: this package, torch, and the kind of their GPU."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {"aapt_fast": package_version(), "torch": torch.__version__, "GPU": gpu}


def exchange_tokens(generator: Any, layout: Layout, scheme: Scheme, shards: TokenShards) -> None:
    """Let the layers of a generator exchange what they have to, from now on; its blocks get own tokens."""
    first = layout.token_inputs[0]
    for module, argument in layout.token_inputs:
        begins = (module, argument) == first
        module.register_forward_pre_hook(partial(_split_argument, shards, argument, begins))
    for module, argument in layout.attentions:
        seen = partial(scheme.cache, shards=shards, eps=generator.config.eps, across=layout.norm_across_heads)
        module.register_forward_pre_hook(partial(_replace_cache, argument, seen))
    if layout.last is not None:
        layout.last.register_forward_hook(partial(_gather_result, shards))


def _split_argument(
    shards: TokenShards, argument: int, begins: bool, module: nn.Module, arguments: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Own tokens of an argument [B, F, N, ...]; one [B, F, 1, ...] holds for all tokens and stays as it is."""
    x = arguments[argument]
    if begins:
        shards.tokens = x.shape[2]
    own = x if x.shape[2] == 1 else shards.split(x)
    return (*arguments[:argument], own, *arguments[argument + 1 :])


def _replace_cache(
    argument: int, seen: Callable[[Cache], Cache], module: nn.Module, arguments: tuple[Any, ...]
) -> tuple[Any, ...]:
    return (*arguments[:argument], seen(arguments[argument]), *arguments[argument + 1 :])


def _gather_result(shards: TokenShards, module: nn.Module, arguments: tuple[Any, ...], result: Tensor) -> Tensor:
    """Results [B, F, M, c] or [B, F M, c] of own tokens -> those of all tokens."""
    if result.dim() == 4:
        return shards.gather(result)
    return shards.gather(result.unflatten(1, (-1, shards.own))).flatten(1, 2)
