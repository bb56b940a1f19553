# SPDX-License-Identifier: Apache-2.0
"""Prediction of a step's time on a GPU that is not here: a roofline, in bfloat16, per class of operators.

Floor: every FLOP at the rate of a large matrix product, or every byte at the rate of a large copy, whichever takes
longer; nothing is faster without doing less. Target: the best rate that public kernels reach in that class, times what
tiles and waves use of it at these very shapes, plus the elementwise passes and a gap per kernel.

Counting: a multiplication and an addition are two FLOP; weights and cached keys and values are read once per step; a
bidirectional pass over all keys in sight, so no causal half. On several GPUs elementwise work is split by tokens,
attention by heads, the decoder by rows. Linear layers are split by tokens with "sp" (sequence parallel: two exchanges
per layer), by weights with "tp" (tensor parallel: four), as in `aapt_fast.distributed`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.vae.aapt import LIGHT
from aapt_fast.profiling.decoders import Layer, decoder_layers

LABEL = "prediction of a roofline, not a measurement"
BYTES = 2  # of a bfloat16
EXCHANGE_S = 8e-6  # of one exchange, before its first byte arrives
ELEMENTWISE_PASSES = 12  # over the tokens, per block: what fused kernels read and write
KERNELS_PER_BLOCK, OTHER_KERNELS, KERNELS_PER_DECODER_LAYER = 6, 4, 1.2
GAP_S = 1e-6  # between two kernels of a CUDA graph
QUERY_TILE = 128  # rows of attention
SPLIT_KEYS = 0.97  # what is left of attention where the keys are split so that no wave is partly empty


@dataclass(frozen=True)
class Gpu:
    """Rates in FLOP/s and bytes/s.

    `matmul` and `copy` are ceilings: 8192 cubed, random data, and read plus written. `attention` is cuDNN's at 8 k to
    32 k keys and head width 128, as published. `convolution` is a design goal without a measurement.
    """

    name: str
    copy: float
    matmul: float = 790e12
    attention: float = 690e12
    convolution: float = 530e12
    link: float = 0.75 * 450e9  # NVLink, one direction, as far as transfers use it
    multiprocessors: int = 132


H100 = Gpu("H100 SXM", copy=3.0e12)
H200 = Gpu("H200", copy=4.3e12)
GPUS = {"h100": H100, "h200": H200}


@dataclass(frozen=True)
class Share:
    """One class of operators in a step, in milliseconds."""

    name: str
    flops: float
    bytes: float
    floor_ms: float
    target_ms: float


@dataclass(frozen=True)
class Step:
    """Work of one step: a preset at its grid and window, prompt tokens, and a decoder's layers."""

    config: GeneratorConfig
    prompt: int
    decoder: Sequence[Layer]

    @property
    def blocks(self) -> Blocks:
        """The part of the generator that the way of sharing changes."""
        config = self.config
        return Blocks(config.tokens, config.width, config.mlp_ratio * config.width, config.layers)

    @property
    def keys(self) -> int:
        """Tokens of all frames in sight once the window is full: sink, window, own frame."""
        return (self.config.window + 2) * self.config.tokens

    @property
    def weights(self) -> int:
        """Weights that multiply a token of the video, without those of a convolutional head or stem."""
        config = self.config
        per_block = (4 + 2 * config.mlp_ratio) * config.width**2
        control = config.control_width or (config.control.step_channels if config.control else 0)
        outputs = config.head_width or config.latent_channels
        channels = (2 if config.autoregressive else 1) * config.latent_channels + control + outputs
        return config.layers * per_block + channels * config.patch**2 * config.width

    @property
    def linear_flops(self) -> float:
        """FLOP of all linear layers."""
        return 2.0 * self.config.tokens * self.weights

    def attention_flops(self, keys: int) -> float:
        """Count two products with each of so many keys and values, in all layers."""
        return 4.0 * self.config.tokens * keys * self.config.width * self.config.layers

    @property
    def generator_flops(self) -> float:
        """FLOP of one evaluation with a full window."""
        return self.linear_flops + self.attention_flops(self.keys + self.prompt)

    @property
    def decoder_flops(self) -> float:
        """FLOP of decoding one latent frame."""
        return sum(layer.flops for layer in self.decoder)


