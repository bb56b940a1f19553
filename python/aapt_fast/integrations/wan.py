# SPDX-License-Identifier: Apache-2.0
"""Causal models in the original Wan code and its relatives: `CausalWanModel` of Self-Forcing, and its pipeline.

Their classes live in packages that cannot be installed, so they are found by names of classes and attributes. An
attention is replaced only after a trial: a few steps with random inputs must give what the original gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aapt_fast.integrations.attention import PART, attention_obstacle, obstacle_for, records_gradients
from aapt_fast.integrations.kv_cache import PagedKVCache, set_index
from aapt_fast.integrations.sites import Site
from aapt_fast.integrations.swap import Original, is_swapped, obstacle_to_swap, swap, swap_back
from aapt_fast.ops import kv_write, normalise_and_rotate
from aapt_fast.ops.dense_attention import as_pages, dense_attention, pages_per_row

FORWARD = ("x", "seq_lens", "grid_sizes", "freqs", "block_mask", "kv_cache", "current_start", "cache_start")
ATTRIBUTES = ("q", "k", "v", "o", "norm_q", "norm_k", "num_heads", "head_dim")
WINDOW = ("local_attn_size", "sink_size", "max_attention_size")


# ---- attention with a cache ----


class FastCausalSelfAttention(Original):
    """`forward` of `CausalWanSelfAttention` with a cache; training without a cache goes to the original."""

    def forward(
        self,
        x: Tensor,
        seq_lens: Tensor,
        grid_sizes: Tensor,
        freqs: Tensor,
        block_mask: Any,
        kv_cache: dict[str, Any] | None = None,
        current_start: int = 0,
        cache_start: int | None = None,
    ) -> Tensor:
        """Attend x [B, N, d] of grids [B, 3] (frames, rows, columns), freqs complex [positions, D / 2] -> [B, N, d]."""
        grids = grid_sizes.tolist()
        frames, rows, columns = grids[0]
        per_frame, first_token = rows * columns, int(current_start)
        same = all(grid == grids[0] for grid in grids) and frames * per_frame == x.shape[1]
        cast = torch.is_autocast_enabled(x.device.type)
        if kv_cache is None or kv_cache["k"].dtype != x.dtype or not same or cast or records_gradients(self, x):
            return super().forward(x, seq_lens, grid_sizes, freqs, block_mask, kv_cache, current_start, cache_start)
        start, end = _make_room(self, kv_cache, first_token, x.shape[1], per_frame)
        tables = _rope_tables(freqs, (frames, rows, columns), first_token // per_frame)
        q = _write(self, x, kv_cache, (start, end), tables)
        seen = slice(max(0, end - self.max_attention_size), end)
        out = _attend(self, q, kv_cache["k"][:, seen], kv_cache["v"][:, seen])
        set_index(kv_cache, "global_end_index", first_token + x.shape[1])
        set_index(kv_cache, "local_end_index", end)
        return self.o(out.flatten(2))


def _make_room(
    attention: Any, cache: dict[str, Any], current_start: int, tokens: int, per_frame: int
) -> tuple[int, int]:
    """Begin and end of the new tokens in the cache, after tokens that leave the window are pushed out behind the sink.

    A repeated step (another noise level of the same frames) gets the same place again.
    """
    size, sink = cache["k"].shape[1], attention.sink_size * per_frame
    local_end = int(cache["local_end_index"])
    added = current_start + tokens - int(cache["global_end_index"])
    evicted = tokens + local_end - size
    if attention.local_attn_size == -1 or added <= 0 or evicted <= 0:
        return local_end + added - tokens, local_end + added
    kept = local_end - evicted - sink
    for name in ("k", "v"):
        memory = cache[name]
        memory[:, sink : sink + kept] = memory[:, sink + evicted : sink + evicted + kept].clone()
    end = local_end + added - evicted
    return end - tokens, end


def _rope_tables(freqs: Tensor, grid: tuple[int, int, int], first_frame: int) -> tuple[Tensor, Tensor]:
    """Tables of cos and sin, float32 [F * h * w, D / 2], from the complex table of the original [positions, D / 2]."""
    frames, rows, columns = grid
    pairs = freqs.shape[1]
    by_axis = freqs.split([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], dim=1)
    time = by_axis[0][first_frame : first_frame + frames].view(frames, 1, 1, -1).expand(*grid, -1)
    row = by_axis[1][:rows].view(1, rows, 1, -1).expand(*grid, -1)
    column = by_axis[2][:columns].view(1, 1, columns, -1).expand(*grid, -1)
    table = torch.cat([time, row, column], dim=-1).flatten(0, 2)
    return table.real.float(), table.imag.float()


def _write(
    attention: Any, x: Tensor, cache: dict[str, Any], place: tuple[int, int], tables: tuple[Tensor, Tensor]
) -> Tensor:
    """Write keys and values of x [B, N, d] into the cache at `place`; normalised, rotated queries [B, N, H, D]."""
    q, k, v = (layer(x).unflatten(2, (attention.num_heads, -1)) for layer in (attention.q, attention.k, attention.v))
    q_weight, k_weight = _plain_weight(attention.norm_q), _plain_weight(attention.norm_k)
    if q_weight is None or k_weight is None:
        q, k = attention.norm_q(q.flatten(2)).view_as(q), attention.norm_k(k.flatten(2)).view_as(k)
        q_weight = k_weight = None
    eps = getattr(attention.norm_q, "eps", 1e-6)
    cos, sin = (table.to(x.device) for table in tables)
    keys, values = (cache[name][:, place[0] : place[1]] for name in ("k", "v"))
    if pages_per_row(keys) is not None and pages_per_row(keys) == pages_per_row(values):
        k_pages, v_pages, ids, _ = as_pages(keys, values)
        return kv_write(q, k, v, q_weight, k_weight, cos, sin, k_pages, v_pages, ids, eps)
    keys.copy_(normalise_and_rotate(k, k_weight, cos, sin, eps))
    values.copy_(v)
    return normalise_and_rotate(q, q_weight, cos, sin, eps)


def _plain_weight(norm: nn.Module) -> Tensor | None:
    """Weight of a Wan RMSNorm that an op may replace, or None."""
    plain = type(norm).__name__ == "WanRMSNorm" and not norm._forward_hooks and not norm._forward_pre_hooks
    return norm.weight if plain and "forward" not in vars(norm) else None


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with a kernel if one is on, else with the function that the model's own code calls now."""
    own = inspect.unwrap(attention.swapped_from.forward).__globals__.get("attention")
    if own is None or attention_obstacle(q.device, q.dtype, q.shape[-1]) is None:
        return dense_attention(q, k, v)[0]
    return own(q, k, v)


