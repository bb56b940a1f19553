# SPDX-License-Identifier: Apache-2.0
"""The attention functions of the Wan family: Wan 2.1 and 2.2, Self-Forcing, CausVid, SkyReels and their descendants.

    from aapt_fast.compat.wan import replaced_in
    with replaced_in("wan"):                            # the package that holds their `modules/attention.py`
        pipeline.inference(noise, prompts)

Their modules import the two functions by name, each for itself. Setting them in the module that defines them reaches
hardly any call, so `replaced_in` goes through all loaded modules of the package.

The originals choose between FlashAttention 2 and 3 by the name of the GPU and index the result of version 3, which is
a bare tensor today. On a CPU they have no attention that gives back the dtype it was given. Here there is one path for
every GPU and the CPU.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from aapt_fast.compat._arguments import require_supported
from aapt_fast.errors import require, require_shape
from aapt_fast.ops.dense_attention import dense_attention

__all__ = ["attention", "flash_attention", "replaced_in"]

_HALVES = (torch.bfloat16, torch.float16)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_lens: Tensor | None = None,
    k_lens: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    q_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    deterministic: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    version: int | None = None,
) -> Tensor:
    """Attend without a mask: q [B, Lq, H, C1], k [B, Lk, Hkv, C1], v [B, Lk, Hkv, C2] -> [B, Lq, H, C2] in q.dtype.

    Args:
        q_lens: integers [B], outputs of row b behind q_lens[b] are 0.
        k_lens: integers [B], keys of row b behind k_lens[b] are not seen.
        softmax_scale: None means C1 ** -0.5.
        q_scale: q is multiplied by it first.
        dtype: tensors that are not of a half precision are cast to it for the computation; float32 keeps them.
        version: 2, 3 or None, with the same result.

    Raises:
        NotImplementedError: dropout, a causal mask, a window, another dtype or version.
        ValueError: shapes do not fit.
    """
    require_supported("flash_attention", locals())
    cast_q, cast_k, cast_v = (x if x.dtype in _HALVES else x.to(dtype) for x in (q, k, v))
    # Values decide between different halves, as in the originals.
    cast_q, cast_k = cast_q.to(cast_v.dtype), cast_k.to(cast_v.dtype)
    if q_scale is not None:
        cast_q = cast_q * q_scale
    out, _ = dense_attention(cast_q, cast_k, cast_v, softmax_scale, k_lens)
    if q_lens is not None:
        require_shape("q_lens", q_lens, q.shape[0])
        counts = torch.arange(q.shape[1], device=q.device) < q_lens.to(q.device)[:, None]
        out = torch.where(counts[..., None, None], out, 0)
    return out.to(q.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_lens: Tensor | None = None,
    k_lens: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    q_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    deterministic: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    fa_version: int | None = None,
) -> Tensor:
    """Attend as `flash_attention`: q [B, Lq, H, C1], k [B, Lk, Hkv, C1], v [B, Lk, Hkv, C2] -> [B, Lq, H, C2]."""
    require_supported("attention", locals())
    return flash_attention(q, k, v, q_lens, k_lens, softmax_scale=softmax_scale, q_scale=q_scale, dtype=dtype)


@contextmanager
def replaced_in(package: str = "wan", *, dtype: torch.dtype = torch.bfloat16) -> Iterator[list[str]]:
    """Let the modules of another package call `flash_attention` and `attention` of this module.

    Args:
        package: the name under which it is imported, or that of one of its modules; import first what is to be used.
        dtype: tensors that are not of a half precision are computed in it; float32 for exact comparisons.

    Yields:
        the places replaced, such as "wan.modules.model.flash_attention". They are as before when the block ends.

    Raises:
        ValueError: no loaded module of that name, or none that has one of the functions.
    """
    functions = {name: functools.partial(globals()[name], dtype=dtype) for name in ("flash_attention", "attention")}
    inside = [name for name in sorted(sys.modules) if name == package or name.startswith(f"{package}.")]
    places = [(sys.modules[name], function) for name in inside for function in functions]
    originals = [(module, name, vars(module)[name]) for module, name in places if callable(vars(module).get(name))]
    got = f"{len(inside)} loaded modules, none with one"
    require(bool(originals), "package", "an imported package with flash_attention or attention", got)
    try:
        for module, name, _ in originals:
            setattr(module, name, functions[name])
        yield [f"{module.__name__}.{name}" for module, name, _ in originals]
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
