# SPDX-License-Identifier: Apache-2.0
"""Convolution of a stream's frames from one ring into the next: causal in time, zero padding in space.

Rings are those of `ops/ring.py`. Output frame t sees the kt frames from slot start + t on; call them x[b, t + i], with
i < kt. With the weight [O, C, kt, kh, kw] and the columns

    y[b, t, h, w, o] = bias[o] + sum over c, i, j, k of
                       weight[o, c, i, j, k] * x[b, t + i, h + j - kh // 2, w + k - kw // 2, c]

the modes differ in where the O columns of a pixel go:

    "same"         one pixel of one frame: O' = O
    "double_time"  O = 2 O': the first O' columns to frame 2 t, the others to frame 2 t + 1; the kernel is 3x1x1
    "shuffle"      O = 4 f O', f = 1 or 2: a block of 2 x 2 pixels in f frames; the kernel is 1x1x1
    "upsample"     O' = O: the 1x3x3 kernel slides over the frame enlarged to 2H x 2W, each pixel repeated

Column ((row * 2 + column) * f + frame) * O' + o of "shuffle" is channel o of pixel (2 h + row, 2 w + column) of frame
f t + frame. This is the order of the Seaweed decoder; `pack_weight` brings any other one into it.

For "upsample" nothing is enlarged. The three taps along a column of the enlarged frame fall on two rows of the frame:
for an even row of the result on rows h - 1 (one tap) and h (two), for an odd one on h (two) and h + 1 (one); likewise
along a row. So each of the four phases (parity of the row, parity of the column) is a 2x2 convolution with summed taps:

    y[b, t, 2 h + p, 2 w + q, o] = bias[o] + sum over c, j, k of
                                   phase[p, q, o, c, j, k] * x[b, t, h + j - 1 + p, w + k - 1 + q, c]

Then `residual` is added, and frame t of the result goes to slot (out_start + t) mod S' of `out`. Kernels sum in float32
and round once; the result does not depend on where in its ring a frame lies, to the bit.

Two things that follow a convolution can be done before its result leaves the chip:

    normed[b, (normed_start + t) mod S'']    what `norm_silu` makes of the rounded result with `gamma`, without groups
    `out` in uint8                           what `to_uint8` makes of the rounded result: colours

With `normed`, `out` may be None: then nobody needs the result itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require, require_device, require_dtype, require_shape
from aapt_fast.ops._checks import check_inference, check_tensor, check_vector
from aapt_fast.ops.causal_conv3d import convolve
from aapt_fast.ops.conv_tile import TILES, conv_tile
from aapt_fast.ops.kernels import Kernel, running_kernel
from aapt_fast.ops.norm_silu import normed_silu
from aapt_fast.ops.registry import register
from aapt_fast.ops.ring import check_ring, check_start, read_frames, write_frames
from aapt_fast.ops.split_schedule import slots_of

KERNEL_SIZES = {27: (3, 3, 3), 9: (1, 3, 3), 3: (3, 1, 1), 1: (1, 1, 1)}
"""Kernel size (kt, kh, kw) by the number of taps, for every mode but "upsample"."""

TAPS = {"same": tuple(KERNEL_SIZES), "upsample": (4,), "double_time": (3,), "shuffle": (1,)}
"""Numbers of taps that a mode takes."""

SCALES = {"same": (1, (1,)), "upsample": (2, (1,)), "double_time": (1, (2,)), "shuffle": (2, (1, 2))}
"""Factor of height and width, and the possible numbers of output frames per frame, by mode."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_MOST_NORMED = {"ring_conv3d/portable": 128, "ring_conv3d/sm90": max(outputs for _, outputs in TILES)}
"""Columns of the widest block, by kernel."""


