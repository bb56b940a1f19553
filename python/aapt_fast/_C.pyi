# SPDX-License-Identifier: Apache-2.0
"""The compiled module. Import it through `aapt_fast.ops._load`, which says what to do when it is missing."""

from typing import TypedDict

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
