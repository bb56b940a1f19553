# SPDX-License-Identifier: Apache-2.0
"""Causal 3-D convolution: zero padding in space, only the past in time.

    y[b, o, t, h, w] = bias[o] + sum over c, i, j, k of
                       weight[o, c, i, j, k] * x[b, c, t + i - (kt - 1), h + j - kh // 2, w + k - kw // 2]

Frames before `x` come from `history` (the last kt - 1 frames of the previous chunk of a stream); without it they are
zeros. So a clip cut into chunks, each with the history of the one before, gives what the whole clip gives.

This file holds, from the outside in: the op, the readable reference, the compositions that make it fast on a CPU, the
backward, the registrations. Every result has the memory format `torch.channels_last_3d`, so that a chain of layers
keeps its frames as [B, T, H, W, C] in memory and nothing is transposed between them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require, require_device, require_dtype, require_shape
from aapt_fast.ops.registry import register

# Smallest sizes for pairing; on smaller ones preparing the combined weights costs more than pairing saves.
_PAIRING_MIN_CHANNELS = 16
_PAIRING_MIN_POSITIONS = 1024
# oneDNN computes output channels in blocks of 16: up to that many, more outputs are free.
_OUTPUT_BLOCK = 16
_HALVES = (torch.bfloat16, torch.float16)


def causal_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, history: Tensor | None = None) -> Tensor:
    """Convolve `x` causally in time, with stride 1 and zero padding that keeps height and width.

    Args:
        x: [B, C, T, H, W], any strides; fastest when it is in `torch.channels_last_3d`.
        weight: [O, C, kt, kh, kw], kh and kw odd; fastest in the layout that `tap_major` gives.
        bias: [O] or None.
        history: [B, C, kt - 1, H, W], the frames before `x`, or None for zeros.
    Returns:
        [B, O, T, H, W] in `torch.channels_last_3d`. Differentiable in every argument, also twice.
    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.

    On the CPU the result comes from 2-D convolutions (see `convolve`), in half precision and on CUDA from
    `F.conv3d`. Under autocast every argument but float64 is cast to the autocast dtype.
    """
    return _call(x, weight, bias, history)


def causal_conv3d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor | None) -> Tensor:
    """`causal_conv3d` in plain torch: put the past in front of x [B, C, T, H, W], then convolve. Same arguments.

    Where the past lies in front of x already, as in frames [B, C, kt - 1 + T, H, W] cut in two, nothing is copied.
    """
    kt, kh, kw = weight.shape[2:]
    frames = F.pad(x, (0, 0, 0, 0, kt - 1, 0)) if history is None else _joined(history, x)
    return F.conv3d(frames, weight, bias, padding=(0, kh // 2, kw // 2))


def _joined(history: Tensor, x: Tensor) -> Tensor:
    """[B, C, n, H, W] and [B, C, T, H, W] one after the other: a view if they are parts of one tensor, else a copy."""
    end = history.storage_offset() + history.shape[2] * x.stride(2)
    same_tensor = history.untyped_storage()._cdata == x.untyped_storage()._cdata
    if not (same_tensor and history.stride() == x.stride() and end == x.storage_offset()):
        return torch.cat([history, x], dim=2)
    batch, channels, length, height, width = x.shape
    shape = (batch, channels, history.shape[2] + length, height, width)
    return history.as_strided(shape, x.stride(), history.storage_offset())


def tap_major(weight: Tensor) -> Tensor:
    """The same values [O, C, kt, kh, kw], in memory as (O, kh, kw, kt, C).

    Then the 2-D weight [O, kt * C, kh, kw] of the convolution over gathered taps is a view, in the channels-last
    layout that oneDNN reads directly. Results do not depend on the layout; only the speed on small frames does.
    """
    return weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)


# --------------------------------------------------------------------------------------------------------------------
# CPU, float32 and wider: 2-D convolutions. torch 2.13 sends a float32 conv3d on the CPU to a slow path (about 11
# GFLOP/s on two cores); a conv2d goes to oneDNN, which runs at the rate of the machine's multiply-add units.
# --------------------------------------------------------------------------------------------------------------------


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor | None) -> Tensor:
    """The op's torch code, arguments [B, C, T, H, W] as there: the cheapest of three equal ways to sum over time taps.

    On GPUs it is torch's conv3d, and in half precision, where that takes as long, within 3 %: the same bits as any
    other module that calls it.
    """
    _check(x, weight, bias, history)
    if x.is_cuda or x.dtype in _HALVES:
        return causal_conv3d_reference(x, weight, bias, history).contiguous(memory_format=torch.channels_last_3d)
    if history is None:
        weight = weight[:, :, -x.shape[2] :]  # taps further back than the first frame see only zeros
    frames = _with_past(x, history, weight.shape[2])
    if weight.shape[2] > 1 and weight.shape[2] * weight.shape[0] <= _OUTPUT_BLOCK:
        y = _taps_in_outputs(frames, weight, bias)
    elif _pairing_pays(x, weight):
        y = _pairs_of_frames(frames, weight, bias)
    else:
        y = _taps_in_inputs(frames, weight, bias)
    return y.permute(0, 4, 1, 2, 3).contiguous(memory_format=torch.channels_last_3d)


def _pairing_pays(x: Tensor, weight: Tensor) -> bool:
    """True if `_pairs_of_frames` applies and is faster. Float32 only: sums of inputs need the spare digits."""
    length, height, width = x.shape[2:]
    outputs, channels, taps, kernel_height = weight.shape[:4]
    applies = taps == 3 and length % 2 == 0 and x.dtype == torch.float32
    large = length * height * width >= _PAIRING_MIN_POSITIONS and min(outputs, channels) >= _PAIRING_MIN_CHANNELS
    return applies and large and kernel_height > 1


def _with_past(x: Tensor, history: Tensor | None, taps: int) -> Tensor:
    """[B, C, T, H, W] and its history -> [B, taps - 1 + T, H, W, C], contiguous."""
    frames = x.permute(0, 2, 3, 4, 1)
    if taps == 1:
        return frames.contiguous()
    if history is None:
        past = frames.new_zeros(()).expand(frames.shape[0], taps - 1, *frames.shape[2:])
    else:
        past = history.permute(0, 2, 3, 4, 1)
    return torch.cat([past, frames], dim=1)


def _convolve_frames(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """2-D convolution of every frame: [B, T, H, W, C] with weight [O, C, kh, kw] -> [B, T, H, W, O]."""
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    y = F.conv2d(frames.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, padding=padding)
    return y.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])


def _gather_taps(frames: Tensor, taps: int) -> Tensor:
    """[B, taps - 1 + T, H, W, C] -> [B, T, H, W, taps * C]: each frame's channels after those of its past."""
    if taps == 1:
        return frames
    length = frames.shape[1] - (taps - 1)
    return torch.cat([frames[:, tap : tap + length] for tap in range(taps)], dim=-1)