def tile_efficiency(tokens: int, outputs: int, multiprocessors: int) -> float:
    """Compute the useful share of tensor core time in a product [tokens, K] x [K, outputs] without splitting K.

    The best of the tiles that wgmma does well, with tokens along rows or, transposed, along columns.
    """
    rows_are_tokens = [(128, 128), (128, 192), (128, 256), (256, 128), (192, 128), (192, 192), (256, 192)]
    rows_are_outputs = [
        (rows, columns)
        for rows in (128, 192, 256)
        for columns in range(96, 257, 8)
        if 128 * 128 <= rows * columns <= 256 * 192
    ]

    def used(rows: int, columns: int, tile: tuple[int, int]) -> float:
        tiles = -(-rows // tile[0]) * -(-columns // tile[1])
        waves = -(-tiles // multiprocessors)
        return rows * columns / (waves * multiprocessors * tile[0] * tile[1])

    straight = max(used(tokens, outputs, tile) for tile in rows_are_tokens)
    return max(straight, *(used(outputs, tokens, tile) for tile in rows_are_outputs))


@dataclass(frozen=True)
class Blocks:
    """The blocks of a generator: all of it whose time depends on the way in which several GPUs share it."""

    tokens: int
    """Of a step."""
    width: int
    hidden: int
    """Width inside the MLP."""
    layers: int

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of a block."""
        width, hidden = self.width, self.hidden
        return [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]

    @property
    def weights(self) -> int:
        """Numbers in the linear layers of all blocks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.products)


def used_share(blocks: Blocks, gpu: Gpu, gpus: int, scheme: str) -> float:
    """Compute the useful share of tensor core time in the linear layers of one of so many GPUs."""
    by_tokens = scheme == "sp"
    rows = -(-blocks.tokens // gpus) if by_tokens else blocks.tokens
    cut = (gpus, 1, gpus, 1)  # outputs of the first layer of each pair; of the second one the inputs are
    columns = [b if by_tokens else b // parts for (_, b), parts in zip(blocks.products, cut, strict=True)]
    efficiencies = [tile_efficiency(rows, outputs, gpu.multiprocessors) for outputs in columns]
    work = [a * b for a, b in blocks.products]
    return sum(work) / sum(each / efficiency for each, efficiency in zip(work, efficiencies, strict=True))


def exchange_s(blocks: Blocks, gpu: Gpu, gpus: int, scheme: str) -> float:
    """Seconds that one of so many GPUs spends on the exchanges of a step."""
    if gpus == 1:
        return 0.0
    exchanges = (2 if scheme == "sp" else 4) * blocks.layers
    return exchanged_bytes(blocks, gpus, scheme) / gpu.link + exchanges * EXCHANGE_S


def sharing_s(blocks: Blocks, gpu: Gpu, gpus: int, scheme: str) -> float:
    """Seconds of a step on one of so many GPUs that depend on the scheme: linear layers of the blocks, and exchanges.

    By tokens every GPU reads all weights, by weights its own ones.
    """
    flops, read = 2.0 * blocks.tokens * blocks.weights, float(blocks.weights * BYTES)
    rate = gpu.matmul * used_share(blocks, gpu, gpus, scheme)
    moving = read / gpu.copy / (1 if scheme == "sp" else gpus)
    return max(flops / rate / gpus, moving) + exchange_s(blocks, gpu, gpus, scheme)


def decoding_s(layers: Sequence[Layer], gpu: Gpu, gpus: int = 1) -> float:
    """Seconds of decoding a frame on so many GPUs, which have some rows each and exchange them before each layer."""
    work = sum(layer.flops for layer in layers) / gpu.convolution
    moving = float(sum(layer.elements for layer in layers)) * BYTES / gpu.copy
    return max(work, moving) / gpus + (EXCHANGE_S * halo_exchanges(layers) if gpus > 1 else 0.0)


def halo_exchanges(layers: Sequence[Layer]) -> int:
    """Exchanges of a decoder whose rows are shared: before each layer that looks at other rows, and the video."""
    return 1 + sum(layer.attention or layer.taps[1] > 1 for layer in layers)


class HasBlocks(Protocol):
    """What `exchanged_bytes` reads of a `GeneratorConfig`, or of `Blocks`."""

    @property
    def tokens(self) -> int:
        """Of a step."""

    @property
    def width(self) -> int:
        """Of the tokens."""

    @property
    def layers(self) -> int:
        """Blocks."""


def exchanged_bytes(config: HasBlocks, gpus: int, scheme: str) -> float:
    """Bytes that one GPU sends in a step to the others, of queries, keys, values and tokens in bfloat16.

    "sp": q, k, v of own tokens before attention, its results after: of 4 N d / n numbers the part for others. "tp": own
    tokens to all others before two layers, sums for all others after two: 4 N d / n numbers, for each of the others.
    """
    per_other = 4.0 * config.tokens * config.width * BYTES / gpus / (gpus if scheme == "sp" else 1)
    return config.layers * per_other * (gpus - 1)


def shares(step: Step, gpu: Gpu, gpus: int = 1, scheme: str = "sp") -> list[Share]:
    """List the classes of operators of one step on so many GPUs, which share it by this scheme."""
    config, tokens, width, blocks = step.config, step.config.tokens, step.config.width, step.blocks
    by_tokens, used = scheme == "sp", used_share(blocks, gpu, gpus, scheme)
    padding = tokens / (-(-tokens // QUERY_TILE) * QUERY_TILE)
    keys = step.keys + step.prompt

    def share(name: str, flops: float, read: float, target_rate: float, replicated: bool = False) -> Share:
        """`replicated`: every GPU reads all of the bytes."""
        moving = read / gpu.copy / (1 if replicated else gpus)
        floor = max(flops / gpu.matmul / gpus, moving)
        return Share(name, flops, read, 1e3 * floor, 1e3 * max(flops / target_rate / gpus, moving))

    key_bytes = 2.0 * keys * width * BYTES * config.layers
    decoder_bytes = float(sum(layer.elements for layer in step.decoder)) * BYTES
    found = [
        share("linear", step.linear_flops, float(step.weights * BYTES), gpu.matmul * used, replicated=by_tokens),
        share("attention", step.attention_flops(keys), key_bytes, gpu.attention * padding * SPLIT_KEYS),
        share("decode", step.decoder_flops, decoder_bytes, gpu.convolution),
    ]
    token_bytes = float(ELEMENTWISE_PASSES * tokens * width * BYTES * config.layers)
    kernels = KERNELS_PER_BLOCK * config.layers + OTHER_KERNELS + KERNELS_PER_DECODER_LAYER * len(step.decoder)
    found.append(Share("elementwise", 0.0, token_bytes, 0.0, 1e3 * token_bytes / gpu.copy / gpus))
    found.append(Share("gaps between kernels", 0.0, 0.0, 0.0, 1e3 * kernels * GAP_S))
    if gpus > 1:
        sent, seconds = exchanged_bytes(config, gpus, scheme), exchange_s(blocks, gpu, gpus, scheme)
        seconds += EXCHANGE_S * halo_exchanges(step.decoder)  # of few bytes
        found.append(Share("exchange", 0.0, sent, 0.0, 1e3 * seconds))
    return found


def best_scheme(blocks: Blocks, gpu: Gpu, gpus: int) -> str:
    """Choose between "sp" and "tp" by the time of a step; the former where both are equal."""
    return min(("sp", "tp"), key=lambda scheme: sharing_s(blocks, gpu, gpus, scheme))


def predict(step: Step, gpu: Gpu, gpus: int = 1, scheme: str = "sp") -> dict[str, Any]:
    """Predict floor and target of one step, whole and by class; ready for JSON.

    `scheme` is "sp", "tp", or "auto" for the faster one.
    """
    if scheme == "auto":
        scheme = best_scheme(step.blocks, gpu, gpus)
    found = shares(step, gpu, gpus, scheme)
    return {
        "gpu": gpu.name,
        "gpus": gpus,
        "scheme": scheme if gpus > 1 else "",
        "floor_ms": sum(share.floor_ms for share in found),
        "target_ms": sum(share.target_ms for share in found),
        "shares": [dataclasses.asdict(share) for share in found],
    }


def prediction(step: Step, decoder: str, target_s: float, gpus: int = 1, scheme: str = "sp") -> dict[str, Any]:
    """Predict one step on so many H100 or H200, with the assumptions; ready for JSON.

    `decoder` names that of the step. Each GPU says whether its `target_ms` would meet `target_s`.
    """
    devices = {name: predict(step, gpu, gpus, scheme) for name, gpu in GPUS.items()}
    return {
        "label": LABEL,
        "dtype": "bfloat16",
        "work": {
            "tokens": step.config.tokens,
            "frames_in_sight": step.config.window + 2,
            "keys": step.keys,
            "prompt_tokens": step.prompt,
            "linear_tflop": step.linear_flops / 1e12,
            "attention_tflop": step.attention_flops(step.keys) / 1e12,
            "prompt_attention_tflop": step.attention_flops(step.prompt) / 1e12,
            "generator_tflop": step.generator_flops / 1e12,
            "decoder": decoder,
            "decoder_tflop": step.decoder_flops / 1e12,
        },
        "devices": {
            name: {**each, "would_meet": each["target_ms"] <= 1e3 * target_s} for name, each in devices.items()
        },
        "assumptions": {name: dataclasses.asdict(gpu) for name, gpu in GPUS.items()},
    }


@dataclass(frozen=True)
class Published:
    """Time of one latent frame in the paper (arXiv 2506.09350), decoder included."""

    size: tuple[int, int]  # width, height
    past_frames: int  # window
    gpus: int
    seconds: float


PAPER = (Published((736, 416), 30, 1, 0.16), Published((1280, 720), 15, 8, 0.17))


def paper_check(config: GeneratorConfig, prompt: int) -> list[dict[str, Any]]:
    """Compare the paper's own settings with this roofline; `config` is the 8 B model's at any size. Ready for JSON.

    The paper decodes with its light decoder, so these numbers do, too.
    """
    rows = []
    for published in PAPER:
        width, height = (length // 8 for length in published.size)
        at_size = dataclasses.replace(config, grid=(height, width), window=published.past_frames)
        step = Step(at_size, prompt, decoder_layers(LIGHT, height, width))
        found = predict(step, H100, published.gpus)
        flops = step.generator_flops + step.decoder_flops
        rows.append(
            {
                "resolution": f"{published.size[0]}x{published.size[1]}",
                "past_frames": published.past_frames,
                "gpus": published.gpus,
                "paper_ms": 1e3 * published.seconds,
                "paper_tflops_per_gpu": flops / published.seconds / published.gpus / 1e12,
                "generator_tflop": step.generator_flops / 1e12,
                "decoder_tflop": step.decoder_flops / 1e12,
                "floor_ms": found["floor_ms"],
                "target_ms": found["target_ms"],
            }
        )
    return rows
