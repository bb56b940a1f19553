# SPDX-License-Identifier: Apache-2.0
"""The memory of a decoder's stream in fixed tensors, computed with the ops `ring_conv3d` and `norm_silu`.

The input of every convolution that looks back lies in a ring of frames (`ops/ring.py`), and whoever computes these
frames writes them there. The past is what the ring still holds, so nothing is concatenated, padded or copied. A layer
that hands on `rate` frames per latent frame has a ring of rate + kt - 1 slots. Where a step reads and writes depends on
`rate` and kt only: this is kept on the device, once for all layers that agree in them, and moves on after each step.

A norm of pixels that follows a convolution is taken where the convolution ends, if the kernel has all channels there:
then the result itself is stored only where another layer needs it. Likewise the last convolution makes colours.

One latent frame is decoded at a time. The first one is one frame in every layer, and a convolution with
`repeats_first` finds copies of it in its past.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.errors import require
from aapt_fast.models.vae.packed_weights import PackedWeights, new_bytes
from aapt_fast.ops.kernels import KERNELS, running_kernel
from aapt_fast.ops.norm_silu import norm_silu
from aapt_fast.ops.ring import write_frames
from aapt_fast.ops.ring_conv3d import most_normed, pack_weight, ring_conv3d, to_uint8

OPS = ("ring_conv3d", "norm_silu")
RING = "ring."
MOST_CLOCKS = 8
"""Different pairs of rate and past frames among the layers of a decoder; those of Wan and AAPT have three."""


def kernels_run(device: torch.device, dtype: torch.dtype) -> bool:
    """True if kernels of both ops run on `device` for frames in `dtype`."""
    names = [running_kernel(op, device) for op in OPS]
    return all(name is not None and dtype in KERNELS[name].dtypes for name in names)


class RingFrames:
    """Frames [B, T, H, W, C] between two layers, which are not computed before it is known where they shall lie.

    Args:
        shape: (B, T, H, W, C).
        rate: frames of every latent frame after the first.
        compute: `ring_conv3d`, but for the arguments that say where its results go.
        norms: whether `compute` takes `gamma`, `normed` and `normed_start`.
        tensor: the frames, contiguous, where they are computed already.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        rate: int,
        compute: Callable[..., None] | None = None,
        norms: bool = False,
        tensor: Tensor | None = None,
    ) -> None:
        self.shape, self.rate, self._compute, self._norms, self._tensor = shape, rate, compute, norms, tensor

    def tensor(self, like: Tensor) -> Tensor:
        """The frames [B, T, H, W, C] in a tensor of their own, which has dtype and device of `like` [...]."""
        if self._tensor is None:
            compute, self._tensor = self._take(), like.new_empty(self.shape)
            compute(out=self._tensor, out_start=None)
        return self._tensor

    def colours(self, like: Tensor) -> Tensor:
        """The frames in uint8 [B, T, H, W, C], on the device of `like` [...]. Nobody else may need them."""
        if self._tensor is not None:
            return to_uint8(self._tensor)
        colours = like.new_empty(self.shape, dtype=torch.uint8)
        self._take()(out=colours, out_start=None)
        return colours

    def write(self, ring: Tensor, start: Tensor) -> None:
        """Compute the frames into `ring` [B, S, H, W, C] from slot `start`, int32 [1], on. Nobody else may need them.

        Frames that are a tensor already are copied; of a decoder these are at most the latents.
        """
        if self._tensor is not None:
            write_frames(self._tensor, ring, start)
        else:
            self._take()(out=ring, out_start=start)

    def write_normed(
        self, norm: tuple[Tensor, Tensor | None, int, float], ring: Tensor, start: Tensor, last_use: bool
    ) -> None:
        """Write norm and SiLU of the frames into `ring` [B, S, H, W, C] from slot `start`, int32 [1], on.

        `norm` is (gamma [C], beta [C], groups, eps) of `norm_silu`. With `last_use` nobody else may need the frames.
        """
        gamma, _, groups, eps = norm
        if self._tensor is None and self._norms and groups == 0:
            compute = self._take()
            self._tensor = None if last_use else ring.new_empty(self.shape)
            compute(out=self._tensor, out_start=None, gamma=gamma, normed=ring, normed_start=start, eps=eps)
        else:
            norm_silu(self.tensor(ring), *norm, ring, start)
            if last_use:
                self._tensor = None

    def _take(self) -> Callable[..., None]:
        """The computation, which is done once: what it reads is not held any longer."""
        compute, self._compute = self._compute, None
        require(compute is not None, "x", "frames that are still there", "those of a norm_conv with last_use=True")
        assert compute is not None
        return compute