def _gathered_weight(weight: Tensor) -> Tensor:
    """[O, C, kt, kh, kw] -> [O, kt * C, kh, kw], the 2-D weight that fits `_gather_taps`."""
    return weight.transpose(1, 2).flatten(1, 2)


def _taps_in_inputs(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The general way: the time taps become input channels of one convolution."""
    return _convolve_frames(_gather_taps(frames, weight.shape[2]), _gathered_weight(weight), bias)


def _taps_in_outputs(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each frame once with all taps as outputs, then add up over time; for few outputs (to RGB)."""
    outputs, _, taps = weight.shape[:3]
    parts = _convolve_frames(frames, weight.permute(2, 0, 1, 3, 4).flatten(0, 1), None)
    length = frames.shape[1] - (taps - 1)
    y = parts[:, :length, ..., :outputs].clone()
    for tap in range(1, taps):
        y += parts[:, tap : tap + length, ..., tap * outputs : (tap + 1) * outputs]
    return y if bias is None else y.add_(bias)


def _pairs_of_frames(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Two output frames from four convolutions instead of six.

    Minimal filtering F(2, 3) along time (Winograd, Arithmetic Complexity of Computations, 1980; for images Lavin and
    Gray, arXiv 1509.09308). For inputs a, b, c, d and taps g0, g1, g2, with * the 2-D convolution:
        y0 = a*g0 + b*g1 + c*g2 = m0 + m1 + m2        m0 = (a - c)*g0    m1 = (b + c)*(g0 + g1 + g2)/2
        y1 = b*g0 + c*g1 + d*g2 = m1 - m2 - m3        m3 = (b - d)*g2    m2 = (c - b)*(g0 - g1 + g2)/2
    y0 is computed without d, so the future still never touches the past. Measured errors are those of a direct sum.
    """
    batch, length = frames.shape[0], frames.shape[1] - 2
    a, b, c, d = (frames[:, start : start + length - 1 : 2] for start in range(4))
    g0, g1, g2 = weight.unbind(2)
    outer = g0 + g2
    m0 = _convolve_frames(a - c, g0, None)
    m1 = _convolve_frames(b + c, (outer + g1).mul_(0.5), bias)
    m2 = _convolve_frames(c - b, (outer - g1).mul_(0.5), None)
    m3 = _convolve_frames(b - d, g2, None)
    y = frames.new_empty(batch, length // 2, 2, *m0.shape[2:])
    y0, y1 = y.unbind(2)
    torch.add(m0, m1, out=y0).add_(m2)
    torch.sub(m1, m2, out=y1).sub_(m3)
    return y.flatten(1, 2)


# --------------------------------------------------------------------------------------------------------------------
# The op's registrations
# --------------------------------------------------------------------------------------------------------------------


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor | None) -> None:
    """Shapes, dtypes and devices of the arguments of `causal_conv3d`."""
    require_shape("x", x, "B", "C", "T", "H", "W")
    require(x.is_floating_point(), "x", "a floating-point dtype", x.dtype)
    require(min(x.shape) > 0, "x", "at least one element in every dimension", list(x.shape))
    batch, channels, _, height, width = x.shape
    require_shape("weight", weight, "O", channels, "kt", "kh", "kw")
    require(min(weight.shape) > 0, "weight", "at least one element in every dimension", list(weight.shape))
    kt, kh, kw = weight.shape[2:]
    require(kh % 2 == 1 and kw % 2 == 1, "weight", "odd kernel height and width", [kh, kw])
    if bias is not None:
        require_shape("bias", bias, weight.shape[0])
    if history is not None:
        require_shape("history", history, batch, channels, kt - 1, height, width)
    for name, tensor in (("weight", weight), ("bias", bias), ("history", history)):
        if tensor is not None:
            require_dtype(name, tensor, x.dtype)
            require_device(name, tensor, x.device)


def _shape_only(x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor | None) -> Tensor:
    _check(x, weight, bias, history)
    batch, _, length, height, width = x.shape
    shape = (batch, weight.shape[0], length, height, width)
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last_3d)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, history = inputs
    ctx.save_for_backward(x, weight, history)
    ctx.bias_size = None if bias is None else [bias.shape[0]]


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, history from that of y, [B, O, T, H, W]; itself differentiable."""
    x, weight, history = ctx.saved_tensors
    need_x, need_weight, need_bias, need_history = ctx.needs_input_grad
    mask = [need_x or need_history, need_weight, need_bias]
    past = weight.shape[2] - 1
    frames = _with_past(x, history, weight.shape[2])
    convolve_backward = _backward_3d if x.is_cuda else _backward_2d
    grad_frames, grad_weight, grad_bias = convolve_backward(grad_y, frames, weight, ctx.bias_size, mask)
    grad_x = grad_history = None
    if grad_frames is not None:
        grad_x = grad_frames[:, past:].permute(0, 4, 1, 2, 3) if need_x else None
        grad_history = grad_frames[:, :past].permute(0, 4, 1, 2, 3) if need_history else None
    return grad_x, grad_weight, grad_bias, grad_history


def _backward_2d(
    grad_y: Tensor, frames: Tensor, weight: Tensor, bias_size: list[int] | None, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of frames [B, kt - 1 + T, H, W, C], weight and bias through the convolution over gathered taps."""
    taps, kh, kw = weight.shape[2:]
    grad_gathered, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_y.transpose(1, 2).flatten(0, 1),
        _gather_taps(frames, taps).flatten(0, 1).permute(0, 3, 1, 2),
        _gathered_weight(weight),
        bias_size, [1, 1], [kh // 2, kw // 2], [1, 1], False, [0, 0], 1, mask,
    )  # fmt: skip
    grad_frames = None
    if mask[0]:
        parts = grad_gathered.permute(0, 2, 3, 1).unflatten(0, (frames.shape[0], -1)).chunk(taps, dim=-1)
        late = [F.pad(part, (0, 0, 0, 0, 0, 0, tap, taps - 1 - tap)) for tap, part in enumerate(parts)]
        grad_frames = sum(late[1:], start=late[0])
    if mask[1]:
        grad_weight = grad_weight.unflatten(1, (taps, -1)).transpose(1, 2)
    return grad_frames, grad_weight, grad_bias


def _backward_3d(
    grad_y: Tensor, frames: Tensor, weight: Tensor, bias_size: list[int] | None, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same through one 3-D convolution."""
    _, kh, kw = weight.shape[2:]
    grad_frames, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_y, frames.permute(0, 4, 1, 2, 3), weight,
        bias_size, [1, 1, 1], [0, kh // 2, kw // 2], [1, 1, 1], False, [0, 0, 0], 1, mask,
    )  # fmt: skip
    return grad_frames.permute(0, 2, 3, 4, 1) if mask[0] else None, grad_weight, grad_bias


_call = register(
    "causal_conv3d(Tensor x, Tensor weight, Tensor? bias, Tensor? history) -> Tensor",
    convolve,
    allocate=_shape_only,
    backward=(_save_inputs, _backward),
    autocast="lower",
)
