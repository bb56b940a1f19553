# SPDX-License-Identifier: Apache-2.0
"""Faster layers for the Wan VAE of diffusers, ComfyUI and the original code, which have the same attributes.

Each class here holds the methods that `swap` puts before those of one layer. They use the layer's own parameters, and
the last frames that its caller passes. The original runs for calls that are not faster here: other dtypes, autocast, on
a GPU gradients. There the gain is memory, and the time to move it: frames stay in `channels_last_3d`, which is what
cuDNN computes in, and the past is put before them in one copy instead of two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.integrations.sites import Site
from aapt_fast.integrations.swap import Original
from aapt_fast.models.vae.wan_layers import EPS, upsample_and_convolve
from aapt_fast.ops._checks import records_gradients
from aapt_fast.ops.causal_conv3d import causal_conv3d

PART = "vae"
FAST_DTYPES = (torch.float32, torch.bfloat16)
CONV_NAMES = ("WanCausalConv3d", "CausalConv3d")
NORM_NAMES = ("WanRMS_norm", "RMS_norm")
RESAMPLE_NAMES = ("WanResample", "Resample")
ATTENTION_NAMES = ("WanAttentionBlock", "AttentionBlock")


def _faster_here(x: Tensor, weight: Tensor) -> bool:
    """Tell if the compositions of this package are faster than torch's for x [...] and a weight [...]."""
    same = x.dtype == weight.dtype and x.device == weight.device
    return x.is_cpu and same and x.dtype in FAST_DTYPES and not torch.is_autocast_enabled("cpu")


def _leaner_here(x: Tensor, weight: Tensor) -> bool:
    """Tell if this package's compositions need less memory than torch's for x [...] and a weight [...] on a GPU."""
    same = x.dtype == weight.dtype and x.device == weight.device and x.is_floating_point()
    return x.is_cuda and same and not torch.is_autocast_enabled("cuda") and not records_gradients(x, weight)


def _casts_weights(layer: nn.Module) -> bool:
    """Tell if a layer is one of ComfyUI that casts, moves or changes its weights in each call."""
    return any(getattr(layer, name, None) for name in ("comfy_cast_weights", "weight_function", "bias_function"))


def _is_plain(conv: nn.Module) -> bool:
    """Tell if a layer computes what `nn.Conv2d` does with the weights that it holds, without hooks."""
    kind = type(conv)
    of_comfyui = kind.__module__ == "comfy.ops" and isinstance(conv, nn.Conv2d) and not _casts_weights(conv)
    return (kind is nn.Conv2d or of_comfyui) and not conv._forward_hooks and not conv._forward_pre_hooks


class FastCausalConv3d(Original):
    """`forward` of a causal convolution through `ops.causal_conv3d`."""

    def forward(
        self,
        x: Tensor,
        cache_x: Tensor | None = None,
        cache_list: list[Tensor | None] | None = None,
        cache_idx: int = 0,
    ) -> Tensor:
        """Convolve x [B, C, T, H, W], preceded by cache_x [B, C, 1 or 2, H, W] or zeros -> [B, O, T', H', W'].

        In ComfyUI the caller gives cache_x as cache_list[cache_idx], which is emptied.
        """
        if cache_list is not None:
            cache_x, cache_list[cache_idx] = cache_list[cache_idx], None
        past = self.kernel_size[0] - 1
        strided = self.stride[0] == 2
        known = 0 if cache_x is None or self._padding[4] == 0 else cache_x.shape[2]
        too_short = strided and x.shape[2] <= past
        runs = _faster_here(x, self.weight) or (_leaner_here(x, self.weight) and not strided)
        if not runs or x.dim() != 5 or known > past or too_short or _casts_weights(self):
            return super().forward(x, cache_x)
        if strided:  # every second output of the convolution with stride one, whose first frames are the past
            return causal_conv3d(x[:, :, past:], self.weight, self.bias, x[:, :, :past])[:, :, ::2]
        history = None
        if cache_x is not None and known:
            history = cache_x.to(x.device)
            if known < past:
                history = F.pad(history, (0, 0, 0, 0, past - known, 0))
        return causal_conv3d(x, self.weight, self.bias, history)


class FastRMSNorm(Original):
    """`forward` of the norm over channels with fewer passes over the frames.

    On a CPU half precision goes to the original. On a GPU it is one pass over frames that have the channels last in
    memory, rounded once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...] -> the same shape and dtype."""
        pixels = x.movedim(1, -1)
        if _leaner_here(x, self.gamma) and pixels.is_contiguous():
            normed = F.rms_norm(pixels.flatten(0, -2), pixels.shape[-1:], self.gamma.view(-1), EPS**2)
            return normed.view(pixels.shape).movedim(-1, 1)
        if x.dtype != torch.float32 or not _faster_here(x, self.gamma):
            return super().forward(x)
        gain = (self.gamma * self.scale).view(-1, *[1] * (x.dim() - 2))
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        return (x * gain).div_(norm)


