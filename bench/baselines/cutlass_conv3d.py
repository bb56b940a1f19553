# SPDX-License-Identifier: Apache-2.0
"""CUTLASS's own 3-D convolution for Hopper as a baseline, compiled from the headers that the package is built with.

It has run on no GPU yet. For sm_90a it compiles, with CUTLASS 4.2 and CUDA 13.0, in a minute and a half of one core.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cu")
RETURNED = {1: "it does not take these sizes", 2: "the launch failed"}


def build(folder: Path) -> ctypes.CDLL:
    """Compile the convolution into `folder` and load it.

    The headers are those of CUTLASS_DIR, else of the package nvidia-cutlass, as in the package's own build. Raises
    RuntimeError without them, without nvcc, and if nvcc fails.
    """
    nvcc, source, library = shutil.which("nvcc"), _source(), folder / "cutlass_conv3d.so"
    if nvcc is None or source is None:
        missing = "nvcc" if nvcc is None else "CUTLASS_DIR and no package nvidia-cutlass"
        raise RuntimeError(f"CUTLASS's convolution: expected nvcc and CUTLASS's headers, got no {missing}")
    headers = ["-I", str(source / "include"), "-I", str(source / "tools/util/include")]
    target = ["-gencode", "arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC", "-shared"]
    command = [nvcc, "-std=c++17", "-O3", *target, *headers, "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"CUTLASS's convolution: nvcc failed: {done.stderr[-400:]}")
    return ctypes.CDLL(str(library))


def _source() -> Path | None:
    """The source tree of CUTLASS, or None."""
    if "CUTLASS_DIR" in os.environ:
        return Path(os.environ["CUTLASS_DIR"])
    package = find_spec("cutlass_library")
    return None if package is None or package.origin is None else Path(package.origin).parent / "source"


def convolve(library: Any, x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Convolve x [B, C, D, H, W] with weight [O, C, kt, kh, kw] into out [B, O, D - kt + 1, H, W].

    All are bfloat16 in `channels_last_3d` on the current GPU; zeros in space, none in time. Raises RuntimeError for
    sizes that CUTLASS does not take, and a launch that fails.
    """
    batch, channels, depth, height, width = x.shape
    sizes = (ctypes.c_int * 9)(batch, depth, height, width, channels, weight.shape[0], *weight.shape[2:])
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, weight, out)]
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    status = library.cutlass_conv3d(*pointers, sizes, ctypes.c_void_p(stream))
    if status != 0:
        raise RuntimeError(f"CUTLASS's convolution: {RETURNED[status]}")