# ---- places ----


def causal_model_sites(model: Any, where: str = "") -> Iterator[Site]:
    """Places in a `CausalWanModel`: its self-attentions."""
    tried: dict[tuple[Any, ...], str | None] = {}
    for name, module in model.named_modules(prefix=where):
        if type(module).__name__ != "CausalWanSelfAttention":
            continue
        obstacle = None
        if not is_swapped(module):
            key = (type(module), *(getattr(module, attribute, None) for attribute in WINDOW))
            if key not in tried:
                tried[key] = _unlike_self_forcing(module) or _trial(module)
            obstacle = tried[key]
        yield Site(PART, name, module, "forward", FastCausalSelfAttention, _runs(module), obstacle)


def _runs(module: Any) -> str:
    obstacle = obstacle_for(module, module.head_dim)
    op = "norm, rotation in float32 and cache write in one op"
    softmax = "attention through our kernels" if obstacle is None else f"the model's own attention, as {obstacle}"
    return f"{op}; {softmax}"


def _unlike_self_forcing(module: Any) -> str | None:
    names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    if names != FORWARD:
        return f"its forward takes ({', '.join(names)}), not ({', '.join(FORWARD)})"
    missing = [name for name in (*ATTRIBUTES, *WINDOW) if not hasattr(module, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    return obstacle_to_swap(module, "forward")


@torch.no_grad()
def _trial(module: Any) -> str | None:
    """Run this attention and `FastCausalSelfAttention`; the difference in words, or None."""
    try:
        expected = _steps(module)
        swap(module, FastCausalSelfAttention)
        try:
            found = _steps(module)
        finally:
            swap_back(module)
    except Exception as error:
        return f"a trial failed with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    half = next(module.parameters()).dtype in (torch.bfloat16, torch.float16)
    worst = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(found, expected, strict=True))
    return None if worst <= (3e-2 if half else 1e-3) else f"in a trial its results differed by {worst:.1e}"


def _steps(module: Any) -> list[Tensor]:
    """Outputs for frames of 2 x 2 tokens, each at two noise levels, until the window has moved on."""
    parameter, grid, window = next(module.parameters()), (1, 2, 2), module.local_attn_size
    capacity = 4 if window == -1 else window
    frames = capacity if window == -1 else capacity + 2
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(frames, module.head_dim // 2, generator=generator, dtype=torch.float64)
    freqs = torch.polar(torch.ones_like(angles), angles).to(parameter.device)
    shape, like = (1, 4 * capacity, module.num_heads, module.head_dim), dict(device=parameter.device)
    cache = {name: torch.zeros(shape, dtype=parameter.dtype, **like) for name in ("k", "v")}
    cache |= {name: torch.zeros(1, dtype=torch.long, **like) for name in ("global_end_index", "local_end_index")}
    outputs = []
    for frame in range(frames):
        for _ in range(2):
            x = torch.randn(1, 4, module.q.in_features, generator=generator).to(parameter)
            rest = (torch.tensor([4]), torch.tensor([grid]), freqs, None, cache, 4 * frame, None)
            outputs.append(type(module).forward(module, x, *rest).float())
    return [*outputs, cache["k"].float(), cache["v"].float()]


# ---- the cache of the whole pipeline ----


class FastCacheOfPipeline(Original):
    """`_initialize_kv_cache` of a `CausalInferencePipeline` that keeps the indices of the caches on the host."""

    def _initialize_kv_cache(self, *arguments: Any, **options: Any) -> None:
        super()._initialize_kv_cache(*arguments, **options)
        for layer, cache in enumerate(self.kv_cache1):
            self.kv_cache1[layer] = PagedKVCache(cache)


def pipeline_sites(pipeline: Any, where: str = "") -> Iterator[Site]:
    """Places in a `CausalInferencePipeline` besides its models: the making of its caches."""
    method, runs = "_initialize_kv_cache", "caches in whole pages, their indices on the host"
    obstacle = None if hasattr(type(pipeline), method) else f"it has no {method}"
    yield Site(PART, where, pipeline, method, FastCacheOfPipeline, runs, obstacle)
