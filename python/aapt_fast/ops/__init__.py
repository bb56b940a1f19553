# SPDX-License-Identifier: Apache-2.0
"""The ops of `aapt_fast`: one file each, registered with `torch.library` in the namespace `torch.ops.aapt`.

`reference.py` holds the readable maths, `cache.py` the key-value cache that models see.
"""

from __future__ import annotations

from aapt_fast.ops._checks import PAGE_SLOTS
from aapt_fast.ops.cache import GrowingCache
from aapt_fast.ops.calls import observe_ops
from aapt_fast.ops.causal_conv3d import causal_conv3d
from aapt_fast.ops.channel_concat import channel_concat
from aapt_fast.ops.clean_frame import clean_frame
from aapt_fast.ops.gate_residual_norm import gate_residual_norm
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.ops.kv_write import kv_write, normalise_and_rotate
from aapt_fast.ops.norm_silu import norm_silu
from aapt_fast.ops.paged_attention import paged_attention
from aapt_fast.ops.philox_normal import philox_normal
from aapt_fast.ops.ring_conv3d import pack_weight, ring_conv3d
from aapt_fast.ops.rope import FrameRope

__all__ = [
    "KERNELS",
    "PAGE_SLOTS",
    "FrameRope",
    "GrowingCache",
    "causal_conv3d",
    "channel_concat",
    "clean_frame",
    "gate_residual_norm",
    "kv_write",
    "norm_silu",
    "normalise_and_rotate",
    "observe_ops",
    "pack_weight",
    "paged_attention",
    "philox_normal",
    "ring_conv3d",
    "use_kernels",
]
