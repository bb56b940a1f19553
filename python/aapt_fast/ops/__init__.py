# SPDX-License-Identifier: Apache-2.0
"""The ops of `aapt_fast`: one file each, registered with `torch.library` in the namespace `torch.ops.aapt`.

`reference.py` holds the readable maths, `cache.py` the key-value cache that models see.
"""

from __future__ import annotations

from aapt_fast.ops.cache import Cache, GrowingCache
from aapt_fast.ops.causal_conv3d import IMPLEMENTATIONS as _CAUSAL_CONV3D
from aapt_fast.ops.causal_conv3d import causal_conv3d
from aapt_fast.ops.channel_concat import IMPLEMENTATIONS as _CHANNEL_CONCAT
from aapt_fast.ops.channel_concat import channel_concat, channel_concat_noise
from aapt_fast.ops.clean_frame import IMPLEMENTATIONS as _CLEAN_FRAME
from aapt_fast.ops.clean_frame import clean_frame
from aapt_fast.ops.gate_residual_norm import IMPLEMENTATIONS as _GATE_RESIDUAL_NORM
from aapt_fast.ops.gate_residual_norm import gate_residual_norm
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.ops.kv_write import IMPLEMENTATIONS as _KV_WRITE
from aapt_fast.ops.kv_write import kv_write, normalise_and_rotate
from aapt_fast.ops.linear_residual import IMPLEMENTATIONS as _LINEAR_RESIDUAL
from aapt_fast.ops.linear_residual import adds_in_its_epilogue, linear_residual
from aapt_fast.ops.paged_attention import IMPLEMENTATIONS as _PAGED_ATTENTION
from aapt_fast.ops.paged_attention import PAGE_SLOTS, paged_attention
from aapt_fast.ops.philox import IMPLEMENTATIONS as _PHILOX
from aapt_fast.ops.philox import philox_normal
from aapt_fast.ops.rope import FrameRope, rope_tables

__all__ = [
    "KERNELS",
    "PAGE_SLOTS",
    "Cache",
    "FrameRope",
    "GrowingCache",
    "adds_in_its_epilogue",
    "causal_conv3d",
    "channel_concat",
    "channel_concat_noise",
    "clean_frame",
    "gate_residual_norm",
    "implementations",
    "kv_write",
    "linear_residual",
    "normalise_and_rotate",
    "paged_attention",
    "philox_normal",
    "rope_tables",
    "use_kernels",
]


def implementations() -> dict[str, dict[str, str]]:
    """What runs for each op, by device type, in words: {op: {"cpu": ..., "cuda": ...}}."""
    return {
        "causal_conv3d": dict(_CAUSAL_CONV3D),
        "channel_concat": dict(_CHANNEL_CONCAT),
        "channel_concat_noise": dict(_CHANNEL_CONCAT),
        "clean_frame": dict(_CLEAN_FRAME),
        "gate_residual_norm": dict(_GATE_RESIDUAL_NORM),
        "kv_write": dict(_KV_WRITE),
        "linear_residual": dict(_LINEAR_RESIDUAL),
        "modulated_norm": dict(_GATE_RESIDUAL_NORM),  # gate_residual_norm where nothing is added
        "paged_attention": dict(_PAGED_ATTENTION),
        "philox_normal": dict(_PHILOX),
    }
