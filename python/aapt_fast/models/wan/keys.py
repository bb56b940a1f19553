# SPDX-License-Identifier: Apache-2.0
"""Names of the Wan transformer's parameters in diffusers' `WanTransformer3DModel` and in the original checkpoints.

The norm before the cross-attention is norm2 in diffusers and norm3 in the original. The other two norms of a block have
no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from aapt_fast.errors import CheckpointError

# diffusers -> original, outside the blocks
_TRUNK = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
}
# diffusers -> original, within a block
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE = {"add_k_proj": "k_img", "add_v_proj": "v_img", "norm_added_k": "norm_k_img"}
_BLOCK = {
    **{f"attn1.{name}": f"self_attn.{original}" for name, original in _ATTENTION.items()},
    **{f"attn2.{name}": f"cross_attn.{original}" for name, original in (_ATTENTION | _IMAGE).items()},
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_UNUSED = re.compile(r"blocks\.\d+\.attn2\.norm_added_q\.weight")
_WRAPPERS = {"model", "diffusion_model", "module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


def diffusers_to_wan_key(key: str) -> str:
    """The original name of the parameter that diffusers calls `key`.

    Raises CheckpointError, with the key, for an unknown name.
    """
    if key == "scale_shift_table":
        return "head.modulation"
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", key)
    prefix, rest = block.groups() if block else ("", key)
    if block and rest == "scale_shift_table":
        return prefix + "modulation"
    layer, _, parameter = rest.rpartition(".")
    layers = _BLOCK if block else _TRUNK
    if parameter in ("weight", "bias") and layer in layers:
        return f"{prefix}{layers[layer]}.{parameter}"
    raise CheckpointError(f"{key}: expected a parameter of diffusers' WanTransformer3DModel, got an unknown name")


def wan_to_diffusers_key(key: str) -> str:
    """The name in diffusers of the parameter that the original calls `key`; `key` itself if there is none."""
    if key == "head.modulation":
        return "scale_shift_table"
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", key)
    prefix, rest = block.groups() if block else ("", key)
    if block and rest == "modulation":
        return prefix + "scale_shift_table"
    layer, _, parameter = rest.rpartition(".")
    layers = {original: name for name, original in (_BLOCK if block else _TRUNK).items()}
    return f"{prefix}{layers[layer]}.{parameter}" if layer in layers else key


def is_diffusers_layout(keys: Iterable[str]) -> bool:
    """True for the names that diffusers gives a Wan transformer's parameters."""
    return any(key.startswith("condition_embedder.") or key == "scale_shift_table" for key in keys)


def is_unused(key: str) -> bool:
    """True for a parameter that some published files hold and no model uses."""
    return _UNUSED.fullmatch(key) is not None


def without_wrappers(key: str) -> str:
    """A parameter's own name, without the prefixes of training wrappers such as `model.` and `_orig_mod.`.

    An original name has none of these words.
    """
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)