def ring_conv3d(
    ring: Tensor,
    start: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    out_start: Tensor | None,
    frames: int,
    mode: str = "same",
    gamma: Tensor | None = None,
    normed: Tensor | None = None,
    normed_start: Tensor | None = None,
    eps: float = 1e-12,
) -> None:
    """Convolve T frames of a ring and write the result into slots of another one. Inference only.

    T' below is the number of frames written: 2T for "double_time", f T for "shuffle", else T. H' and W' are 2H and 2W
    for "upsample" and "shuffle", else H and W. All tensors have one device, and one dtype unless it says otherwise;
    autocast changes nothing.

    Args:
        ring: [B, S, H, W, C], contiguous; float32, float64, bfloat16 or float16; S >= T + kt - 1.
        start: int32 [1], 0 or larger, taken modulo S: the slot of the oldest frame that frame 0 sees; None for 0.
        weight: [P, taps, O, C], contiguous, made by `pack_weight` for this mode.
        bias: [O], in the order of the packed rows, or None.
        residual: [B, T', H', W', O'], contiguous, added to the result; or None.
        out: [B, S', H', W', O'], contiguous, changed in place; S' >= T'. Shares no memory with the other arguments. In
            uint8 it gets colours: -1..1 becomes 0..255. None: nowhere, if there is `normed`.
        out_start: int32 [1], 0 or larger, taken modulo S': the slot of the first written frame; None for 0.
        frames: T, at least 1.
        mode: "same", "upsample", "double_time" or "shuffle".
        gamma: floating point [O'], the weight of the norm; with `normed` only.
        normed: [B, S'', H', W', O'], contiguous, changed in place; S'' >= T'. Gets SiLU of the norm of every pixel over
            its O' channels. For "same" and "upsample", and not beside an `out` in uint8; or None.
        normed_start: int32 [1], 0 or larger, taken modulo S'': the slot of the first frame of `normed`; None for 0.
        eps: the smallest norm to divide by.

    Raises:
        ValueError: wrong shape, dtype, device or strides of an argument, or an unknown mode.
        RuntimeError: an input requires a gradient while gradients are recorded; `causal_conv3d` has a backward.

    Kernels take numbers of channels C that are multiples of 16 (`pack_weight` and the ring pad them with zeros), and
    with `normed` up to `most_normed` channels O' that are a multiple of 8.
    """
    require(mode in TAPS, "mode", " or ".join(TAPS), repr(mode))
    require(frames >= 1, "frames", "at least 1", frames)
    _check_weight(weight, ring, mode)
    taps_in_time = 1 if mode == "upsample" else KERNEL_SIZES[weight.shape[1]][0]
    check_ring("ring", ring, ("B", "S", "H", "W", weight.shape[3]), frames + taps_in_time - 1)
    check_start("start", start, ring)
    if bias is not None:
        check_tensor("bias", bias, weight.shape[2:3], ring.dtype, ring.device)

    require(out is not None or normed is not None, "out", "a tensor, as normed is None", "None")
    for name, target in (("out", out), ("normed", normed)):
        if target is not None:
            written = _check_target(name, ring, weight, target, frames, mode)
    result = _either(out, normed)
    check_start("out_start", out_start, ring)
    check_start("normed_start", normed_start, ring)
    if out is not None:
        require_dtype("out", out, ring.dtype, torch.uint8)
    if residual is not None:
        check_tensor("residual", residual, (result.shape[0], written, *result.shape[2:]), ring.dtype, ring.device)
        require(residual.is_contiguous(), "residual", "a contiguous tensor", f"strides {list(residual.stride())}")
    _check_norm(ring, out, gamma, normed, mode)
    check_inference("ring_conv3d", ring, weight, bias, residual, out, gamma, normed, training="causal_conv3d")
    _call(ring, start, weight, bias, residual, out, out_start, frames, mode, gamma, normed, normed_start, eps)


def most_normed(device: torch.device) -> int | None:
    """The most channels O' that what runs on `device` normalises in the same pass; None where there is no limit.

    A kernel needs all channels of a pixel in one block; more are left to `norm_silu`.
    """
    kernel = running_kernel("ring_conv3d", device)
    return None if kernel is None else _MOST_NORMED[kernel]


def to_uint8(frames: Tensor) -> Tensor:
    """Frames [...] in -1..1 -> colours 0..255 in uint8 [...], contiguous, rounded to nearest, halves to even.

    What lies outside is taken as the nearest of both, nan as 0.
    """
    levels = frames.float().clamp(-1, 1).add_(1).mul_(127.5).round_()
    return levels.to(torch.uint8, memory_format=torch.contiguous_format)


