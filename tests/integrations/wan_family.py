# SPDX-License-Identifier: Apache-2.0
"""Small stand-ins with the interfaces of the original Wan code and of Self-Forcing, for models that are not packages.

The classes have the names, attributes and semantics that `aapt_fast.integrations` looks for. The VAE is checked
against diffusers, with the same weights, before it is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.ops.rope import rope_split

# ---- Self-Forcing: attention with a cache ----


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, N, H, D] over [B, L, H, D], as the module-level function that such models call."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def rope_table(positions: int, head_dim: int) -> Tensor:
    """complex128 [positions, D / 2], the three axes side by side."""
    parts = []
    for pairs in rope_split(head_dim):
        steps = torch.arange(pairs, dtype=torch.float64) / max(pairs, 1)
        parts.append(torch.outer(torch.arange(positions, dtype=torch.float64), 10000.0**-steps))
    angles = torch.cat(parts, 1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, grid_sizes: Tensor, freqs: Tensor, first_frame: int) -> Tensor:
    """RoPE of x [B, N, H, D] sample by sample in double precision."""
    pairs = x.shape[3] // 2
    time, row, column = freqs.split([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], 1)
    samples = []
    for sample, (f, h, w) in zip(x, grid_sizes.tolist(), strict=True):
        turn = [
            torch.cat([time[first_frame + i], row[j], column[k]]) for i in range(f) for j in range(h) for k in range(w)
        ]
        pairs_of = torch.view_as_complex(sample.double().unflatten(-1, (-1, 2)).contiguous())
        samples.append(torch.view_as_real(pairs_of * torch.stack(turn)[:, None]).flatten(-2))
    return torch.stack(samples).type_as(x)


class WanRMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.rand(dim) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class CausalWanSelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, local_attn_size: int = -1, sink_size: int = 0) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.local_attn_size, self.sink_size = local_attn_size, sink_size
        self.max_attention_size = 32760 if local_attn_size == -1 else local_attn_size * 1560
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = WanRMSNorm(dim), WanRMSNorm(dim)

    def forward(self, x, seq_lens, grid_sizes, freqs, block_mask, kv_cache=None, current_start=0, cache_start=None):
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        q, k = self.norm_q(self.q(x)).view(shape), self.norm_k(self.k(x)).view(shape)
        v, tokens = self.v(x).view(shape), x.shape[1]
        per_frame = int(grid_sizes[0, 1:].prod())
        if kv_cache is None:
            q, k = (rotate(part, grid_sizes, freqs, 0) for part in (q, k))
            return self.o(attention(q, k, v).flatten(2))
        q, k = (rotate(part, grid_sizes, freqs, current_start // per_frame) for part in (q, k))
        self._store(k, v, kv_cache, current_start + tokens, self.sink_size * per_frame)
        end = kv_cache["local_end_index"].item()
        start = max(0, end - self.max_attention_size)
        return self.o(attention(q, kv_cache["k"][:, start:end], kv_cache["v"][:, start:end]).flatten(2))

    def _store(self, k, v, cache, current_end, sink) -> None:
        size, tokens = cache["k"].shape[1], k.shape[1]
        global_end, local_end = cache["global_end_index"].item(), cache["local_end_index"].item()
        end = local_end + current_end - global_end
        if self.local_attn_size != -1 and current_end > global_end and tokens + local_end > size:
            evicted = tokens + local_end - size
            moved = local_end - evicted - sink
            for name in ("k", "v"):
                source = cache[name][:, sink + evicted : sink + evicted + moved].clone()
                cache[name][:, sink : sink + moved] = source
            end -= evicted
        cache["k"][:, end - tokens : end], cache["v"][:, end - tokens : end] = k, v
        cache["global_end_index"].fill_(current_end)
        cache["local_end_index"].fill_(end)


class CausalWanModel(nn.Module):
    """Only what matters here: layers of self-attention over a cache."""

    attention_class: type = CausalWanSelfAttention

    def __init__(self, dim: int = 48, heads: int = 2, layers: int = 2, local: int = -1, sink: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"self_attn": self.attention_class(dim, heads, local, sink)}) for _ in range(layers)
        )
        self.freqs = rope_table(64, dim // heads)  # no buffer: it must not be cast

    def forward(self, x: Tensor, grid: tuple[int, int, int], kv_cache: list | None, current_start: int) -> Tensor:
        grids = torch.tensor([grid] * len(x))
        lengths = torch.tensor([x.shape[1]] * len(x))
        for layer, block in enumerate(self.blocks):
            cache = None if kv_cache is None else kv_cache[layer]
            x = x + block["self_attn"](x, lengths, grids, self.freqs, None, cache, current_start, None)
        return x


class CausalInferencePipeline(nn.Module):
    """Holds the model in a wrapper and makes its caches."""

    def __init__(self, model: CausalWanModel, frame_tokens: int, window: int) -> None:
        super().__init__()
        self.generator = nn.Module()
        self.generator.model = model
        self.frame_tokens, self.window = frame_tokens, window
        self.kv_cache1 = None

    def _initialize_kv_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> None:
        layer = self.generator.model.blocks[0]["self_attn"]
        shape = (batch_size, self.window * self.frame_tokens, layer.num_heads, layer.head_dim)
        self.kv_cache1 = [
            {
                "k": torch.zeros(shape, dtype=dtype, device=device),
                "v": torch.zeros(shape, dtype=dtype, device=device),
                "global_end_index": torch.tensor([0], dtype=torch.long, device=device),
                "local_end_index": torch.tensor([0], dtype=torch.long, device=device),
            }
            for _ in self.generator.model.blocks
        ]

    @torch.no_grad()
    def inference(self, noise: Tensor, grid: tuple[int, int], block: int, levels: int = 2) -> Tensor:
        """noise [B, F, h * w, d] in blocks of frames, each several times -> outputs of the last time."""
        batch, frames, tokens, _ = noise.shape
        if self.kv_cache1 is None:
            self._initialize_kv_cache(batch, noise.dtype, noise.device)
        for cache in self.kv_cache1:
            for name in ("global_end_index", "local_end_index"):
                cache[name] = torch.tensor([0], dtype=torch.long, device=noise.device)
        outputs = []
        for first in range(0, frames, block):
            x = noise[:, first : first + block].flatten(1, 2)
            for _ in range(levels):
                x = self.generator.model(x, (block, *grid), self.kv_cache1, first * tokens)
            outputs.append(x)
        return torch.cat(outputs, 1)


# ---- the original VAE ----


class CausalConv3d(nn.Conv3d):
    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        time, height, width = self.padding
        self._padding = (width, width, height, height, 2 * time, 0)
        self.padding = (0, 0, 0)

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        padding = list(self._padding)
        if cache_x is not None and padding[4] > 0:
            x = torch.cat([cache_x, x], 2)
            padding[4] -= cache_x.shape[2]
        return super().forward(F.pad(x, padding))


class RMS_norm(nn.Module):
    def __init__(self, dim: int, images: bool = True) -> None:
        super().__init__()
        self.channel_first, self.scale, self.bias = True, dim**0.5, 0.0
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, *([] if images else [1])))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale * self.gamma + self.bias


def remembering(conv: CausalConv3d, x: Tensor, cache: list, index: list[int]) -> Tensor:
    """A convolution that looks back on the last two frames of the earlier chunks."""
    place = index[0]
    index[0] += 1
    recent = x[:, :, -2:].clone()
    if recent.shape[2] < 2 and cache[place] is not None:
        recent = torch.cat([cache[place][:, :, -1:], recent], 2)
    y = conv(x, cache[place])
    cache[place] = recent
    return y


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        first, second = CausalConv3d(inputs, outputs, 3, padding=1), CausalConv3d(outputs, outputs, 3, padding=1)
        norms = RMS_norm(inputs, images=False), RMS_norm(outputs, images=False)
        self.residual = nn.Sequential(norms[0], nn.SiLU(), first, norms[1], nn.SiLU(), nn.Dropout(0.0), second)
        self.shortcut = CausalConv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, feat_cache: list, feat_idx: list[int]) -> Tensor:
        y = x
        for layer in self.residual:
            y = remembering(layer, y, feat_cache, feat_idx) if isinstance(layer, CausalConv3d) else layer(y)
        return y + self.shortcut(x)


class AttentionBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.proj = RMS_norm(dim), nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, length, *size = x.shape
        frames = x.transpose(1, 2).flatten(0, 1)
        qkv = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)[:, None].chunk(3, -1)
        mixed = F.scaled_dot_product_attention(*qkv)[:, 0].transpose(1, 2).unflatten(2, size)
        return x + self.proj(mixed).unflatten(0, (batch, length)).transpose(1, 2)


class Resample(nn.Module):
    def __init__(self, dim: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        enlarge = nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact")
        self.resample = nn.Sequential(enlarge, nn.Conv2d(dim, dim // 2, 3, padding=1))
        if mode == "upsample3d":
            self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, feat_cache: list, feat_idx: list[int]) -> Tensor:
        if self.mode == "upsample3d":
            place = feat_idx[0]
            if feat_cache[place] is None:
                feat_cache[place] = torch.zeros_like(x[:, :, :0])  # the next chunk does not see the first frame
                feat_idx[0] += 1
            else:
                recent = torch.cat([torch.zeros_like(x), feat_cache[place], x], 2)[:, :, -2:].clone()
                past = feat_cache[place] if feat_cache[place].shape[2] else None
                x = self.time_conv(x, past).unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
                feat_cache[place] = recent
                feat_idx[0] += 1
        return self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1)).transpose(1, 2)


class Decoder3d(nn.Module):
    def __init__(self, dim: int, z_dim: int, multipliers: tuple[int, ...], blocks: int, temporal: tuple) -> None:
        super().__init__()
        widths = [dim * factor for factor in multipliers[::-1]]
        self.conv1 = CausalConv3d(z_dim, widths[0], 3, padding=1)
        middle = ResidualBlock(widths[0], widths[0]), AttentionBlock(widths[0]), ResidualBlock(widths[0], widths[0])
        self.middle = nn.Sequential(*middle)
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            inputs = widths[level - 1] // 2 if level else widths[0]
            layers += [ResidualBlock(inputs if number == 0 else width, width) for number in range(blocks + 1)]
            if level < len(widths) - 1:
                layers.append(Resample(width, "upsample3d" if temporal[level] else "upsample2d"))
        self.upsamples = nn.Sequential(*layers)
        self.head = nn.Sequential(
            RMS_norm(widths[-1], images=False), nn.SiLU(), CausalConv3d(widths[-1], 3, 3, padding=1)
        )

    def forward(self, x: Tensor, feat_cache: list, feat_idx: list[int]) -> Tensor:
        x = remembering(self.conv1, x, feat_cache, feat_idx)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x) if isinstance(layer, AttentionBlock) else layer(x, feat_cache, feat_idx)
        return remembering(self.head[2], self.head[1](self.head[0](x)), feat_cache, feat_idx)


class WanVAE_(nn.Module):
    """The decoding half."""

    def __init__(self, dim: int = 8, z_dim: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.conv2 = CausalConv3d(z_dim, z_dim, 1)
        self.decoder = Decoder3d(dim, z_dim, (1, 2, 4, 4), blocks, (True, True, False))
        self.clear_cache()

    def clear_cache(self) -> None:
        self._feat_map = [None] * sum(isinstance(layer, CausalConv3d) for layer in self.decoder.modules())

    def decode(self, z: Tensor, scale: list) -> Tensor:
        self.clear_cache()
        video = self.cached_decode(z, scale)
        self.clear_cache()
        return video

    def cached_decode(self, z: Tensor, scale: list) -> Tensor:
        z = z / scale[1].view(1, -1, 1, 1, 1) + scale[0].view(1, -1, 1, 1, 1)
        frames = self.conv2(z).split(1, 2)
        return torch.cat([self.decoder(frame, self._feat_map, [0]) for frame in frames], 2)
