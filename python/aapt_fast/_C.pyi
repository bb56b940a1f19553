# SPDX-License-Identifier: Apache-2.0
"""The compiled module. Import it through `aapt_fast.ops._load`, which says what to do when it is missing."""

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

View: TypeAlias = tuple[int, int, Sequence[int], Sequence[int]]
"""A tensor: address, dtype code, shape, strides in elements."""
Stream: TypeAlias = tuple[int, int]
"""Device index and stream handle."""

class BuildInfo(TypedDict):
    version: str
    cuda: bool
    cuda_version: str  # of the compiler, "13.0.88"; empty without CUDA, as are the next two
    cuda_archs: str  # "80-real,90-real,80-virtual"
    cutlass_version: str
    compiler: str  # "GNU 12.2.0"
    build_type: str
    emulated: bool

class DeviceInfo(TypedDict):
    name: str
    compute_capability: tuple[int, int]
    total_memory: int  # bytes
    multiprocessors: int
    driver_version: str  # newest CUDA the driver supports, "13.0"
    runtime_version: str  # CUDA runtime inside the module

__version__: str

def build_info() -> BuildInfo: ...
def device_count() -> int: ...
def device_info(device: int) -> DeviceInfo: ...

# ---- in builds with CUDA, and in the emulation ----

class Unsupported(ValueError):
    """Arguments that the op allows and this kernel does not do."""

dtypes: dict[str, int]
"""Codes of dtypes by name: {"float32": 0, ...}."""

# Everything is checked before anything is launched: ValueError for arguments that mean nothing, Unsupported for those
# that this kernel does not do. RuntimeError when the launch fails.
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
) -> None: ...
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
) -> None: ...
def paged_attention_sm90_overlap(
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
) -> None: ...
def paged_attention_sm90_cluster(
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
) -> None: ...
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
    parts: int,
    stream: Stream,
) -> None: ...
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
) -> None: ...
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
) -> None: ...
def linear_residual_sm90(
    x: View,
    inputs: View,
    weight: View,
    bias: View | None,
    gate: View | None,
    out: View,
    stream: Stream,
) -> None: ...
def clean_frame_portable(tokens: View, noised: View, t: View, patch: int, clean: View, stream: Stream) -> None: ...
def philox_normal_portable(seed: View, step: View, out: View, stream: Stream) -> None: ...
def channel_concat_portable(
    noised: View,
    recycled: View,
    control: View | None,
    weight: View,
    bias: View | None,
    patch: int,
    tokens: View,
    stream: Stream,
) -> None: ...
def channel_concat_noise_portable(
    recycled: View,
    control: View | None,
    weight: View,
    bias: View | None,
    patch: int,
    seed: View,
    step: View,
    tokens: View,
    noise: View,
    stream: Stream,
) -> None: ...
