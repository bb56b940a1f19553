# SPDX-License-Identifier: Apache-2.0
"""A video decoder whose ranks have some rows of the picture each.

    latents, whole  ->  own rows  ->  layers  ->  own rows of video, uint8  ->  gathered: the whole video on every rank

A convolution needs one row above and one below its own ones. Ranks give these rows to their neighbours, and convolve
without padding in this direction, so nothing is computed that is thrown away; beyond the picture there are zeros. Past
frames are kept with these rows, so that each is exchanged once. GroupNorm adds up the moments of all ranks. Attention
among the pixels of a frame, at the lowest resolution, is computed whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.distributed.transport import Transport
from aapt_fast.errors import require
from aapt_fast.models.vae.aapt_layers import FrameNorm
from aapt_fast.models.vae.feature_cache import FeatureCache, FixedFeatureCache
from aapt_fast.models.vae.video_stream import DecoderStream, frames_to_uint8
from aapt_fast.ops.ring_conv3d import spread_columns


class RowShards:
    """Which rows of a picture a rank has, and how they move. Latents have h rows; layers a multiple of that.

    Args:
        transport: to the other ranks.
        latent_rows: h, at least one per rank.

    Raises:
        ValueError: fewer rows than ranks.
    """

    def __init__(self, transport: Transport, latent_rows: int) -> None:
        size = transport.size
        require(latent_rows >= size, "ranks", f"at most {latent_rows}, the rows of the latents", size)
        self.transport = transport
        self.bounds = [latent_rows * rank // size for rank in range(size + 1)]
        self._shares: Tensor | None = None

    @property
    def own(self) -> int:
        """Latent rows of this rank."""
        rank = self.transport.rank
        return self.bounds[rank + 1] - self.bounds[rank]

    def shares(self, like: Tensor) -> Tensor:
        """The part of the picture that each rank has, [n, 1, 1, 1], on the device of `like`; uploaded once."""
        if self._shares is None or self._shares.device != like.device:
            rows = [end - begin for begin, end in zip(self.bounds, self.bounds[1:], strict=False)]
            with torch.inference_mode(False):
                self._shares = (torch.tensor(rows) / self.bounds[-1]).to(like.device).view(-1, 1, 1, 1)
        return self._shares

    def split(self, x: Tensor) -> Tensor:
        """The own rows [B, C, T, R, W] of whole frames [B, C, T, H, W]."""
        scale = x.shape[3] // self.bounds[-1]
        return x.narrow(3, scale * self.bounds[self.transport.rank], scale * self.own)

    def gather(self, x: Tensor) -> Tensor:
        """Whole frames [B, C, T, H, W], of the own rows of all ranks, [B, C, T, R, W]."""
        scale = x.shape[3] // self.own
        rows = [scale * (end - begin) for begin, end in zip(self.bounds, self.bounds[1:], strict=False)]
        padded = F.pad(x, (0, 0, 0, max(rows) - x.shape[3]))
        parts = self.transport.all_gather(padded.contiguous())
        whole = torch.cat([part.narrow(3, 0, count) for part, count in zip(parts, rows, strict=True)], 3)
        return whole.contiguous(memory_format=torch.channels_last_3d)

    def with_neighbours(self, x: Tensor) -> Tensor:
        """Own rows with one more above and below, [B, C, T, R + 2, W], of [B, C, T, R, W]; zeros beyond the picture."""
        first, last = x[:, :, :, :1].contiguous(), x[:, :, :, -1:].contiguous()
        above, below = self.transport.neighbours(first, last)
        nothing = torch.zeros_like(first)
        parts = [nothing if above is None else above, x, nothing if below is None else below]
        return torch.cat(parts, 3).contiguous(memory_format=torch.channels_last_3d)


class RowCache(FeatureCache):
    """A `DecoderMemory` for own rows: frames between layers are [B, C, T, R, W]; those that are kept have R + 2 rows.

    Args:
        shards: of the rows.
        tensors: as of `FeatureCache`.
    """

    def __init__(self, shards: RowShards, tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__(tensors)
        self._shards = shards

    def conv(self, x: Tensor, conv: Any, residual: Tensor | None = None) -> Tensor:
        """A causal convolution of x [B, C, T, R, W], plus `residual` [B, O, T, R, W]."""
        y = self._convolve(x, conv)
        return y if residual is None else y + residual

    def norm_conv(
        self, x: Tensor, norm: Any, conv: Any, residual: Tensor | None = None, last_use: bool = False
    ) -> Tensor:
        """Norm, SiLU and a causal convolution of x [B, C, T, R, W], plus `residual` [B, O, T, R, W]."""
        normed = frame_norm(x, norm, self._shards) if isinstance(norm, FrameNorm) else norm(x)
        return self.conv(F.silu(normed), conv, residual)

    def enlarge(self, x: Tensor, resample: Any) -> Tensor:
        """[B, C, T, R, W] -> [B, O, T, 2 R, 2 W] by `resample`."""
        conv: Any = resample[1]
        batch, _, length = x.shape[:3]
        frames = self._shards.with_neighbours(x).transpose(1, 2).flatten(0, 1)
        enlarged = F.interpolate(frames, scale_factor=2.0, mode="nearest-exact")[
            :, :, 1:-1
        ]  # one row of each neighbour
        y = F.conv2d(enlarged, conv.weight, conv.bias, padding=(0, 1))
        return y.unflatten(0, (batch, length)).transpose(1, 2)

    def shuffle_up(self, x: Tensor, upscale: nn.Module, conv: Any, time: int) -> Tensor:
        """[B, C, T, R, W] -> [B, O, time T, 2 R, 2 W]; the first frame of a stream stays one."""
        first = self.get(conv.cache_key) is None
        frames = spread_columns(upscale(x, self).permute(0, 2, 3, 4, 1), conv.in_channels, space=2)
        if first and time > 1:
            frames = torch.cat([frames[:, :1], frames[:, time:]], dim=1)
        return self._convolve(frames.permute(0, 4, 1, 2, 3), conv)

    def apply(self, function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
        """`function` of frames [B, C, T, R, W]: of several, pixel by pixel; of one, of the whole frames."""
        if others:
            return function(x, *others)
        return self._shards.split(function(self._shards.gather(x)))

    def clone(self) -> RowCache:
        """An independent copy, for the fork of a session."""
        return RowCache(self._shards, self._frames)

    def fixed(self) -> FixedFeatureCache:
        """An independent copy that stays in the same tensors, for steps that are recorded."""
        return FixedRowCache(self._shards, {key: frames.clone() for key, frames in self._frames.items()})

    def _convolve(self, x: Tensor, conv: Any) -> Tensor:
        """`conv` of x [B, C, T, R, W] and its past -> [B, O, T, R, W]."""
        if conv.kernel_size[1] == 1:
            return conv(x, self)
        rows = self._shards.with_neighbours(x)
        past = self.get(conv.cache_key)
        if past is None and conv.past:
            past = rows[:, :, :1].expand(-1, -1, conv.past, -1, -1)
            if not conv.repeats_first:
                past = torch.zeros_like(past)
            self.append(conv.cache_key, past, conv.past)
        frames = rows if past is None else torch.cat([past, rows], 2)
        y = F.conv3d(frames, conv.weight, conv.bias, padding=(0, 0, conv.kernel_size[2] // 2))
        if conv.past:
            self.append(conv.cache_key, rows, conv.past)
        return y


class FixedRowCache(FixedFeatureCache, RowCache):
    """A `RowCache` from the second chunk of a stream on, in tensors [B, C, n, R + 2, W] that are never replaced."""

    def __init__(self, shards: RowShards, tensors: dict[str, Tensor]) -> None:
        RowCache.__init__(self, shards, tensors)

    def clone(self) -> RowCache:
        """An independent copy, which need not stay in the same tensors."""
        return RowCache(self._shards, {key: frames.clone() for key, frames in self._frames.items()})


class ShardedVAE:
    """A `VideoVAE` whose streams decode own rows; all that is not defined here is the whole one's own.

    Args:
        vae: a `LayeredDecoder`.
        shards: of its latents' rows.
    """

    def __init__(self, vae: Any, shards: RowShards) -> None:
        self.whole, self._shards = vae, shards

    def __getattr__(self, name: str) -> Any:
        if name == "packed_weights":  # of ring kernels, which do not know of rows; so this is no LayeredDecoder
            raise AttributeError(name)
        return getattr(self.whole, name)

    def decode_chunk(self, latents: Tensor, memory: RowCache) -> Tensor:
        """The next latents [B, C, n, h, w], whole -> video [B, 3, F, H, W], whole, on every rank."""
        own = self._shards.split(latents).contiguous(memory_format=torch.channels_last_3d)
        return self._shards.gather(self.whole.decode_chunk(own, memory))

    def decode_chunk_uint8(self, latents: Tensor, memory: RowCache) -> Tensor:
        """The next latents [B, C, n, h, w], whole -> video uint8 [B, F, H, W, 3], whole; bytes are exchanged."""
        own = self._shards.split(latents).contiguous(memory_format=torch.channels_last_3d)
        rows = frames_to_uint8(self.whole.decode_chunk(own, memory))
        return self._shards.gather(rows.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).contiguous()

    def stream(self) -> DecoderStream:
        """A decoder at the start of a video."""
        return RowStream(self, memory=lambda: RowCache(self._shards))


class RowStream(DecoderStream):
    """A `DecoderStream` of a `ShardedVAE`."""

    vae: ShardedVAE

    def _decoded(self, latents: Tensor, memory: Any, out: str) -> Tensor:
        if out == "uint8":
            return self.vae.decode_chunk_uint8(latents, memory)
        return self.vae.decode_chunk(latents, memory)


def frame_norm(x: Tensor, norm: FrameNorm, shards: RowShards) -> Tensor:
    """GroupNorm of whole frames, of which x [B, C, T, R, W] are the own rows -> the same shape.

    Means and sums of squared deviations of all ranks are put together (Chan et al. 1979), so nothing cancels.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    pixels = x.permute(0, 2, 3, 4, 1).unflatten(-1, (norm.num_groups, -1)).to(wide)  # [B, T, R, W, G, C / G]
    mean = pixels.mean((2, 3, 5))
    squares = (pixels - mean[:, :, None, None, :, None]).square().sum((2, 3, 5))
    of_all = shards.transport.all_gather(torch.stack((mean, squares)))  # [n, 2, B, T, G]
    means, sums = of_all.unbind(1)
    shares = shards.shares(means)
    whole_mean = (shares * means).sum(0)
    count = pixels[0, 0, :, :, 0].numel() * shards.bounds[-1] / shards.own
    variance = sums.sum(0) / count + (shares * (means - whole_mean).square()).sum(0)
    scale = (variance + norm.eps).rsqrt()
    normed = (pixels - whole_mean[:, :, None, None, :, None]) * scale[:, :, None, None, :, None]
    y = normed.flatten(-2) * norm.weight.to(wide) + norm.bias.to(wide)
    return y.to(x.dtype).permute(0, 4, 1, 2, 3)