def pack_weight(
    weight: Tensor, mode: str = "same", rows: Sequence[int] | None = None, channels: int | None = None
) -> Tensor:
    """The weight of a convolution in the layout of `ring_conv3d`: for each tap a matrix of outputs by channels.

    Args:
        weight: [O, C, kt, kh, kw], or [O, C, kh, kw] of a 2-D convolution (kt = 1).
        mode: as in `ring_conv3d`.
        rows: the packed rows as numbers of rows of `weight`, in order: to bring the channels of another "shuffle" into
            the order of this one, or to leave some out. None for all as they are. A bias needs the same: `bias[rows]`.
        channels: pad C with zeros to this number, that of the ring. None for no padding.

    Returns:
        [P, taps, O, C], contiguous, in the dtype of `weight`. P is 1 and taps = kt * kh * kw, in (i, j, k) order. For
        "upsample" P is 4, in order (row parity, column parity), and taps are the 2 * 2 summed ones of a phase.

    Raises:
        ValueError: an unknown mode, or a kernel size that the mode does not take; too few `channels`.
    """
    require(mode in TAPS, "mode", " or ".join(TAPS), repr(mode))
    if weight.ndim == 4:
        weight = weight.unsqueeze(2)
    require_shape("weight", weight, "O", "C", "kt", "kh", "kw")
    size = tuple(weight.shape[2:])
    sizes = [(1, 3, 3)] if mode == "upsample" else [KERNEL_SIZES[taps] for taps in TAPS[mode]]
    require(size in sizes, "weight", f"a kernel of size {' or '.join(map(str, sizes))} for mode {mode!r}", size)
    if rows is not None:
        weight = weight[torch.as_tensor(rows, device=weight.device)]
    if channels is not None:
        require(channels >= weight.shape[1], "channels", f"at least {weight.shape[1]}", channels)
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, channels - weight.shape[1]))
    if mode != "upsample":
        return weight.permute(2, 3, 4, 0, 1).flatten(0, 2).unsqueeze(0).contiguous()
    taps_on_inputs = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [parity, input, tap]
    phases = torch.einsum("ayp,bxq,ocpq->abyxoc", taps_on_inputs, taps_on_inputs, weight[:, :, 0])
    return phases.flatten(2, 3).flatten(0, 1).contiguous()


