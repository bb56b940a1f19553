# SPDX-License-Identifier: Apache-2.0
"""The maths of every op in plain torch, in float32 (float64 if the input is), without regard to speed.

These functions are the oracles of the tests and the definition of what a kernel has to compute. Results have the
input's dtype. Nothing here checks its arguments; the public functions do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def wide(x: Tensor) -> Tensor:
    """`x` [...] in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_ids: Tensor,
    page_valid: Tensor,
    scale: float,
    page_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Masked softmax over all slots of all listed pages; reads no value back to the host.

    q [B, Nq, H, D], pages [P, S, Hkv, D], page_ids and page_valid int32 [B, M], page_bias float32 [B, M]
    -> out [B, Nq, H, D], lse [B, H, Nq].
    """
    heads, (slots, kv_heads) = q.shape[2], k_pages.shape[1:3]
    valid = torch.arange(slots, device=q.device) < page_valid[..., None]  # [B, M, S]
    used_ids = torch.where(page_valid > 0, page_ids, 0)

    def gather(pages: Tensor) -> Tensor:  # -> [B, H, M * S, D]
        listed = torch.where(valid[..., None, None], wide(pages[used_ids]), 0)  # drops NaN in unused slots
        return listed.flatten(1, 2).transpose(1, 2).repeat_interleave(heads // kv_heads, 1)

    scores = wide(q).transpose(1, 2) @ gather(k_pages).transpose(2, 3) * scale
    if page_bias is not None:
        scores = scores + wide(page_bias).repeat_interleave(slots, 1)[:, None, None]
    scores = scores.masked_fill(~valid.flatten(1)[:, None, None], -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.where(lse[..., None] == -torch.inf, 0, (scores - lse[..., None]).exp())
    out = weights @ gather(v_pages)
    return out.transpose(1, 2).to(q.dtype).contiguous(), lse.float()


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) for x [..., d], the mean over d."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[2i], x[2i+1]) of x [..., N, H, D] by the angle with cos, sin [N, D/2] or [..., N, D/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def normalise_and_rotate(
    x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float
) -> Tensor:
    """RMSNorm of x [..., N, H, D] per head (weight [D]) or across heads (weight [H * D]), then RoPE."""
    y = wide(x)
    if weight is not None:
        across = y.flatten(-2) if weight.shape[0] != x.shape[-1] else y
        y = (rms_norm(across, eps) * wide(weight)).view(y.shape)
    if cos is not None:
        y = rotate(y, cos, sin)
    return y.to(x.dtype)


def kv_write(*arguments: Any) -> Tensor:
    """Token n of row b goes to slot n % S of page page_ids[b, n // S]; pages are changed in place.

    All arguments of `ops.kv_write`; returns [B, N, H, D].
    """
    q, k, v, q_weight, k_weight, cos, sin, k_pages, v_pages, page_ids, eps = arguments
    slots = k_pages.shape[1]
    k = normalise_and_rotate(k, k_weight, cos, sin, eps)
    for row in range(q.shape[0]):
        for token in range(q.shape[1]):
            page = page_ids[row, token // slots]
            k_pages[page, token % slots] = k[row, token]
            v_pages[page, token % slots] = v[row, token]
    return normalise_and_rotate(q, q_weight, cos, sin, eps)


def channel_concat(
    noised: Tensor, recycled: Tensor, control: Tensor | None, weight: Tensor, bias: Tensor | None, patch: int
) -> Tensor:
    """Patch embedding of the channel-wise concatenation: [B, C, h, w] x 2 (+ [B, Cc, h, w]) -> [B, N, d]."""
    sources = [noised, recycled] if control is None else [noised, recycled, control]
    patches = torch.nn.functional.pixel_unshuffle(wide(torch.cat(sources, 1)), patch)
    tokens = patches.flatten(2).transpose(1, 2) @ wide(weight).T
    return (tokens if bias is None else tokens + wide(bias)).to(noised.dtype)


def gate_residual_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """residual = x + gate * y and RMSNorm(residual) * (1 + scale) + shift, both [B, N, d]; missing parts drop out."""
    residual = wide(x)
    if y is not None:
        residual = residual + (wide(y) if gate is None else wide(gate) * wide(y))
    normed = rms_norm(residual, eps)
    if scale is not None:
        normed = normed * (1 + wide(scale))
    if shift is not None:
        normed = normed + wide(shift)
    return residual.to(x.dtype), normed.to(x.dtype)


def clean_frame(tokens: Tensor, noised: Tensor, t: Tensor, patch: int) -> Tensor:
    """noised - t * velocity: tokens [B, F N, C p^2], noised [B, C, F, h, w], t [B] -> [B, C, F, h, w]."""
    batch, channels, frames, height, width = noised.shape
    grid = (frames, height // patch, width // patch)
    patches = wide(tokens).reshape(batch, *grid, channels, patch, patch)
    velocity = patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(noised.shape)
    return (wide(noised) - wide(t).view(-1, 1, 1, 1, 1) * velocity).to(noised.dtype)


def shifted(frame: Tensor, rows: int, columns: int) -> Tensor:
    """frame [B, H, W, C] read at (h + rows, w + columns), each -1, 0 or 1; zeros outside."""
    height, width = frame.shape[1:3]
    padded = torch.nn.functional.pad(frame, (0, 0, 1, 1, 1, 1))
    return padded[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]


def ring_conv3d(*arguments: Any) -> None:
    """Convolution tap by tap, from slots of one ring into slots of another. All arguments of `ops.ring_conv3d`."""
    ring, start, weight, bias, residual, out, out_start, frames, mode, *norm = arguments
    given: tuple[Any, ...] = tuple(norm) or (None, None, None, 0.0)
    gamma, normed, normed_start, eps = given
    channels = normed.shape[4] if out is None else out.shape[4]
    sizes = {27: (3, 3, 3), 9: (1, 3, 3), 3: (3, 1, 1), 1: (1, 1, 1)}
    kt, kh, kw = (1, 2, 2) if mode == "upsample" else sizes[weight.shape[1]]
    space = 2 if mode in ("upsample", "shuffle") else 1
    first, out_first = (0 if each is None else int(each) for each in (start, out_start))
    for t in range(frames):
        columns = []  # of every phase
        for phase, taps in enumerate(wide(weight)):
            # The first tap of an even row or column of the larger frame is the one before, that of an odd one its own.
            top, left = (phase // 2 - 1, phase % 2 - 1) if mode == "upsample" else (-(kh // 2), -(kw // 2))
            y = torch.zeros((), dtype=taps.dtype, device=taps.device) if bias is None else wide(bias)
            for i in range(kt):
                frame = wide(ring[:, (first + t + i) % ring.shape[1]])
                for j in range(kh):
                    for k in range(kw):
                        y = y + shifted(frame, top + j, left + k) @ taps[(i * kh + j) * kw + k].T
            columns.append(y)
        # [B, H, W, row, column, frame, O'] -> [B, frame, H, row, W, column, O']
        blocks = torch.cat(columns, -1).unflatten(-1, (space, space, -1, channels))
        pixels = blocks.permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5).flatten(2, 3)
        for number, frame in enumerate(pixels.unbind(1), t * pixels.shape[1]):
            if residual is not None:
                frame = frame + wide(residual[:, number])
            frame = frame.to(ring.dtype)
            if normed is not None:
                first_slot = 0 if normed_start is None else int(normed_start)
                norm_silu(frame[:, None], gamma, None, 0, eps, normed, first_slot + number)
            if out is not None:
                slot = (out_first + number) % out.shape[1]
                out[:, slot] = colours(frame) if out.dtype == torch.uint8 else frame


def colours(frame: Tensor) -> Tensor:
    """-1..1 in [...] -> 0..255 in uint8 [...]."""
    return ((frame.double().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def norm_silu(
    x: Tensor, gamma: Tensor, beta: Tensor | None, groups: int, eps: float, out: Tensor, out_start: Tensor | int | None
) -> None:
    """RMS norm of each pixel or GroupNorm of each frame, then SiLU: x [B, T, H, W, C] into slots of `out`."""
    first = 0 if out_start is None else int(out_start)
    for t, frame in enumerate(x.unbind(1)):  # [B, H, W, C]
        values = wide(frame)
        if groups == 0:
            norm = values.square().sum(-1, keepdim=True).sqrt().clamp_min(eps)
            y = values / norm * frame.shape[-1] ** 0.5
        else:
            values = values.unflatten(-1, (groups, -1))
            centred = values - values.mean((1, 2, 4), keepdim=True)
            variance = centred.square().mean((1, 2, 4), keepdim=True)
            y = (centred / (variance + eps).sqrt()).flatten(-2)
        y = y * wide(gamma)
        if beta is not None:
            y = y + wide(beta)
        out[:, (first + t) % out.shape[1]] = (y / (1 + (-y).exp())).to(x.dtype)


def philox_words(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 on Python integers."""
    x0, x1, x2, x3 = counter
    for number in range(10):
        k0, k1 = ((word + number * step) % 2**32 for word, step in zip(key, PHILOX_KEY_STEPS, strict=True))
        high0, low0 = divmod(PHILOX_MULTIPLIERS[0] * x0, 2**32)
        high1, low1 = divmod(PHILOX_MULTIPLIERS[1] * x2, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
    return x0, x1, x2, x3
