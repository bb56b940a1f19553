# SPDX-License-Identifier: Apache-2.0
"""Where the networks of this package can be cut: their layers, by what they do with tokens and heads.

A `Layout` names modules and parameters; what is done there is decided by the scheme (`sequence_parallel.py`,
`tensor_parallel.py`). The networks themselves know of no ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aapt_fast.errors import require
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.wan.transformer import WanTransformer


@dataclass(frozen=True)
class Shard:
    """The part of a parameter that a rank of tensor parallelism keeps.

    Dimension `dim` is cut into `groups` equal groups (q, k and v of one matrix), and each of these into one part per
    rank. `first_only`: rank 0 keeps all of it, the others zeros; for a bias that is added to a sum over ranks.
    """

    dim: int = 0
    groups: int = 1
    first_only: bool = False


@dataclass
class Layout:
    """The places of a network at which ranks exchange something. Modules are in the order in which they run."""

    token_inputs: list[tuple[nn.Module, int]] = field(default_factory=list)
    """Modules and the number of an argument [B, F, N or 1, ...] of which they shall see their own tokens."""
    last: nn.Module | None = None
    """Its result, one row per token, is gathered; None for a network whose tokens somebody else gathers."""
    attentions: list[tuple[nn.Module, int]] = field(default_factory=list)
    """Modules and the number of their argument that is the cache."""
    norm_across_heads: bool = False
    """True if the RMSNorm of queries and keys is over all heads together, not over each."""
    wide: list[tuple[nn.Module, nn.Module]] = field(default_factory=list)
    """Pairs whose linear layers can be cut: the module before which all tokens are gathered, the one that adds up."""
    shards: dict[str, Shard] = field(default_factory=dict)
    """By name, the parameters that tensor parallelism cuts. All others are the same on every rank."""


def layout_of(generator: Any) -> Layout:
    """The layout of a `Generator` or a `WanTransformer`. Raises ValueError for another network."""
    layouts: dict[type, Callable[[Any], Layout]] = {Generator: _of_aapt, WanTransformer: _of_wan}
    known = type(generator) in layouts
    require(known, "generator", " or ".join(kind.__name__ for kind in layouts), type(generator).__name__)
    return layouts[type(generator)](generator)


def _of_aapt(generator: Generator) -> Layout:
    """Video tokens are cut. The text stream, which runs once per prompt, is whole on every rank."""
    layout = Layout(token_inputs=[(generator.blocks[0], 0)], last=getattr(generator, "unpatch", None))
    for number, block in enumerate(_blocks(generator)):
        stream, name = block.video, f"blocks.{number}.video"
        layout.attentions.append((block, 4))
        layout.wide += [(stream.qkv, stream.out), (stream.up, stream.down)]
        layout.shards[f"{name}.qkv.weight"] = Shard(groups=3)
        layout.shards |= _columns(f"{name}.up") | _rows(f"{name}.out") | _rows(f"{name}.down")
    return layout


def _of_wan(generator: WanTransformer) -> Layout:
    """Tokens are cut. Cross-attention looks at one token at a time: its layers are whole on every rank."""
    layout = Layout(token_inputs=[(generator.blocks[0], 0)], last=generator.head, norm_across_heads=True)
    layout.token_inputs += [(block, 1) for block in generator.blocks] + [(generator.head, 1)]
    for number, block in enumerate(_blocks(generator)):
        name = f"blocks.{number}"
        layout.attentions.append((block.self_attn, 1))
        layout.wide += [(block.self_attn, block.self_attn), (block.ffn, block.ffn)]
        for part in ("q", "k", "v"):
            layout.shards |= _columns(f"{name}.self_attn.{part}")
        layout.shards |= {f"{name}.self_attn.norm_{part}.weight": Shard() for part in ("q", "k")}
        layout.shards |= _rows(f"{name}.self_attn.o") | _columns(f"{name}.ffn.0") | _rows(f"{name}.ffn.2")
    return layout


def _blocks(generator: Any) -> Iterator[Any]:
    return iter(generator.blocks)


def _columns(linear: str) -> dict[str, Shard]:
    """A linear layer [O, C] of which each rank computes a part of the outputs."""
    return {f"{linear}.weight": Shard(), f"{linear}.bias": Shard()}


def _rows(linear: str) -> dict[str, Shard]:
    """A linear layer [O, C] of which each rank has a part of the inputs, so that the results have to be added."""
    return {f"{linear}.weight": Shard(dim=1), f"{linear}.bias": Shard(first_only=True)}