def convolve_phases(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The torch code of "upsample", differentiable: all phases as outputs of one 2-D convolution.

    Args:
        frames: [N, h, w, C].
        weight: [4, 4, O, C], from `pack_weight`.
        bias: [O] or None.

    Returns:
        [N, 2h, 2w, O], contiguous.
    """
    count, height, width, _ = frames.shape
    outputs = weight.shape[2]
    kernels = weight.unflatten(1, (2, 2)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # [4 O, C, 2, 2]
    y = F.conv2d(frames.permute(0, 3, 1, 2), kernels, None if bias is None else bias.repeat(4), padding=1)
    phases = y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, outputs))  # [N, h + 1, w + 1, 2, 2, O]
    result = y.new_empty(count, height, 2, width, 2, outputs)
    for row in range(2):
        for column in range(2):
            result[:, :, row, :, column] = phases[:, row : row + height, column : column + width, row, column]
    return result.view(count, 2 * height, 2 * width, outputs)


def spread_columns(y: Tensor, out_channels: int, space: int) -> Tensor:
    """Columns [B, T, H, W, space^2 * f * O'] -> pixels [B, f T, space * H, space * W, O'], as "shuffle" orders them."""
    blocks = y.unflatten(-1, (space, space, -1, out_channels))  # [B, T, H, W, row, column, frame, O']
    pixels = blocks.permute(0, 1, 6, 2, 4, 3, 5, 7)
    return pixels.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _check_weight(weight: Tensor, ring: Tensor, mode: str) -> None:
    """Raise ValueError unless `weight` is [P, taps, O, C] for this mode, contiguous, with dtype and device of ring."""
    phases = 4 if mode == "upsample" else 1
    require_dtype("ring", ring, *DTYPES)
    require_shape("weight", weight, phases, "taps", "O", "C")
    counts = TAPS[mode]
    require(weight.shape[1] in counts, "weight", f"{' or '.join(map(str, counts))} taps for {mode!r}", weight.shape[1])
    require_dtype("weight", weight, ring.dtype)
    require_device("weight", weight, ring.device)
    require(weight.is_contiguous(), "weight", "a contiguous tensor", f"strides {list(weight.stride())}")


def _either(out: Tensor | None, normed: Tensor | None) -> Tensor:
    """One of both results [B, S', H', W', O'], which differ in S' only, and maybe in the dtype."""
    result = normed if out is None else out
    assert result is not None
    return result


def _check_norm(ring: Tensor, out: Tensor | None, gamma: Tensor | None, normed: Tensor | None, mode: str) -> None:
    """Raise ValueError unless `gamma` and `normed` fit the other arguments, whose shapes have been checked."""
    if normed is None:
        require(gamma is None, "gamma", "None, as normed is None", "a tensor")
        return
    require(mode in ("same", "upsample"), "normed", f"None for {mode!r}", "a tensor")
    require_dtype("normed", normed, ring.dtype)
    require(gamma is not None, "gamma", "a tensor, as there is normed", "None")
    assert gamma is not None
    check_vector("gamma", gamma, normed.shape[4:], ring.device)
    if out is not None:
        require(out.dtype != torch.uint8, "out", f"None or {ring.dtype} beside normed", out.dtype)


def _check_target(name: str, ring: Tensor, weight: Tensor, out: Tensor, frames: int, mode: str) -> int:
    """Raise ValueError unless a result fits the other arguments; return T', the number of frames written."""
    space, counts = SCALES[mode]
    batch, _, height, width, _ = ring.shape
    require_shape(name, out, batch, "S'", space * height, space * width, "O'")
    columns = weight.shape[0] * weight.shape[2]
    per_frame, rest = divmod(columns, space**2 * max(out.shape[4], 1))
    fits = rest == 0 and per_frame in counts
    widths = " or ".join(f"{columns / (space**2 * count):g}" for count in counts)
    require(fits, name, f"{widths} channels, as the weight has {weight.shape[2]} rows", out.shape[4])
    require_device(name, out, ring.device)
    written = frames * per_frame
    check_ring(name, out, tuple(out.shape), written)
    return written


def _composition(
    ring: Tensor,
    start: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    out_start: Tensor | None,
    frames: int,
    mode: str,
    gamma: Tensor | None,
    normed: Tensor | None,
    normed_start: Tensor | None,
    eps: float,
) -> None:
    if mode == "upsample":
        seen = read_frames(ring, start, frames)
        y = convolve_phases(seen.flatten(0, 1), weight, bias).unflatten(0, (-1, frames))
    else:
        size = KERNEL_SIZES[weight.shape[1]]
        past = size[0] - 1
        seen = read_frames(ring, start, frames + past).permute(0, 4, 1, 2, 3)
        unpacked = weight[0].unflatten(0, size).permute(3, 4, 0, 1, 2)
        convolved = convolve(seen[:, :, past:], unpacked, bias, seen[:, :, :past] if past else None)
        out_channels = _either(out, normed).shape[4]
        y = spread_columns(convolved.permute(0, 2, 3, 4, 1), out_channels, SCALES[mode][0])
    result = y if residual is None else y + residual
    if out is not None:
        write_frames(to_uint8(result) if out.dtype == torch.uint8 else result, out, out_start)
    if normed is not None:
        assert gamma is not None
        write_frames(normed_silu(result, gamma, None, 0, eps), normed, normed_start)


def _allocate(*_: Any) -> None:
    """Nothing: the op changes `out` and `normed` and returns None."""


def _bind(kernel: Kernel, *arguments: Any) -> tuple[None, tuple[Any, ...]]:
    if kernel.variant != "sm90":
        return None, arguments
    ring, weight, frames, normed = (arguments[place] for place in (0, 2, 7, 10))
    tile, clusters = _tile_and_clusters(ring, weight, frames, normed is not None)
    return None, (*arguments, *tile, clusters)


def _tile_and_clusters(ring: Tensor, weight: Tensor, frames: int, normed: bool) -> tuple[tuple[int, int], int]:
    """The tile and the number of clusters of a launch for ring [B, S, H, W, C] and weight [P, taps, O, C].

    With `normed` a tile has all outputs, if any does.
    """
    batch, _, height, width, _ = ring.shape
    phases, taps, outputs, channels = weight.shape
    clusters = slots_of(ring.device, cluster=2)
    tile = conv_tile(height, width, batch * frames * phases, outputs, taps * channels, clusters, whole=normed)
    return tile, clusters


_call = register(
    "ring_conv3d(Tensor ring, Tensor? start, Tensor weight, Tensor? bias, Tensor? residual, Tensor(a!)? out,"
    " Tensor? out_start, SymInt frames, str conv_mode,"  # an argument `mode` would collide inside torch.compile
    " Tensor? gamma, Tensor(b!)? normed, Tensor? normed_start, float eps) -> ()",
    _composition,
    allocate=_allocate,
    bind=_bind,
)
