# SPDX-License-Identifier: Apache-2.0
"""Attention of diffusers' `WanTransformer3DModel` through our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from aapt_fast.integrations.attention import (
    PART,
    attend_to_context,
    attend_to_own_tokens,
    attention_obstacle,
    obstacle_for,
    plain_rms_norm,
    records_gradients,
)
from aapt_fast.integrations.sites import Site
from aapt_fast.integrations.swap import Original
from aapt_fast.ops import normalise_and_rotate

_TEXT_TOKENS = 512  # behind the tokens of the image, as in diffusers' own processor


class FastWanAttention(Original):
    """`forward` of diffusers' `WanAttention` without its processor, with its own projections, norms and adapters.

    The original runs with another processor, a chosen attention backend, context parallelism, a mask or gradients.
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Attend hidden_states [B, N, d] to themselves or to encoder_hidden_states [B, L, d] -> [B, N, d].

        rotary_emb: cos and sin [1, N, 1, D], or None.
        """
        width = self.inner_dim // self.heads
        own = attention_mask is None and not options and _own_processor(self.processor)
        obstacle = attention_obstacle(hidden_states.device, hidden_states.dtype, width)
        if not own or obstacle or records_gradients(self, hidden_states, encoder_hidden_states):
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **options)
        tables = None if rotary_emb is None else _tables(*rotary_emb)
        if encoder_hidden_states is None and plain_rms_norm(self.norm_q) and plain_rms_norm(self.norm_k):
            q, k, v = (x.unflatten(2, (self.heads, -1)) for x in _projections(self, hidden_states, hidden_states))
            weights = (self.norm_q.weight, self.norm_k.weight)
            mixed = attend_to_own_tokens(q, k, v, weights, tables, self.norm_q.eps)
        else:
            mixed = _attend_to_text(self, hidden_states, encoder_hidden_states, tables)
        mixed = mixed.flatten(2).type_as(hidden_states)
        return self.to_out[1](self.to_out[0](mixed))


def _own_processor(processor: Any) -> bool:
    kind = type(processor)
    own = kind.__module__.startswith("diffusers.") and kind.__name__ == "WanAttnProcessor"
    return own and processor._attention_backend is None and processor._parallel_config is None


def _tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Tables of diffusers [1, N, 1, D], which hold every value twice -> float32 [N, D / 2]."""
    return cos[0, :, 0, 0::2].float(), sin[0, :, 0, 1::2].float()


def _projections(attention: Any, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project x [B, N, d], context [B, L, d] -> q [B, N, H * D], k and v [B, L, H * D], before the norms."""
    if not getattr(attention, "fused_projections", False):
        return attention.to_q(x), attention.to_k(context), attention.to_v(context)
    if not attention.is_cross_attention:
        return attention.to_qkv(x).chunk(3, dim=-1)
    return attention.to_q(x), *attention.to_kv(context).chunk(2, dim=-1)


def _attend_to_text(attention: Any, x: Tensor, context: Tensor | None, tables: tuple[Tensor, Tensor] | None) -> Tensor:
    """Attend x [B, N, d] to the context [B, L, d] (None: x itself), and to an image if there are projections for it."""
    image, heads = None, attention.heads
    if attention.add_k_proj is not None and context is not None:
        image, context = context[:, : context.shape[1] - _TEXT_TOKENS], context[:, context.shape[1] - _TEXT_TOKENS :]
    q, k, v = _projections(attention, x, x if context is None else context)
    q, k = attention.norm_q(q).unflatten(2, (heads, -1)), attention.norm_k(k).unflatten(2, (heads, -1))
    if tables is not None:
        q, k = (normalise_and_rotate(tokens, None, *tables) for tokens in (q, k))
    mixed = attend_to_context(q, k, v.unflatten(2, (heads, -1)))
    if image is None:
        return mixed
    if getattr(attention, "fused_projections", False):
        k, v = attention.to_added_kv(image).chunk(2, dim=-1)
    else:
        k, v = attention.add_k_proj(image), attention.add_v_proj(image)
    k = attention.norm_added_k(k).unflatten(2, (heads, -1))
    return mixed + attend_to_context(q, k, v.unflatten(2, (heads, -1)))


def transformer_sites(transformer: Any, where: str = "") -> Iterator[Site]:
    """Places in a `WanTransformer3DModel`: its attentions."""
    runs = "norm, rotation and attention through pages and our kernels, while no gradients are recorded"
    for name, module in transformer.named_modules(prefix=where):
        if type(module).__name__ == "WanAttention":
            obstacle = obstacle_for(module, module.inner_dim // module.heads)
            if obstacle is None and not _own_processor(module.processor):
                obstacle = f"it has a processor of its own, {type(module.processor).__name__}, or a chosen backend"
            yield Site(PART, name, module, "forward", FastWanAttention, runs, obstacle)
