# SPDX-License-Identifier: Apache-2.0
"""Files of others become ours and mean the same; a conversion that fails leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.files import convert as module
from aapt_fast.models.files import write as shards
from aapt_fast.models.files.convert import convert_files
from aapt_fast.models.vae.wan import WAN_2_2, WanVAEConfig
from aapt_fast.models.vae.wan_keys import WanVAEKeys
from aapt_fast.ops.window import WindowRule
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.streams import STREAMS, random_model
from aapt_fast.testing.wan import WAN_KINDS, diffusers_config, from_diffusers_state_dict

VAES = {"2.1": WanVAEConfig(base_dim=8), "2.2": dataclasses.replace(WAN_2_2, base_dim=8, decoder_base_dim=12)}
HEADS = {"num_heads": 2, "num_frame_per_block": 2, "local_attn_size": 6, "sink_size": 1}


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    torch.manual_seed(1)
    model = WanTransformer3DModel(**diffusers_config(WAN_KINDS["ti2v"]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=VAES)
def vae(request, oracle) -> AutoencoderKLWan:
    torch.manual_seed(1)
    return oracle(VAES[request.param])


@pytest.fixture(autouse=True)
def nothing_is_left_beside(tmp_path: Path) -> Iterator[None]:
    yield
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def original(model: WanTransformer3DModel) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in from_diffusers_state_dict(model.state_dict()).items()}


def original_vae(vae: AutoencoderKLWan) -> dict[str, Tensor]:
    keys = WanVAEKeys(is_residual=vae.config.is_residual)
    return {keys.to_original(name): tensor.contiguous() for name, tensor in vae.state_dict().items()}


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    states = ours.state_dict(), theirs.state_dict()
    return ours.config == theirs.config and states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) and value.dtype == states[1][name].dtype
        for name, value in states[0].items()
    )  # fmt: skip


# ---- every kind of source ----


def test_a_self_forcing_checkpoint(transformer, tmp_path):
    """Prefixes, groups and what only the user knows are gone from the result; it needs no config."""
    state = {f"model._fsdp_wrapped_module.{name}": value for name, value in original(transformer).items()}
    torch.save({"generator_ema": state}, tmp_path / "sf.pt")
    report = convert_files(tmp_path / "sf.pt", tmp_path / "out", config=HEADS)
    assert same(aapt_fast.load_generator(tmp_path / "out"), aapt_fast.load_generator(tmp_path / "sf.pt", config=HEADS))
    assert aapt_fast.load_generator(tmp_path / "out").config.window_rule == WindowRule(2, 3, 1)
    part = report["parts"]["generator"]
    assert part["verified"] == {"tensors": "equal", "largest_relative_difference": 0.0, "forward": "equal"}
    assert part["files"] == ["config.json", "model.safetensors"] and part["dtypes"] == {"float32": part["tensors"]}
    assert part["tensors"] == len(state) and part["parameters"] == sum(value.numel() for value in state.values())
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == original(transformer).keys()


def test_the_result_gives_the_velocity_of_diffusers(transformer, tmp_path):
    transformer.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    convert_files(tmp_path / "theirs", tmp_path / "out", shard_bytes=30_000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3
    assert all(file.stat().st_size < 110_000 for file in (tmp_path / "out").iterdir())
    hidden, text = torch.randn(1, 48, 2, 4, 6), torch.randn(1, 512, 24)
    expected = transformer(hidden, torch.tensor([625.0]), text, return_dict=False)[0]
    with torch.no_grad():
        assert_near(aapt_fast.load_generator(tmp_path / "out")(hidden, torch.tensor([625.0]), text), expected, 5e-5)


@pytest.mark.parametrize("kind", ["diffusers", "original .pth", "original safetensors"])
def test_a_vae(vae, tmp_path, kind):
    source = tmp_path / "source"
    if kind == "diffusers":
        vae.save_pretrained(source)
    elif kind == "original .pth":
        torch.save(original_vae(vae), source := tmp_path / "Wan_VAE.pth")
    else:
        save_file({f"model.{name}": value for name, value in original_vae(vae).items()}, source := tmp_path / "v.st")
    report = convert_files(source, tmp_path / "out")
    assert report["parts"]["vae"]["verified"]["forward"] == "equal"
    assert same(aapt_fast.load_vae(tmp_path / "out"), aapt_fast.load_vae(source))


def test_statistics_of_a_vae_that_nobody_published(oracle, tmp_path):
    config = WanVAEConfig(base_dim=8, z_dim=4, latents_mean=(0.1,) * 4, latents_std=(1.3,) * 4)
    torch.save(original_vae(oracle(config)), tmp_path / "vae.pth")
    said = {"latents_mean": [0.1] * 4, "latents_std": [1.3] * 4}
    with pytest.raises(CheckpointError, match="latents_mean and latents_std"):
        convert_files(tmp_path / "vae.pth", tmp_path / "out")
    convert_files(tmp_path / "vae.pth", tmp_path / "out", config=said)
    assert aapt_fast.load_vae(tmp_path / "out").config.latents_std == config.latents_std


def test_the_gallery_of_a_model_is_named_as_left_behind(tmp_path):
    source = tmp_path / "model.safetensors"
    random_model(STREAMS["pose"]).save_pretrained(source, torch.float32)
    assert convert_files(source, tmp_path / "without")["left_behind"] == []
    (tmp_path / "gallery.json").write_text("{}")
    assert convert_files(source, tmp_path / "with")["left_behind"] == ["gallery"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pipeline_with_both(transformer, vae, tmp_path, dtype):
    source = tmp_path / "pipeline"
    transformer.save_pretrained(source / "transformer")
    vae.save_pretrained(source / "vae")
    for name in ("text_encoder", "scheduler"):
        (source / name).mkdir()
    report = convert_files(source, tmp_path / "out", dtype=dtype, config={"transformer": {"sink_size": 1}})
    assert list(report["parts"]) == ["transformer", "vae"] and report["left_behind"] == ["scheduler", "text_encoder"]
    generator = aapt_fast.load_generator(tmp_path / "out")
    assert same(generator, aapt_fast.load_generator(source, dtype=dtype, config={"sink_size": 1}))
    assert same(aapt_fast.load_vae(tmp_path / "out"), aapt_fast.load_vae(source, dtype=dtype))
    assert generator.blocks[0].ffn[0].weight.dtype == dtype and generator.head.modulation.dtype == torch.float32
    with pytest.raises(ValueError, match="config: expected one configuration each for transformer or vae, got heads"):
        convert_files(source, tmp_path / "other", config={"heads": 2})


def test_an_original_folder_with_both(transformer, vae, tmp_path):
    source = tmp_path / "Wan"
    source.mkdir()
    save_file(original(transformer), source / "diffusion_pytorch_model.safetensors")
    (source / "config.json").write_text('{"_class_name": "WanModel", "num_heads": 2}')
    torch.save(original_vae(vae), source / "Wan_VAE.pth")
    report = convert_files(source, tmp_path / "out")
    assert {name: part["kind"] for name, part in report["parts"].items()} == {"transformer": "generator", "vae": "vae"}
    assert same(aapt_fast.load_generator(tmp_path / "out"), aapt_fast.load_generator(source))
    assert same(aapt_fast.load_vae(tmp_path / "out"), aapt_fast.load_vae(source))


@pytest.mark.parametrize("kind", STREAMS)
def test_a_file_of_our_own(tmp_path, kind):
    random_model(STREAMS[kind]).save_pretrained(tmp_path / "own.safetensors", torch.float32)
    report = convert_files(tmp_path / "own.safetensors", tmp_path / "out", dtype=torch.bfloat16, shard_bytes=100)
    result = tmp_path / "out" / "model.safetensors"
    assert report["parts"]["model of this package"]["verified"]["forward"] == "equal"
    assert {value.dtype for value in load_file(result).values()} == {torch.bfloat16}
    for load in (aapt_fast.load_generator, aapt_fast.load_vae):
        assert same(
            load(tmp_path / "out", dtype=torch.bfloat16), load(tmp_path / "own.safetensors", dtype=torch.bfloat16)
        )
    assert aapt_fast.StreamModel.from_pretrained(result).config == STREAMS[kind]
    with pytest.raises(ValueError, match="config: expected none"):
        convert_files(tmp_path / "own.safetensors", tmp_path / "other", config={"heads": 2})


def test_a_result_can_be_converted_again(transformer, tmp_path):
    transformer.save_pretrained(tmp_path / "theirs")
    first = convert_files(tmp_path / "theirs", tmp_path / "half", dtype=torch.bfloat16)
    assert 0 < first["parts"]["generator"]["verified"]["largest_relative_difference"] <= 2**-8
    assert first["parts"]["generator"]["verified"]["tensors"] == "rounded"
    again = convert_files(tmp_path / "half", tmp_path / "again")
    assert again["parts"]["generator"]["verified"]["tensors"] == "equal"
    wide = convert_files(tmp_path / "half", tmp_path / "wide", dtype=torch.float32)
    assert wide["parts"]["generator"]["verified"]["tensors"] == "equal"  # float32 holds all of bfloat16
    states = [load_file(tmp_path / name / "model.safetensors") for name in ("half", "again")]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


# ---- what is refused, and what it leaves behind ----


@pytest.fixture
def source(transformer, tmp_path) -> Path:
    save_file(original(transformer), tmp_path / "wan.safetensors")
    return tmp_path / "wan.safetensors"


def test_a_destination_in_use_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    convert_files(source, tmp_path / "out", config=HEADS)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"out: expected a new or empty folder, got .*out with config.json, model"):
        convert_files(source, tmp_path / "out", config=HEADS)
    with pytest.raises(ValueError, match=r"out: expected a new or empty folder, got .*, which is no folder"):
        convert_files(source, source, config=HEADS)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")], ids=["ctrl-c", "disk full"])
def test_an_interrupted_conversion_leaves_nothing(source, tmp_path, monkeypatch, error):
    calls = []

    def save(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        save_file(*arguments)

    monkeypatch.setattr(shards, "save_file", save)
    with pytest.raises((KeyboardInterrupt, OSError)):
        convert_files(source, tmp_path / "out", config=HEADS, shard_bytes=30_000)
    assert len(calls) == 3 and not (tmp_path / "out").exists()


def damage(change) -> object:
    """`write_shards`, with a mistake in what it writes."""

    def write(folder, entries, **options):
        shards.write_shards(folder, entries, **options)
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return write


def one_value(state):
    state["blocks.1.ffn.0.weight"][3, 2] *= 1 + 2**-7


def swapped(state):
    a, b = "blocks.0.self_attn.q.weight", "blocks.0.self_attn.k.weight"
    state[a], state[b] = state[b], state[a]


def too_few(state):
    del state["blocks.1.norm3.bias"]


def too_many(state):
    state["wings"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_value, "blocks.1.ffn.0.weight: expected {}, blocks.1.ffn.0.weight in .*wan.safetensors, got .* for"),
        (swapped, "blocks.0.self_attn.[qk].weight: expected {}"),
        (too_few, "expected key blocks.1.norm3.bias, got none"),
        (too_many, "expected no key wings, got one"),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["exact", "rounded"])
def test_a_wrong_result_is_noticed(source, tmp_path, monkeypatch, change, message, dtype):
    monkeypatch.setattr(module, "write_shards", damage(change))
    expected = "its source rounded to torch.bfloat16" if dtype else "the values of its source"
    with pytest.raises(CheckpointError, match=message.format(expected)):
        convert_files(source, tmp_path / "out", config=HEADS, dtype=dtype)
    assert not (tmp_path / "out").exists()
    assert convert_files(source, tmp_path / "out", config=HEADS, verify=False)["parts"]["generator"]["verified"] is None


def test_a_wrong_configuration_in_the_result_is_noticed(source, tmp_path, monkeypatch):
    real = json.dumps
    monkeypatch.setattr(module.json, "dumps", lambda value, **options: real({**value, "eps": 1e-3}, **options))
    with pytest.raises(CheckpointError, match="expected WanConfig"):
        convert_files(source, tmp_path / "out", config=HEADS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (too_few, "wan.safetensors: expected key blocks.1.norm3.bias, got none"),
        (lambda state: state.update(wings=torch.ones(1)), "wan.safetensors: expected no key wings, got one"),
        (lambda state: state["head.head.bias"].fill_(1e38), "head.head.bias: expected finite values in torch.float16"),
        (lambda state: state.update({"head.head.bias": torch.ones(7)}), "head.head.bias: expected shape"),
    ],
)
def test_a_bad_source_is_refused(source, tmp_path, change, message):
    state = load_file(source)
    change(state)
    save_file(state, source)
    with pytest.raises(CheckpointError, match=message):
        convert_files(source, tmp_path / "out", config=HEADS, dtype=torch.float16)
    assert not (tmp_path / "out").exists()


def test_too_little_room_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"B of free space, got [\d.]+ ([KM]B|bytes)"):
        convert_files(source, tmp_path / "out", config=HEADS)
