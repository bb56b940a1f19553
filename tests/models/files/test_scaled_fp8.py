# SPDX-License-Identifier: Apache-2.0
"""Files with float8 weights and scales load as the model that they were made from, within float8's rounding."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.convert import convert_files
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.testing.compare import relative_l2
from aapt_fast.testing.wan import TINY, random_wan

CONFIG = {"num_heads": TINY.heads}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
ROUNDING = {torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3}


def quantised(
    state: dict[str, Tensor], dtype: torch.dtype, suffix: str = "scale_weight", per_row: bool = False, prefix: str = ""
) -> dict[str, Tensor]:
    """Two-dimensional weights of blocks in float8 with a scale each, and the marks that such files hold."""
    result = {f"{prefix}scaled_fp8": torch.zeros(2, dtype=dtype)}
    for name, value in state.items():
        result[prefix + name] = value.contiguous()
        if value.dim() == 2 and name.startswith("blocks.") and "modulation" not in name:
            largest = value.abs().amax(1) if per_row else value.abs().amax()
            scale = (largest / LARGEST[dtype]).float()
            shape = (-1, 1) if per_row else ()
            result[prefix + name] = (value / scale.view(-1, 1)).to(dtype)
            result[prefix + name.removesuffix("weight") + suffix] = scale.view(shape)
            result[prefix + name.removesuffix("weight") + "scale_input"] = torch.ones(())
    return result


WAYS: dict[str, dict] = {
    "e4m3": dict(dtype=torch.float8_e4m3fn),
    "e5m2": dict(dtype=torch.float8_e5m2),
    "rows": dict(dtype=torch.float8_e4m3fn, suffix="weight_scale", per_row=True),
    "prefix": dict(dtype=torch.float8_e4m3fn, prefix="model.diffusion_model."),
}


@pytest.mark.parametrize("way", WAYS)
def test_scales_are_multiplied(tmp_path: Path, way: str) -> None:
    model, options = random_wan(), WAYS[way]
    file = tmp_path / "wan_fp8_scaled.safetensors"
    stored = quantised(model.state_dict(), **options)
    save_file(stored, file)
    loaded = aapt_fast.load_generator(file, config=CONFIG)
    assert loaded.patch_embedding.weight.dtype == torch.float32
    changed = 0
    for name, value in model.state_dict().items():
        have, kept = loaded.state_dict()[name], stored[options.get("prefix", "") + name]
        if kept.dtype == options["dtype"]:
            assert relative_l2(have, value) < ROUNDING[options["dtype"]] / 2
            assert bool(((have - value).abs() <= value.abs() * ROUNDING[kept.dtype] + 1e-3 * value.abs().max()).all())
            changed += 1
        else:
            assert torch.equal(have, value), name
    assert changed == 10 * TINY.layers
    inputs = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 3, TINY.text_width)
    assert relative_l2(loaded(*inputs), model(*inputs)) < 2 * ROUNDING[options["dtype"]]


def test_the_product_is_in_float32_and_rounded_once(tmp_path: Path) -> None:
    stored = quantised(random_wan().state_dict(), torch.float8_e4m3fn)
    save_file(stored, tmp_path / "a.safetensors")
    loaded = aapt_fast.load_generator(tmp_path / "a.safetensors", dtype="bfloat16", config=CONFIG)
    name = "blocks.1.ffn.0."
    expected = (stored[f"{name}weight"].float() * stored[f"{name}scale_weight"]).bfloat16()
    assert torch.equal(loaded.state_dict()[f"{name}weight"], expected)


@pytest.mark.parametrize(("dtype", "kept"), [(None, "float32"), ("bfloat16", "bfloat16")])
def test_conversion(tmp_path: Path, dtype: str | None, kept: str) -> None:
    save_file(quantised(random_wan().state_dict(), torch.float8_e4m3fn), tmp_path / "a.safetensors")
    report = convert_files(tmp_path / "a.safetensors", tmp_path / "out", config=CONFIG, dtype=dtype)
    part = report["parts"]["generator"]
    assert part["verified"]["forward"] == "equal" and kept in part["dtypes"] and "float8_e4m3fn" not in part["dtypes"]
    assert part["tensors"] == len(random_wan().state_dict())


def test_a_vae(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = {name: value.contiguous() for name, value in WanVAE(WanVAEConfig(base_dim=4)).state_dict().items()}
    name = "decoder.conv1."
    scaled = {f"{name}weight": state[f"{name}weight"].to(torch.float8_e4m3fn), f"{name}scale_weight": torch.tensor(0.5)}
    save_file(state | scaled, tmp_path / "vae.safetensors")
    loaded = aapt_fast.load_vae(tmp_path / "vae.safetensors").state_dict()
    assert torch.equal(loaded[f"{name}weight"], scaled[f"{name}weight"].float() * 0.5)


NAME = "blocks.0.ffn.0."
WRONG = {
    "no weight": (
        {"blocks.0.ffn.7.scale_weight": torch.ones(())},
        "a weight blocks.0.ffn.7.weight in float8, got none",
    ),
    "no float8": ({f"{NAME}weight": torch.ones(80, 48)}, "weight in float8, got one in torch.float32"),
    "shape": (
        {f"{NAME}scale_weight": torch.ones(3)},
        "scale_weight: expected one number, or [80] with one per row, got shape [3]",
    ),
    "columns": ({f"{NAME}scale_weight": torch.ones(1, 80)}, "or [80] with one per row, got shape [1, 80]"),
    "nan": ({f"{NAME}scale_weight": torch.tensor(torch.nan)}, f"{NAME}weight: expected finite values"),
    "missing": ({f"{NAME}bias": None}, f"expected key {NAME}bias, got none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    stored = quantised(random_wan().state_dict(), torch.float8_e4m3fn) | change
    save_file({key: value for key, value in stored.items() if value is not None}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        aapt_fast.load_generator(tmp_path / "a.safetensors", config=CONFIG)