class FastUpsample(Original):
    """`forward` of upsampling and convolution in one, without the large image between them.

    On a GPU there is that image, but not in float32, in which the original makes it.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """Enlarge frames [N, C, h, w] -> [N, O, 2 h, 2 w]."""
        conv = self[1]
        untouched = _is_plain(conv)
        if untouched and _leaner_here(frames, conv.weight):
            return conv(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"))
        if not untouched or frames.dtype != torch.float32 or not _faster_here(frames, conv.weight):
            return super().forward(frames)
        return upsample_and_convolve(frames, conv.weight, conv.bias)


class PlainAttention(Original):
    """`forward` of the middle block's attention on frames in the plain memory format where torch.compile traces it.

    Our convolutions hand on `channels_last_3d`. Of one such frame, torch 2.13 predicts other strides for the product
    that gives queries, keys and values than it then has; the backend aot_eager drops a copy for that and computes a
    wrong picture (`tests/integrations/test_compiled.py`).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Attend within the frames of x [B, C, T, H, W] -> the same shape."""
        return super().forward(x.contiguous() if torch.compiler.is_compiling() else x)


# ---- places ----

RUNS: dict[type, str] = {
    FastCausalConv3d: "ops.causal_conv3d in float32 and bfloat16",
    FastRMSNorm: "RMS norm in one pass less in float32",
    FastUpsample: "upsampling and convolution in one in float32",
    PlainAttention: "the original, under torch.compile on frames in the plain memory format",
}


RUNS_ON_GPU: dict[type, str] = {
    FastCausalConv3d: "the same with frames in channels_last_3d",
    FastRMSNorm: "torch's fused RMS norm",
    FastUpsample: "both without a copy in float32",
    PlainAttention: "the same",
}


def layer_sites(model: nn.Module, prefix: str = "") -> Iterator[Site]:
    """Layers of a Wan VAE that have a faster `forward`."""
    for name, layer in model.named_modules(prefix=prefix):
        kind = type(layer).__name__
        if kind in CONV_NAMES and isinstance(layer, nn.Conv3d):
            yield _site(name, layer, FastCausalConv3d, _conv_obstacle(layer))
        elif kind in NORM_NAMES and hasattr(layer, "gamma"):
            yield _site(name, layer, FastRMSNorm, _norm_obstacle(layer))
        elif kind in RESAMPLE_NAMES and str(getattr(layer, "mode", "")).startswith("upsample"):
            yield _site(f"{name}.resample", layer.resample, FastUpsample, _upsample_obstacle(layer.resample))
        elif kind in ATTENTION_NAMES:
            yield _site(name, layer, PlainAttention, None)


def _site(where: str, layer: nn.Module, methods: type, obstacle: str | None) -> Site:
    runs = f"{RUNS[methods]} on the CPU, elsewhere {RUNS_ON_GPU.get(methods, 'the original')}"
    return Site(PART, where, layer, "forward", methods, runs, obstacle or _elsewhere(layer, methods))


def _elsewhere(layer: nn.Module, methods: type) -> str | None:
    """Reason why this layer is not faster on the device of its parameters, or None."""
    parameter = next(layer.parameters(), None)
    if parameter is None or parameter.is_cpu or (parameter.is_cuda and methods in RUNS_ON_GPU):
        return None
    return f"on {parameter.device.type} aapt_fast has no kernel for it, torch's own stays"


def _conv_obstacle(conv: nn.Module) -> str | None:
    padding = getattr(conv, "_padding", None)
    if padding is None or len(padding) != 6:
        return "expected the padding of six numbers of a causal convolution"
    (kt, kh, kw), stride = conv.kernel_size, tuple(conv.stride)
    plain = tuple(conv.dilation) == (1, 1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    same_size = kh % 2 == kw % 2 == 1 and tuple(padding[:4]) == (kw // 2, kw // 2, kh // 2, kh // 2)
    causal = stride == (1, 1, 1) and same_size and tuple(padding[4:]) == (kt - 1, 0)
    halves_time = stride == (2, 1, 1) and (kt, kh, kw) == (3, 1, 1) and not any(padding)
    if not plain or not (causal or halves_time):
        return f"a convolution of kernel {(kt, kh, kw)}, stride {stride}, padding {tuple(padding)}"
    return None


def _norm_obstacle(norm: nn.Module) -> str | None:
    if not getattr(norm, "channel_first", False) or isinstance(norm.bias, Tensor):
        return "a norm with a bias, or not over the second dimension"
    return None


def _upsample_obstacle(resample: nn.Sequential) -> str | None:
    layers = list(resample)
    fits = len(layers) == 2 and isinstance(layers[0], nn.Upsample) and isinstance(layers[1], nn.Conv2d)
    if not fits or layers[0].mode not in ("nearest", "nearest-exact") or not _doubles(layers[0].scale_factor):
        return "expected nearest upsampling by two, then a convolution"
    conv = layers[1]
    if conv.kernel_size != (3, 3) or conv.padding != (1, 1) or conv.stride != (1, 1) or conv.bias is None:
        return "expected a 3x3 convolution that keeps the size, with a bias"
    return None


def _doubles(factor: object) -> bool:
    return factor in (2, 2.0, (2.0, 2.0), (2, 2))
