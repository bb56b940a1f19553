# SPDX-License-Identifier: Apache-2.0
"""Standard normal noise from (seed, step): the same numbers on every device, in any batch, in any order.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit counter and a
64-bit key to four 32-bit words x0..x3. Element n of a frame, counted row-major over [C, h, w], is lane n % 4 of

    key = (seed low, seed high)        counter = (n // 4, 0, step low, step high)

Each word becomes a uniform number u in (0, 1], every operation rounded to float32 (the product is exact, so a fused
multiply-add gives the same bits):

    u = float32(x) * 2^-32 + 2^-33

Box and Muller's transform turns lanes (0, 1) and (2, 3) into pairs of independent normal numbers:

    (sqrt(-2 ln u0) cos(2 pi u1), sqrt(-2 ln u0) sin(2 pi u1))

The largest magnitude that can occur is sqrt(66 ln 2) = 6.76.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require, require_dtype, require_shape
from aapt_fast.ops._checks import check_tensor
from aapt_fast.ops.kernels import Kernel
from aapt_fast.ops.registry import register

ROUNDS = 10
WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # for words 0 and 2
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # added to key words 0 and 1 after each round


def philox_normal(
    seed: Tensor,
    step: Tensor,
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Normal noise for one step of `B` sessions.

    Args:
        seed: int64 [B], one seed per session (all 64 bits count).
        step: int64 [B], the step index of each session.
        shape: (C, h, w) of one latent frame.
        dtype: dtype of the result; the numbers are made in float32 and then rounded.
        device: where to make them; None means where `seed` lives.

    Returns:
        [B, C, h, w] in `dtype`.

    Raises:
        ValueError: wrong shape, dtype or device of an argument.
    """
    if device is not None:
        seed, step = seed.to(device), step.to(device)
    require_shape("seed", seed, "B")
    require_dtype("seed", seed, torch.int64)
    check_tensor("step", step, seed.shape, torch.int64, seed.device)
    require(len(shape) == 3 and min(shape) > 0, "shape", "three positive sizes (C, h, w)", shape)
    require(math.prod(shape) <= 4 * WORD, "shape", "at most 2^34 - 4 elements per frame", shape)
    require(dtype.is_floating_point, "dtype", "a floating point dtype", dtype)
    return _call(seed, step, shape).to(dtype)


def philox_words(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10.

    Args:
        counter: int64 [4, ...], each word in 0 .. 2^32 - 1.
        key: int64 [2, ...], likewise; the trailing dimensions broadcast against those of `counter`.

    Returns:
        int64 [4, ...], four random words per counter.
    """
    trailing = [1] * (counter.dim() - 1)
    factors = _pair(MULTIPLIERS, counter.device).view(2, *trailing) - 2**32
    key_steps = _pair(KEY_STEPS, counter.device).view(2, *trailing)
    rounds = torch.arange(ROUNDS, device=counter.device).view(-1, 1, *trailing)
    round_keys = (key + key_steps * rounds) & WORD

    even, odd = counter[0::2], counter[1::2]  # words (0, 2) and (1, 3)
    for round_key in round_keys.unbind(0):
        # The factor M is replaced by M - 2^32, so that the 64-bit product cannot overflow: its low word is the same
        # and its high word is smaller by `even`.
        product = factors * even
        high = (product >> 32).add_(even)
        low = product.bitwise_and_(WORD)
        even, odd = high.flip(0).bitwise_xor_(odd).bitwise_xor_(round_key), low.flip(0)
    return torch.stack((even, odd), 1).flatten(0, 1)


def _pair(numbers: tuple[int, int], device: torch.device) -> Tensor:
    """Two numbers as int64 [2], computed on `device`: a copy from the host could not be recorded in a CUDA graph."""
    first, second = numbers
    return torch.arange(2, device=device) * (second - first) + first


def _composition(seed: Tensor, step: Tensor, shape: list[int]) -> Tensor:
    size = math.prod(shape)
    index = torch.arange(-(-size // 4), device=seed.device).expand(seed.shape[0], -1)  # [B, counters]
    low, high = (step & WORD)[:, None].expand_as(index), ((step >> 32) & WORD)[:, None].expand_as(index)
    key = torch.stack((seed & WORD, (seed >> 32) & WORD))[..., None]
    words = philox_words(torch.stack((index, torch.zeros_like(index), low, high)), key)

    uniform = (words.float() * 2.0**-32 + 2.0**-33).double()  # [4, B, counters]
    radius = (-2 * uniform[0::2].log()).sqrt()
    angle = uniform[1::2] * (2 * math.pi)
    lanes = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)  # [2 pairs, B, counters, 2]
    lanes = lanes.permute(1, 2, 0, 3).reshape(seed.shape[0], -1)
    return lanes[:, :size].float().view(-1, *shape)


def _allocate(seed: Tensor, step: Tensor, shape: list[int]) -> Tensor:
    return seed.new_empty((seed.shape[0], *shape), dtype=torch.float32)


def _bind(kernel: Kernel, seed: Tensor, step: Tensor, shape: list[int]) -> tuple[Tensor, tuple[Any, ...]]:
    noise = _allocate(seed, step, shape)
    return noise, (seed, step, noise)


_call = register(
    "philox_normal(Tensor seed, Tensor step, SymInt[] shape) -> Tensor",
    _composition,
    allocate=_allocate,
    bind=_bind,
)
