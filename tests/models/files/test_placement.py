# SPDX-License-Identifier: Apache-2.0
"""Sources, devices and dtypes that cannot be are refused by the name of the argument, before a file is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import aapt_fast
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.files.convert import convert_files
from aapt_fast.models.files.placement import fast_dtype, require_usable_device
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.testing.streams import random_model
from aapt_fast.testing.wan import TINY, random_wan

LOADERS: list[Callable] = [aapt_fast.StreamModel.from_pretrained, aapt_fast.load_vae, aapt_fast.load_generator]
FLOATS = r"torch.float32, torch.bfloat16(, torch.float16)? or torch.float(16|64)"


@pytest.fixture(params=LOADERS, ids=lambda load: load.__name__)
def load(request: pytest.FixtureRequest) -> Callable:
    return request.param


@pytest.mark.parametrize("device", ["gpu", "foo", "meta", "cuda:99", "mps", torch.device("meta"), "cuda:-1", ""])
def test_a_device_that_cannot_be_used(load: Callable, device: object) -> None:
    with pytest.raises(ValueError, match=r"^device: expected a device that this torch can use \(cpu.*\), got "):
        load("no file", device=device)


@pytest.mark.parametrize("device", [0, 7, ""])
def test_a_refused_device_is_quoted(device: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"got {'nothing' if device == '' else device}$"):
        require_usable_device(device)


@pytest.mark.parametrize("device", [None, 1.5, torch.float32])
def test_what_is_no_device(load: Callable, device: object) -> None:
    with pytest.raises(TypeError, match=r"^device: expected str or device or int, got"):
        load("no file", device=device)


def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1", torch.device("cuda", 1)):
        require_usable_device(device)
    with pytest.raises(ValueError, match=r"use \(cpu, cuda:0, cuda:1\), got cuda:2"):
        require_usable_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"use \(cpu\), got cuda, and torch finds no GPU here$"):
        require_usable_device("cuda")


@pytest.mark.parametrize("dtype", [16, float, torch.ones(1)])
def test_what_is_no_dtype(load: Callable, dtype: object) -> None:
    with pytest.raises(TypeError, match=f"^dtype: expected {FLOATS}, got {re.escape(repr(dtype))}"):
        load("no file", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn, "int8", "bf16", "Tensor"])
def test_a_dtype_that_nothing_computes_in(load: Callable, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^dtype: expected {FLOATS}, got {dtype}"):
        load("no file", dtype=dtype)


def test_weights_loaded_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    random_model(NANO).save_pretrained(tmp_path / "nano.safetensors")
    save_file(random_wan().state_dict(), tmp_path / "wan.safetensors")
    wan_vae = WanVAE(WanVAEConfig(base_dim=4)).state_dict()
    save_file({name: value.contiguous() for name, value in wan_vae.items()}, tmp_path / "vae.safetensors")
    with torch.inference_mode():
        model = aapt_fast.StreamModel.from_pretrained(tmp_path / "nano.safetensors")
        wan = aapt_fast.load_generator(tmp_path / "wan.safetensors", config={"heads": TINY.heads})
        vaes = [aapt_fast.load_vae(tmp_path / name) for name in ("nano.safetensors", "vae.safetensors")]
        parts = [model.generator, model.vae, wan, *vaes]
    for part in parts:
        assert not [name for name, tensor in [*part.named_parameters(), *part.named_buffers()] if tensor.is_inference()]
    hidden, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 3, TINY.text_width)
    wan(hidden, torch.tensor([500.0]), text).square().mean().backward()
    assert bool(wan.patch_embedding.weight.grad.abs().sum() > 0)


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_dtypes_go_by_their_names(tmp_path: Path, name: str) -> None:
    file = tmp_path / "nano.safetensors"
    random_model(NANO).save_pretrained(file, name)
    model = aapt_fast.StreamModel.from_pretrained(file, dtype=name, device="cpu")
    assert model.dtype == torch.bfloat16
    assert aapt_fast.load_generator(file, dtype="half").weight.dtype == torch.float16
    assert next(aapt_fast.load_vae(file, dtype=name).parameters()).dtype == torch.bfloat16
    report = convert_files(file, tmp_path / "out", dtype=name)
    assert report["parts"]["model of this package"]["dtypes"].keys() == {"bfloat16"}


def test_float64_is_refused_where_it_does_not_work(tmp_path: Path) -> None:
    """A small VAE does not compute in it; a generator does. Weights that are kept in it load as float32."""
    for load in (aapt_fast.StreamModel.from_pretrained, aapt_fast.load_vae):
        with pytest.raises(ValueError, match=r"^dtype: expected .* or torch.float16, got torch.float64"):
            load("mini-person", dtype=torch.float64)
    random_model(NANO).save_pretrained(tmp_path / "wide.safetensors", torch.float64)
    vae, generator = aapt_fast.load_vae(tmp_path / "wide.safetensors"), aapt_fast.load_generator("mini-person")
    assert {weight.dtype for weight in vae.parameters()} == {torch.float32}
    exact = aapt_fast.load_generator("mini-person", dtype=torch.float64)
    torch.manual_seed(0)
    noised, recycled = torch.randn(2, 1, 16, 1, *exact.config.grid, dtype=torch.float64)
    control = torch.rand(1, exact.config.control.step_channels, 1, *exact.config.grid, dtype=torch.float64)
    with torch.no_grad():
        expected, got = (
            model(noised.to(t), recycled.to(t), control.to(t), torch.ones(1), model.new_cache())
            for model, t in ((exact, torch.float64), (generator, torch.float32))
        )
    assert torch.allclose(expected, got.to(expected.dtype), atol=1e-3)


@pytest.mark.parametrize("path", [None, 3, b"mini-person"])
def test_what_is_no_path(path: object, tmp_path: Path) -> None:
    got = f"expected str or PathLike, got {type(path).__name__}"
    for load in (*LOADERS, aapt_fast.load_gallery):
        with pytest.raises(TypeError, match=f"^path: {got}"):
            load(path)
    for load in (*LOADERS, aapt_fast.load_gallery, lambda path: convert_files(path, tmp_path)):
        with pytest.raises(ValueError, match=r"^(path|source): expected a name, a file or a folder, got an empty text"):
            load("")
    with pytest.raises(TypeError, match=f"^source: {got}"):
        convert_files(path, tmp_path)
    with pytest.raises(TypeError, match=f"^out: {got}"):
        convert_files("mini-person", path)


def test_files_are_written_in_floats_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dtype: expected .* or torch.float64, got torch.int8"):
        random_model(NANO).save_pretrained(tmp_path / "a.safetensors", torch.int8)
    with pytest.raises(ValueError, match=r"^dtype: expected .* or torch.float64, got fp16"):
        convert_files("mini-person", tmp_path / "b", dtype="fp16")
    assert not list(tmp_path.iterdir())
    random_model(NANO).save_pretrained(tmp_path / "nano.safetensors")
    report = convert_files(tmp_path / "nano.safetensors", tmp_path / "c", dtype=torch.float64)
    assert report["parts"]["model of this package"]["dtypes"].keys() == {"float64"}


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)]
)
def test_a_gpu_without_bfloat16_gets_float32(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fast_dtype(torch.device("cuda")) == dtype
