# SPDX-License-Identifier: Apache-2.0
"""The protocols between the layers of a video encoder or decoder and the memory of its stream.

A causal layer needs the frames of the past. Where they lie, and where a result is written, is the business of the
memory: layers say only what follows what. So the wiring of encoders and decoders is written once. There are three
memories: `FeatureCache` (plain torch, differentiable) for both, and two for the kernels of this package, `RingCache`
for decoders (fixed tensors) and `PictureMemory` for encoders (a video of one picture, which has no past).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

Frames: TypeAlias = Any
"""The next frames of a stream between two layers, in the form that a memory hands from one call to the next.

In a `FeatureCache` it is a tensor [B, C, T, H, W]. Layers look into it only through `DecoderMemory.apply`."""


class LayerMemory(Protocol):
    """The memory of one stream, and the steps that encoders and decoders have in common."""

    def conv(self, x: Frames, conv: Any, residual: Frames | None = None) -> Frames:
        """A causal convolution of x, plus `residual`. `conv` is a `CausalConv3d`."""

    def norm_conv(
        self, x: Frames, norm: Any, conv: Any, residual: Frames | None = None, last_use: bool = False
    ) -> Frames:
        """Norm, SiLU and a causal convolution of x, plus `residual`.

        `norm` is an `RMSNorm` over channels or a `FrameNorm`, `conv` a `CausalConv3d`. `last_use`: no other layer needs
        x itself, neither as a residual nor for its shortcut, so it need not be stored.
        """

    def apply(self, function: Callable[..., Tensor], x: Frames, *others: Frames) -> Frames:
        """`function` of tensors [B, C, T, H, W] in `torch.channels_last_3d`; it needs no memory and keeps T."""


class DecoderMemory(LayerMemory, Protocol):
    """The memory of one stream, and the steps of which its decoder consists."""

    def enlarge(self, x: Frames, resample: nn.Sequential) -> Frames:
        """Twice the height and width by `resample`: nearest neighbours, then a 3x3 convolution of every frame."""

    def double_time(self, x: Frames, time_conv: Any) -> Frames:
        """Two frames from every one by a convolution to twice the channels.

        The first frame of a stream stays one, and later ones do not see it.
        """

    def shuffle_up(self, x: Frames, upscale: Any, conv: Any, time: int) -> Frames:
        """Twice the height and width and `time` times the frames, then a causal convolution `conv`.

        `upscale` is a 1x1x1 convolution to 4 * time * C channels: row, column and frame of a block, then C. Of the
        first frame of a stream, the first of its `time` frames is kept.
        """

    def output(self, x: Frames, out: str = "float") -> Tensor:
        """The frames of x as a tensor [B, C, T, H, W] in `torch.channels_last_3d`, for what follows the decoder.

        `out` is "float" for x as it is, and "uint8" for colours: `ops.ring_conv3d.to_uint8` of x in -1..1.
        """


class EncoderMemory(LayerMemory, Protocol):
    """The memory of one stream, and the steps of which its encoder consists. Frames are tensors [B, C, T, H, W]."""

    def halve(self, x: Tensor, resample: nn.Sequential) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T, H / 2, W / 2] by `resample`.

        Zeros below and to the right of every frame, then a 3x3 convolution with stride two.
        """

    def halve_time(self, x: Tensor, time_conv: Any) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T / 2, H, W]: from every two frames one, by a convolution that sees the one before.

        The first frame of a stream stays as it is.
        """

    def halve_all(self, x: Tensor, conv: Any) -> Tensor:
        """[B, C, T, H, W] -> [B, O, T or T / 2, H / 2, W / 2] by a `StridedConv`.

        With three taps in time it halves the frames, too. Of the first frame of a stream, one is left.
        """
