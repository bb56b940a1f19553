# SPDX-License-Identifier: Apache-2.0
"""The compiled module. Import it through `aapt_fast.ops._load`, which says what to do when it is missing.

Made by `make stubs` from the emulated build. Kernels, `Unsupported` and `dtypes` are in builds with CUDA and in the
emulation. A kernel checks everything before it launches anything: ValueError for arguments that mean nothing,
Unsupported for those that this kernel does not do, RuntimeError when the launch fails.
"""

from collections.abc import Sequence
from typing import TypeAlias

View: TypeAlias = tuple[int, int, Sequence[int], Sequence[int]]
"""A tensor: address, dtype code, shape, strides in elements."""
Stream: TypeAlias = tuple[int, int]
"""Device index and stream handle."""

class Unsupported(ValueError):
    pass

def build_info() -> dict:
    """
    version, cuda, cuda_version (of the compiler), cuda_archs (80-real,...), cutlass_version, compiler,
    build_type and emulated. Texts about CUDA are empty without it.
    """

def channel_concat_portable(
    noised: View,
    recycled: View,
    control: View | None,
    weight: View,
    bias: View | None,
    patch: int,
    tokens: View,
    stream: Stream,
) -> None:
    """Patch embedding with cp.async and mma.sync."""

def clean_frame_portable(tokens: View, noised: View, t: View, patch: int, clean: View, stream: Stream) -> None:
    """noised - t * velocity, the velocity as tokens."""

def device_count() -> int:
    """Number of GPUs; 0 without a driver or in a build without CUDA."""

def device_info(device: int) -> dict:
    """
    name, compute_capability, total_memory (bytes), multiprocessors, driver_version (newest CUDA it knows)
    and runtime_version (inside the module) of a GPU. Raises IndexError when there is no such device.
    """

def gate_residual_norm_portable(
    x: View,
    y: View | None,
    gate: View | None,
    scale: View | None,
    shift: View | None,
    residual: View | None,
    normed: View,
    eps: float,
    stream: Stream,
) -> None:
    """Gate, residual sum, RMSNorm and modulation."""

def kv_write_portable(
    q: View,
    k: View,
    v: View,
    q_weight: View | None,
    k_weight: View | None,
    cos: View | None,
    sin: View | None,
    k_pages: View,
    v_pages: View,
    page_ids: View,
    out: View,
    eps: float,
    stream: Stream,
) -> None:
    """Norm, rotation and the write into pages."""

def norm_silu_portable(
    x: View,
    gamma: View,
    beta: View | None,
    groups: int,
    eps: float,
    out: View,
    out_start: View | None,
    partial: View | None,
    stream: Stream,
) -> None:
    """A norm and SiLU, written into a ring."""

def paged_attention_portable(
    q: View,
    k_pages: View,
    v_pages: View,
    page_ids: View,
    page_valid: View,
    page_bias: View | None,
    out: View,
    lse: View,
    scale: float,
    stream: Stream,
) -> None:
    """Attention with cp.async and mma.sync."""

def paged_attention_sm90(
    q: View,
    k_pages: View,
    v_pages: View,
    page_ids: View,
    page_valid: View,
    page_bias: View | None,
    out: View,
    lse: View,
    scale: float,
    stream: Stream,
) -> None:
    """Attention for Hopper with the copy engine and wgmma."""

def paged_attention_sm90_split(
    q: View,
    k_pages: View,
    v_pages: View,
    page_ids: View,
    page_valid: View,
    page_bias: View | None,
    out: View,
    lse: View,
    scale: float,
    part_out: View,
    part_lse: View,
    whole: int,
    shares: Sequence[int],
    stream: Stream,
) -> None:
    """Attention for Hopper in clusters of two blocks, with the keys of some heads in parts."""

def philox_normal_portable(seed: View, step: View, out: View, stream: Stream) -> None:
    """Normal numbers of (seed, step)."""

def ring_conv3d_portable(
    ring: View,
    start: View | None,
    weight: View,
    bias: View | None,
    residual: View | None,
    out: View | None,
    out_start: View | None,
    frames: int,
    mode: str,
    gamma: View | None,
    normed: View | None,
    normed_start: View | None,
    eps: float,
    stream: Stream,
) -> None:
    """Convolution between rings with cp.async and mma.sync."""

def ring_conv3d_sm90(
    ring: View,
    start: View | None,
    weight: View,
    bias: View | None,
    residual: View | None,
    out: View | None,
    out_start: View | None,
    frames: int,
    mode: str,
    gamma: View | None,
    normed: View | None,
    normed_start: View | None,
    eps: float,
    pixels: int,
    outputs: int,
    clusters: int,
    stream: Stream,
) -> None:
    """Convolution between rings for Hopper with the copy engine and wgmma, in tiles of pixels by outputs."""

def set_schedule(seed: int) -> None:
    """Emulation only: schedule of the next launches. 0: threads in order, copies late; others are random."""

__version__: str
dtypes: dict