@dataclass(frozen=True)
class Clock:
    """Slots of this step, for all layers of one rate and kt; both are views int32 [1] that move on by themselves."""

    read: Tensor
    """The slot of the oldest frame that a layer sees."""
    write: Tensor
    """The slot of the first new frame."""


class RingCache:
    """A `DecoderMemory` in fixed tensors; the frames between layers are `RingFrames`.

    Args:
        weights: of the decoder's convolutions, shared by all its streams.
    """

    def __init__(self, weights: PackedWeights) -> None:
        self._weights = weights
        self._used: dict[nn.Module, Tensor] = {}  # a recording reads them, also after the model has got other weights
        self._rings: dict[str, Tensor] = {}
        self._clocks: dict[tuple[int, int], int] = {}
        self._positions: Tensor | None = None  # int32 [2, MOST_CLOCKS]: slots to read from and to write to
        self._steps: Tensor | None = None  # int32 [MOST_CLOCKS]: frames per step
        self._sizes: Tensor | None = None  # int32 [MOST_CLOCKS]: slots of the rings
        self._first, self._latents = True, torch.empty(0)

    # ---- steps of a decoder ----

    def conv(self, x: RingFrames | Tensor, conv: Any, residual: RingFrames | None = None) -> RingFrames:
        """A causal convolution of x [B, T, H, W, C], plus `residual` [B, T, H, W, O].

        A tensor [B, C, 1, H, W] is the latent frame, with which a step begins.
        """
        frames = self._begin(x) if isinstance(x, Tensor) else x
        if conv.past == 0:
            return self._convolved(conv, self._tensor(frames), None, frames, residual)
        ring, clock = self._ring(conv, frames)
        frames.write(ring, clock.write)
        return self._look_back(conv, ring, clock, frames, residual)

    def norm_conv(
        self, x: RingFrames, norm: Any, conv: Any, residual: RingFrames | None = None, last_use: bool = False
    ) -> RingFrames:
        """Norm, SiLU and a causal convolution that looks back of x [B, T, H, W, C], plus `residual` [B, T, H, W, O]."""
        ring, clock = self._ring(conv, x)
        gamma, beta, groups, eps = map(self._parameter, norm.arguments())
        x.write_normed((gamma, beta, groups, eps), ring, clock.write, last_use)
        return self._look_back(conv, ring, clock, x, residual)

    def enlarge(self, x: RingFrames, resample: nn.Sequential) -> RingFrames:
        """[B, T, H, W, C] -> [B, T, 2 H, 2 W, O] by `resample`."""
        conv: Any = resample[1]
        batch, count, height, width, _ = x.shape
        shape = (batch, count, 2 * height, 2 * width, conv.out_channels)
        return self._result(shape, x.rate, conv, self._tensor(x), None, None, count, "upsample")

    def double_time(self, x: RingFrames, time_conv: Any) -> RingFrames:
        """[B, T, H, W, C] -> [B, 2 T, H, W, C]; the first frame of a stream stays one, later ones do not see it."""
        ring, clock = self._ring(time_conv, x)
        if self._first:
            return RingFrames(x.shape, 2 * x.rate, tensor=self._tensor(x))
        x.write(ring, clock.write)
        batch, count, *size = x.shape
        shape = (batch, 2 * count, *size)
        return self._result(shape, 2 * x.rate, time_conv, ring, clock.read, None, count, "double_time")

    def shuffle_up(self, x: RingFrames, upscale: Any, conv: Any, time: int) -> RingFrames:
        """[B, T, H, W, C] -> [B, time T, 2 H, 2 W, O]; the first frame of a stream stays one."""
        batch, count, height, width, _ = x.shape
        shape = (batch, time * count, 2 * height, 2 * width, conv.in_channels)
        blocks = self._result(shape, time * x.rate, upscale, self._tensor(x), None, None, count, "shuffle")
        if self._first:  # the other frames of its block come to lie where the next step writes
            blocks.shape = (batch, count, *shape[2:])
        return self.conv(blocks, conv)

    def apply(self, function: Callable[..., Tensor], x: RingFrames, *others: RingFrames) -> RingFrames:
        """`function` of tensors [B, C, T, H, W] in `torch.channels_last_3d`; it keeps T."""
        tensors = [self._tensor(each).permute(0, 4, 1, 2, 3) for each in (x, *others)]
        y = function(*tensors).permute(0, 2, 3, 4, 1).contiguous()
        return RingFrames(tuple(y.shape), x.rate, tensor=y)

    def output(self, x: RingFrames, out: str = "float") -> Tensor:
        """The frames [B, C, T, H, W] of x, or with `out` "uint8" their colours, in `torch.channels_last_3d`.

        With them a step ends: the rings move on.
        """
        assert self._positions is not None and self._steps is not None and self._sizes is not None
        frames = self._tensor(x) if out == "float" else x.colours(self._latents)
        self._positions.add_(1 if self._first else self._steps).remainder_(self._sizes)
        self._first = False
        return frames.permute(0, 4, 1, 2, 3)

    # ---- copies ----

    def clone(self) -> RingCache:
        """An independent copy, for the fork of a session; the weights are shared."""
        other = RingCache(self._weights)
        other._used = dict(self._used)
        with torch.inference_mode(False):
            other._rings = {key: ring.clone() for key, ring in self._rings.items()}
            other._positions = None if self._positions is None else self._positions.clone()
        other._steps, other._sizes = self._steps, self._sizes
        other._clocks, other._first = dict(self._clocks), self._first
        return other

    def fixed(self) -> RingCache:
        """This object: it always stays in the same tensors."""
        return self

    def to_restore(self) -> list[Tensor]:
        """The tensors [...] that a step which shall not count has to find as they were: not the rings.

        A step writes to slots only that no later step reads before it has written there itself.
        """
        assert self._positions is not None
        return [self._positions]

    def tensors(self) -> dict[str, Tensor]:
        """The state, without the weights: rings [B, S, H, W, C] by layer, their positions and clocks."""
        assert self._positions is not None
        clocks = torch.tensor(list(self._clocks), dtype=torch.int32)
        return {f"{RING}{key}": ring for key, ring in self._rings.items()} | {
            "positions": self._positions,
            "clocks": clocks,
        }

    @staticmethod
    def made(tensors: dict[str, Tensor]) -> bool:
        """True if `tensors` [...] are those of a `RingCache`."""
        return "clocks" in tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors()` [...] was, of this memory or of another one of the same decoder, in place.

        A new memory takes these tensors for its own.
        """
        rings = {key.removeprefix(RING): ring for key, ring in tensors.items() if key.startswith(RING)}
        if self._positions is None:
            self._rings = rings
            for rate, past in tensors["clocks"].tolist():
                self._clock(rate, past, tensors["positions"])
        assert self._positions is not None
        self._positions.copy_(tensors["positions"])
        for key, ring in rings.items():
            if self._rings[key] is not ring:
                self._rings[key].copy_(ring)
        self._first = False

    def bytes(self) -> int:
        """Bytes of the state, without the weights."""
        return sum(ring.nbytes for ring in self._rings.values())

    # ---- parts of a step ----

    def _begin(self, latents: Tensor) -> RingFrames:
        """The latent frame [B, C, 1, H, W] of a step."""
        require(latents.shape[2] == 1, "latents", "one frame at a time", latents.shape[2])
        self._latents = latents.permute(0, 2, 3, 4, 1).contiguous()
        return RingFrames(tuple(self._latents.shape), 1, tensor=self._latents)

    def _tensor(self, x: RingFrames) -> Tensor:
        """The frames [B, T, H, W, C] of x."""
        return x.tensor(self._latents)

    def _weight(self, conv: Any, mode: str) -> Tensor:
        """The weight [P, taps, O, C] of a convolution, for the whole video the one that it had at first."""
        if conv not in self._used:
            self._used[conv] = self._weights.of(conv, mode)
        return self._used[conv]

    def _parameter(self, value: Any) -> Any:
        """A parameter of a layer as an argument of an op."""
        return value

    def _ring(self, conv: Any, x: RingFrames) -> tuple[Tensor, Clock]:
        """The ring that `conv` reads, for frames like x [B, T, H, W, C], and the slots of this step."""
        ring = self._rings.get(conv.cache_key)
        if ring is None:
            batch, _, *size = x.shape
            with torch.inference_mode(False):  # a step outside of inference mode may write to it, too
                ring = self._latents.new_zeros(batch, x.rate + conv.past, *size)
            self._rings[conv.cache_key] = ring
        return ring, self._clock(x.rate, conv.past, ring)

    def _clock(self, rate: int, past: int, ring: Tensor) -> Clock:
        """The slots of this step in rings of rate + past slots. A clock that is new begins at slot 0."""
        if self._positions is None or self._steps is None or self._sizes is None:
            with torch.inference_mode(False):
                self._positions = torch.zeros(2, MOST_CLOCKS, dtype=torch.int32, device=ring.device)
                self._steps, self._sizes = (torch.ones_like(self._positions[0]) for _ in range(2))
        index = self._clocks.get((rate, past))
        if index is None:
            index = len(self._clocks)
            require(index < MOST_CLOCKS, "decoder", f"at most {MOST_CLOCKS} kinds of causal layers", index + 1)
            self._clocks[rate, past] = index
            self._positions[1, index : index + 1].fill_(past)
            self._steps[index : index + 1].fill_(rate)
            self._sizes[index : index + 1].fill_(rate + past)
        read, write = self._positions[:, index : index + 1].unbind(0)
        return Clock(read, write)

    def _look_back(
        self, conv: Any, ring: Tensor, clock: Clock, x: RingFrames, residual: RingFrames | None
    ) -> RingFrames:
        """`conv` of the frames x that have been written into its ring, and of those before them."""
        if self._first and conv.repeats_first:  # the clock stands at slot 0
            ring[:, : conv.past].copy_(ring[:, conv.past : conv.past + 1])
        return self._convolved(conv, ring, clock.read, x, residual)

    def _convolved(
        self, conv: Any, ring: Tensor, start: Tensor | None, x: RingFrames, residual: RingFrames | None
    ) -> RingFrames:
        """`conv` of as many frames as x has, which lie in `ring`."""
        shape = (*x.shape[:4], conv.out_channels)
        return self._result(shape, x.rate, conv, ring, start, residual, x.shape[1], "same")

    def _result(
        self,
        shape: tuple[int, ...],
        rate: int,
        conv: Any,
        ring: Tensor,
        start: Tensor | None,
        residual: RingFrames | None,
        frames: int,
        mode: str,
    ) -> RingFrames:
        """Frames that `ring_conv3d` will compute."""
        added = None if residual is None else residual.tensor(ring)
        weight, bias = self._weight(conv, mode), self._parameter(conv.bias)
        compute = partial(ring_conv3d, ring, start, weight, bias, added, frames=frames, mode=mode)
        most = most_normed(ring.device)
        norms = mode in ("same", "upsample") and (most is None or shape[4] <= most)
        return RingFrames(shape, rate, compute, norms)


class RingPlan(RingCache):
    """A `RingCache` for latents on the meta device: it computes nothing and counts bytes."""

    def __init__(self) -> None:
        super().__init__(PackedWeights())
        self._first = False  # any later step: in the first one some convolutions are not seen
        self.weight_bytes = 0
        """Bytes of packed weights."""

    def apply(self, function: Callable[..., Tensor], x: RingFrames, *others: RingFrames) -> RingFrames:
        """Frames [B, T, H, W, C] like x: functions between layers change no shape, and their weights are elsewhere."""
        return RingFrames(x.shape, x.rate, tensor=self._tensor(x))

    def _parameter(self, value: Any) -> Any:
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value

    def _weight(self, conv: Any, mode: str) -> Tensor:
        weight = self._parameter(conv.weight)
        packed = pack_weight(weight, mode)
        self.weight_bytes += new_bytes(packed, weight)
        return packed
