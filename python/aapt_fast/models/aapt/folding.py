# SPDX-License-Identifier: Apache-2.0
"""A generator for one timestep: shift, scale and gate become part of the weights beside them.

With one evaluation per step t is always 1, so the vectors that depend on t are constants. For a linear layer (W, b)

    before it, normed * (1 + scale) + shift:   W' = W diag(1 + scale),   b' = b + W shift
    after it, gate * output:                   W' = diag(gate) W,        b' = gate * b

Hence QKV and the MLP's first layer take scale and shift, the attention's output and the MLP's second layer the gate,
and `unpatch` the final pair; QKV gets a bias, the timestep MLP goes. A step then computes no modulation, and
`gate_residual_norm` reads none. The text stream is folded likewise: its keys and values are those of this t.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from aapt_fast.errors import require, require_type
from aapt_fast.models.aapt.generator import (
    GATE1,
    GATE2,
    SCALE1,
    SCALE2,
    SHIFT1,
    SHIFT2,
    Generator,
    Stream,
    TimestepModulation,
)

WIDE = torch.float64


@torch.no_grad()
def fold_timestep(generator: Generator, t: float = 1.0) -> Generator:
    """A new generator that computes what `generator` does at timestep `t`, and refuses any other t.

    It has the same forward call, caches and positions, and `config.folded_t` says what it is, also in a file. Products
    are formed in float64 and rounded once, to the dtype of `generator`: fold a float32 model before it becomes a
    bfloat16 one. `generator` stays as it is and shares no memory with the result.

    Raises:
        TypeError: `generator` is not a Generator.
        ValueError: it is folded already, or t lies outside of 0..1.
    """
    require_type("generator", generator, Generator)
    config = generator.config
    require(config.folded_t is None, "generator", "one that is not folded", f"one folded at t = {config.folded_t}")
    config = dataclasses.replace(config, folded_t=float(t))
    assert isinstance(generator.timestep, TimestepModulation)
    weight = generator.patch_embed.weight
    level = torch.tensor([t], dtype=torch.float32, device=weight.device)
    shared = copy.deepcopy(generator.timestep).to(WIDE)(level)[0]  # [6, d]

    folded: dict[str, Tensor] = {}
    for number, block in enumerate(generator.blocks):
        for name, stream in (("video", block.video), ("text", block.text)):
            if stream is not None:
                folded |= {f"blocks.{number}.{name}.{key}": value for key, value in _stream(stream, shared).items()}
    shift, scale = generator.modulation_out.to(WIDE) + shared[:2]
    folded |= _named("unpatch", _modulated(generator.unpatch, scale, shift))

    with torch.device("meta"):  # the tensors come from above, none is made
        result = Generator(config)
    kept = generator.state_dict()
    tensors = {name: folded[name] if name in folded else kept[name].clone() for name in result.state_dict()}
    result.load_state_dict(tensors, strict=True, assign=True)
    return result.requires_grad_(weight.requires_grad).train(generator.training)


def _stream(stream: Stream, shared: Tensor) -> dict[str, Tensor]:
    """The folded tensors of one stream by name, for the shared vectors [6, d]."""
    m = shared + stream.modulation.to(WIDE)
    tensors = _named("qkv", _modulated(stream.qkv, m[SCALE1], m[SHIFT1]))
    if hasattr(stream, "out"):
        tensors |= _named("out", _gated(stream.out, m[GATE1]))
        tensors |= _named("up", _modulated(stream.up, m[SCALE2], m[SHIFT2]))
        tensors |= _named("down", _gated(stream.down, m[GATE2]))
    return tensors


def _modulated(linear: nn.Linear, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of linear(x * (1 + scale) + shift), for scale and shift [inputs]."""
    weight, dtype = linear.weight.to(WIDE), linear.weight.dtype
    bias = weight @ shift
    if linear.bias is not None:
        bias = bias + linear.bias.to(WIDE)
    return (weight * (1 + scale)).to(dtype), bias.to(dtype)


def _gated(linear: nn.Linear, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of gate * linear(x), for a gate [outputs]."""
    dtype = linear.weight.dtype
    return (linear.weight.to(WIDE) * gate[:, None]).to(dtype), (linear.bias.to(WIDE) * gate).to(dtype)


def _named(name: str, weight_and_bias: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.weight": weight_and_bias[0], f"{name}.bias": weight_and_bias[1]}
