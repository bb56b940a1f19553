# SPDX-License-Identifier: Apache-2.0
"""LoRA files of every layout are merged as their formula says, or refused by the names of their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.keys import wan_to_diffusers_key
from aapt_fast.testing.wan import TINY, WAN_KINDS, random_wan

RANK, ALPHA, SCALE = 3, 6.0, 0.7
CONFIG = {"num_heads": TINY.heads}
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.0", "head.head", "patch_embedding")
Pairs = dict[str, tuple[Tensor, Tensor]]
State = dict[str, Tensor]


@pytest.fixture
def wan(tmp_path: Path) -> Path:
    save_file(random_wan().state_dict(), tmp_path / "wan.safetensors")
    return tmp_path / "wan.safetensors"


@pytest.fixture
def pairs() -> Pairs:
    """(A [rank, inputs], B [outputs, rank]) of some layers; of a convolution in the shapes of a convolution."""
    torch.manual_seed(3)
    state, found = random_wan().state_dict(), {}
    for layer in LAYERS:
        outputs, inputs, *kernel = state[f"{layer}.weight"].shape
        found[layer] = torch.randn(RANK, inputs, *kernel), torch.randn(outputs, RANK, *[1] * len(kernel))
    return found


def written(pairs: Pairs, spell: Callable[[str], str], a: str, b: str, alpha: float | None = ALPHA) -> State:
    state = {}
    for layer, pair in pairs.items():
        state |= {f"{spell(layer)}.{a}.weight": pair[0], f"{spell(layer)}.{b}.weight": pair[1]}
        if alpha is not None:
            state[f"{spell(layer)}.alpha"] = torch.tensor(alpha)
    return state


def diffusers(layer: str) -> str:
    return wan_to_diffusers_key(f"{layer}.weight").removesuffix(".weight")


def in_pipeline(layer: str) -> str:
    return f"transformer.{diffusers(layer)}"


LAYOUTS: dict[str, Callable[[Pairs], State]] = {
    "ComfyUI": lambda pairs: written(pairs, "diffusion_model.{}".format, "lora_A", "lora_B"),
    "diffusers": lambda pairs: written(pairs, in_pipeline, "lora_A", "lora_B"),
    "old diffusers": lambda pairs: written(pairs, in_pipeline, "lora.down", "lora.up"),
    "peft": lambda pairs: written(pairs, "base_model.model.{}".format, "lora_A.default", "lora_B.default"),
    "kohya": lambda pairs: written(pairs, lambda layer: "lora_unet_" + layer.replace(".", "_"), "lora_down", "lora_up"),
    "kohya, diffusers' names": lambda pairs: written(
        pairs, lambda layer: "lora_unet_" + diffusers(layer).replace(".", "_"), "lora_down", "lora_up"
    ),
    "bare": lambda pairs: written(pairs, str, "lora_down", "lora_up"),
}


def product(pairs: Pairs, layer: str) -> Tensor:
    a, b = pairs[layer]
    return (b.flatten(1) @ a.flatten(1)).view(*b.shape[:1], *a.shape[1:])


def require_merged(model: torch.nn.Module, pairs: Pairs, factor: float) -> None:
    """weight + factor * B A where there is a pair, and the same weights elsewhere."""
    for name, value in random_wan().state_dict().items():
        layer = name.removesuffix(".weight")
        expected = value + factor * product(pairs, layer) if name.endswith(".weight") and layer in pairs else value
        assert torch.allclose(model.state_dict()[name], expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_merged(wan: Path, pairs: Pairs, layout: str) -> None:
    save_file(LAYOUTS[layout](pairs), wan.with_name("lora.safetensors"))
    files = {"config": CONFIG, "lora": wan.with_name("lora.safetensors")}
    require_merged(aapt_fast.load_generator(wan, **files, lora_scale=SCALE), pairs, SCALE * ALPHA / RANK)
    require_merged(aapt_fast.load_generator(wan, **files), pairs, ALPHA / RANK)


def test_alpha_is_the_rank_unless_something_says_otherwise(wan: Path, pairs: Pairs) -> None:
    folder = wan.parent / "lora"
    folder.mkdir()
    state = written(pairs, str, "lora_A", "lora_B", alpha=None)
    save_file(state, folder / "adapter_model.safetensors")
    require_merged(aapt_fast.load_generator(wan, config=CONFIG, lora=folder), pairs, 1)
    (folder / "adapter_config.json").write_text('{"lora_alpha": 12, "r": 3}')
    require_merged(aapt_fast.load_generator(wan, config=CONFIG, lora=folder), pairs, 12 / RANK)
    (folder / "adapter_config.json").write_text('{"lora_alpha": 12, "use_rslora": true}')
    require_merged(aapt_fast.load_generator(wan, config=CONFIG, lora=folder), pairs, 12 / RANK**0.5)
    said = json.dumps({"transformer.lora_alpha": 9, "transformer.r": RANK})
    save_file(state, wan.with_name("own.safetensors"), {"lora_adapter_metadata": said})
    lora = wan.with_name("own.safetensors")
    require_merged(aapt_fast.load_generator(wan, config=CONFIG, lora=lora), pairs, 9 / RANK)


def test_weights_in_scaled_float8(wan: Path, pairs: Pairs) -> None:
    layer, state = LAYERS[0], random_wan().state_dict()
    small = {
        f"{layer}.weight": state[f"{layer}.weight"].to(torch.float8_e4m3fn),
        f"{layer}.scale_weight": torch.ones(()),
    }
    save_file(state | small, wan)
    save_file(LAYOUTS["ComfyUI"](pairs), wan.with_name("lora.safetensors"))
    model = aapt_fast.load_generator(wan, config=CONFIG, lora=wan.with_name("lora.safetensors"))
    expected = small[f"{layer}.weight"].float() + ALPHA / RANK * product(pairs, layer)
    assert torch.allclose(model.state_dict()[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-6)


def test_several_files_add_up(wan: Path, pairs: Pairs) -> None:
    save_file(LAYOUTS["ComfyUI"](pairs), one := wan.with_name("one.safetensors"))
    save_file(LAYOUTS["kohya"](pairs), two := wan.with_name("two.safetensors"))
    both = aapt_fast.load_generator(wan, config=CONFIG, lora=[one, str(two)], lora_scale=[0.5, -1])
    require_merged(both, pairs, -0.5 * ALPHA / RANK)


def test_differences_of_weights_biases_norms_and_modulations(wan: Path) -> None:
    changes = {
        "blocks.0.self_attn.q.diff": "blocks.0.self_attn.q.weight",
        "blocks.0.self_attn.q.diff_b": "blocks.0.self_attn.q.bias",
        "blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "blocks.1.modulation.diff": "blocks.1.modulation",
    }
    before = random_wan().state_dict()
    state = {f"diffusion_model.{key}": torch.randn_like(before[name]) for key, name in changes.items()}
    save_file(state, wan.with_name("lora.safetensors"))
    lora = wan.with_name("lora.safetensors")
    after = aapt_fast.load_generator(wan, config=CONFIG, lora=lora, lora_scale=SCALE).state_dict()
    for name, value in before.items():
        key = next((f"diffusion_model.{key}" for key, target in changes.items() if target == name), None)
        assert torch.allclose(after[name], value if key is None else value + SCALE * state[key], atol=1e-6), name


def test_half_precision_is_rounded_once(wan: Path, pairs: Pairs) -> None:
    half = {name: value.bfloat16() for name, value in random_wan().state_dict().items()}
    save_file(half, wan)
    save_file(LAYOUTS["ComfyUI"](pairs), wan.with_name("lora.safetensors"))
    lora = wan.with_name("lora.safetensors")
    model = aapt_fast.load_generator(wan, config=CONFIG, lora=lora, dtype="bfloat16")
    name = f"{LAYERS[0]}.weight"
    expected = (half[name].float() + ALPHA / RANK * product(pairs, LAYERS[0])).bfloat16()
    assert torch.equal(model.state_dict()[name], expected)


def test_a_stream_model(tmp_path: Path) -> None:
    kind = WAN_KINDS["one head of 128"]
    wan, vae = tmp_path / "wan.safetensors", tmp_path / "vae.safetensors"
    save_file(random_wan(kind).state_dict(), wan)
    save_file({name: value.contiguous() for name, value in WanVAE(WanVAEConfig(base_dim=4)).state_dict().items()}, vae)
    save_file({"blocks.0.ffn.0.diff_b": torch.ones(kind.ffn_width)}, tmp_path / "lora.safetensors")
    options = {"vae": vae, "grid": (4, 4), "lora": tmp_path / "lora.safetensors", "lora_scale": 2}
    merged = aapt_fast.StreamModel.from_pretrained(wan, **options).generator
    assert torch.equal(merged.blocks[0].ffn[0].bias, random_wan(kind).blocks[0].ffn[0].bias + 2)
    for load in (aapt_fast.StreamModel.from_pretrained, aapt_fast.load_generator):
        with pytest.raises(ValueError, match=r"^lora: expected None: LoRA files are merged into Wan transformers"):
            load("mini-person", lora=tmp_path / "lora.safetensors")


A, B = "blocks.0.ffn.0.lora_A.weight", "blocks.0.ffn.0.lora_B.weight"
FITS = {A: torch.ones(2, 48), B: torch.ones(80, 2)}
WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "inputs": (FITS | {A: torch.ones(2, 47)}, rf"lora.safetensors: {A}: expected shape \[2, 48\], got \[2, 47\]"),
    "outputs": (FITS | {B: torch.ones(81, 2)}, rf"{B}: expected shape \[80, 2\], got \[81, 2\]"),
    "rank": (FITS | {B: torch.ones(80, 3)}, rf"{B}: expected shape \[80, 2\], got \[80, 3\]"),
    "rank of zero": ({A: torch.ones(0, 48), B: torch.ones(80, 0)}, rf"{A}: expected shape \[1, 48\], got \[0, 48\]"),
    "vectors": ({A: torch.ones(48), B: torch.ones(80)}, rf"{A}: expected shape \[48, 48\], got \[48\]"),
    "no B": ({A: FITS[A]}, f"expected matrix B .* beside {A}, got none"),
    "no A": ({B: FITS[B]}, f"expected matrix A .* beside {B}, got none"),
    "alpha alone": (
        {**FITS, "blocks.1.ffn.0.alpha": torch.ones(())},
        "expected matrix A .* beside blocks.1.ffn.0.alpha, got none",
    ),
    "alphas": (FITS | {"blocks.0.ffn.0.alpha": torch.ones(2)}, r"alpha: expected one number, got shape \[2\]"),
    "nan": (FITS | {A: torch.full((2, 48), torch.nan)}, f"{A}: expected finite values"),
    "another layer": (
        FITS | {"blocks.9.ffn.0.lora_A.weight": FITS[A]},
        "model only, got blocks.9.ffn.0.lora_A",
    ),
    "text encoder": (FITS | {"lora_te_layers_0.lora_up.weight": FITS[B]}, "got lora_te_layers_0.lora_up.weight"),
    "several": (
        FITS | {f"x{number}.lora_A.weight": FITS[A] for number in range(5)},
        "got x0.lora_A.weight, x1.lora_A.weight, x2.lora_A.weight and 2 more",
    ),
    "DoRA": (FITS | {"blocks.0.ffn.0.dora_scale": torch.ones(80)}, "got blocks.0.ffn.0.dora_scale"),
    "LoKr": ({"blocks.0.ffn.0.lokr_w1": torch.ones(2, 2)}, "got blocks.0.ffn.0.lokr_w1"),
    "bias of a norm": ({"blocks.0.self_attn.norm_q.diff_b": torch.ones(48)}, "got blocks.0.self_attn.norm_q.diff_b"),
    "difference": ({"blocks.0.ffn.0.diff": torch.ones(2, 48)}, r"ffn.0.diff: expected shape \[80, 48\], got \[2, 48\]"),
    "twice": (FITS | {f"diffusion_model.{A}": FITS[A]}, "blocks.0.ffn.0: expected one A, got .* and"),
    "a model": (dict(random_wan().state_dict()), "expected a LoRA file, got a Wan transformer without a VAE"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(wan: Path, name: str) -> None:
    state, message = WRONG[name]
    save_file({key: value.clone() for key, value in state.items()}, wan.with_name("lora.safetensors"))
    with pytest.raises(CheckpointError, match=message):
        aapt_fast.load_generator(wan, config=CONFIG, lora=wan.with_name("lora.safetensors"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"r": 2}, "lora_alpha in peft's configuration: expected a number, got none"),
        ({"lora_alpha": 2, "alpha_pattern": {"q": 4}}, "alpha_pattern in peft's configuration: expected none"),
        ({"lora_alpha": 2, "use_dora": True}, "use_dora in peft's configuration: expected none, got True"),
    ],
)
def test_configurations_of_peft_that_merge_otherwise(wan: Path, said: dict, message: str) -> None:
    (wan.parent / "lora").mkdir()
    save_file(FITS, wan.parent / "lora" / "adapter_model.safetensors")
    (wan.parent / "lora" / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=message):
        aapt_fast.load_generator(wan, config=CONFIG, lora=wan.parent / "lora")


def test_metadata_of_peft_that_is_no_json(wan: Path) -> None:
    save_file(FITS, wan.with_name("lora.safetensors"), {"lora_adapter_metadata": "{lora"})
    with pytest.raises(CheckpointError, match=r"lora_adapter_metadata: expected a JSON object, got '{lora'"):
        aapt_fast.load_generator(wan, config=CONFIG, lora=wan.with_name("lora.safetensors"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lora": 3}, TypeError, "lora: expected str or PathLike"),
        ({"lora": [None]}, TypeError, "lora: expected str or PathLike, got NoneType"),
        ({"lora_scale": float("nan")}, ValueError, "lora_scale: expected a finite number, got nan"),
        ({"lora_scale": [1, 2]}, ValueError, "lora_scale: expected a number, or one for each of 1 files"),
        ({"lora_scale": "strong"}, TypeError, "lora_scale: expected int or float, got str"),
    ],
)
def test_bad_arguments(wan: Path, options: dict, error: type[Exception], message: str) -> None:
    save_file(FITS, wan.with_name("lora.safetensors"))
    with pytest.raises(error, match=message):
        aapt_fast.load_generator(wan, config=CONFIG, **{"lora": wan.with_name("lora.safetensors"), **options})
