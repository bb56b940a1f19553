# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from bench import bench_conv3d
from bench.baselines import cutlass_conv3d

from aapt_fast.models.vae import ring_cache
from aapt_fast.profiling.decoders import Layer
from aapt_fast.testing.compare import assert_near


def test_the_program_with_a_narrow_decoder(monkeypatch, tmp_path):
    out = tmp_path / "document.json"
    monkeypatch.setattr("sys.argv", ["bench_conv3d.py", "--tiny", "--decoder", "light", "--out", str(out)])
    bench_conv3d.main()
    document = json.loads(out.read_text())
    names = [entry["name"] for entry in document["results"]]
    assert "conv3d/light/32-32/4x48x64/float32/torch" in names and len(set(names)) == len(names)
    assert all(entry["tflops"] > 0 and entry["share_of_ceiling"] > 0 for entry in document["results"])
    (failure,) = document["failures"]
    assert failure["what_ran"] == "CUTLASS" and "a GPU of capability 9.0" in failure["reason"]


def test_all_sides_compute_the_same(monkeypatch):
    """CUTLASS is a stand-in that gets addresses and sizes, as the compiled one does, and computes with torch."""
    monkeypatch.setattr(bench_conv3d, "kernels_run", lambda device, dtype: True)
    assert ring_cache.kernels_run(torch.device("cpu"), torch.float32) is False
    seen = {}

    def convolution(x: ctypes.c_void_p, weight: ctypes.c_void_p, out: ctypes.c_void_p, sizes, stream) -> int:
        batch, depth, height, width, channels, outputs, kt, kh, kw = sizes
        frames = _at(x, batch, depth, height, width, channels).permute(0, 4, 1, 2, 3)
        taps = _at(weight, outputs, kt, kh, kw, channels).permute(0, 4, 1, 2, 3)
        y = F.conv3d(frames, taps, padding=(0, kh // 2, kw // 2)).permute(0, 2, 3, 4, 1)
        _at(out, *y.shape).copy_(y)
        return seen.setdefault("status", 0)

    layer, library = Layer(16, 8, (3, 3, 3), (2, 3, 5)), SimpleNamespace(cutlass_conv3d=convolution)
    calls = bench_conv3d.calls_of(layer, torch.device("cpu"), torch.float32, library)
    assert list(calls) == ["torch", "CUTLASS", "kernels"]
    expected, out = calls["torch"](), calls["kernels"].args[3]
    for side in ("CUTLASS", "kernels"):
        out.zero_()
        calls[side]()
        assert_near(out.permute(0, 4, 1, 2, 3), expected, 1e-5, side)
    seen["status"] = 1
    with pytest.raises(RuntimeError, match="CUTLASS's convolution: it does not take these sizes"):
        calls["CUTLASS"]()


def _at(address: ctypes.c_void_p, *shape: int) -> torch.Tensor:
    """The float32 tensor of this shape at an address."""
    count = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_float * count).from_address(address.value), dtype=torch.float32).view(shape)


def test_no_compiler_is_said(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(cutlass_conv3d.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="expected nvcc and CUTLASS's headers, got no nvcc"):
        cutlass_conv3d.build(tmp_path)
