# SPDX-License-Identifier: Apache-2.0
"""Generators from every kind of file, against diffusers; and files that are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.models.wan.infer_config import wan_config
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops.window import WindowRule
from aapt_fast.testing.compare import assert_near, relative_l2
from aapt_fast.testing.streams import random_model
from aapt_fast.testing.wan import WAN_KINDS, diffusers_config, from_diffusers_state_dict, random_wan

State = dict[str, Tensor]
KINDS = ["t2v", "i2v", "ti2v", "plain"]
NAME = "diffusion_pytorch_model.safetensors"


def oracle(config: WanConfig) -> WanTransformer3DModel:
    torch.manual_seed(1)
    model = WanTransformer3DModel(**diffusers_config(config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval().requires_grad_(False)


def inputs(config: WanConfig) -> State:
    torch.manual_seed(2)
    given = {
        "hidden_states": torch.randn(1, config.in_channels, 2, 4, 6),
        "timestep": torch.tensor([625.0]),
        "encoder_hidden_states": torch.randn(1, 512, config.text_width),
    }
    if config.image_width:
        given["encoder_hidden_states_image"] = torch.randn(1, 5, config.image_width)
    return given


# ---- how others save them ----


def diffusers_folder(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    theirs.save_pretrained(path)
    return path, None


def diffusers_shards(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    theirs.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path, None


def pipeline_folder(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    """With an unknown key in the configuration."""
    theirs.save_pretrained(path / "transformer")
    (path / "model_index.json").write_text("{}")
    file = path / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"of_a_later_version": [1, 2]}))
    return path, None


def original(theirs: WanTransformer3DModel) -> State:
    return {name: value.contiguous() for name, value in from_diffusers_state_dict(theirs.state_dict()).items()}


def original_folder(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    """As Wan's own repositories: other names in the configuration too."""
    save_file(original(theirs), path / NAME)
    said = theirs.config
    config = {"_class_name": "WanModel", "dim": said.num_attention_heads * said.attention_head_dim, "text_len": 512}
    config |= {"num_heads": said.num_attention_heads, "num_layers": said.num_layers, "model_type": "t2v"}
    config |= {"in_dim": said.in_channels, "out_dim": said.out_channels, "ffn_dim": said.ffn_dim, "eps": said.eps}
    (path / "config.json").write_text(json.dumps(config))
    return path, None


def original_shards(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    """Two files and an index, no configuration."""
    state = original(theirs)
    place = {
        name: f"diffusion_pytorch_model-0000{1 + name.startswith('blocks.')}-of-00002.safetensors" for name in state
    }
    for file in set(place.values()):
        save_file({name: value for name, value in state.items() if place[name] == file}, path / file)
    (path / f"{NAME}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return path, {"num_heads": theirs.config.num_attention_heads, "eps": theirs.config.eps}


def bare_file(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    save_file(original(theirs), path / "any.safetensors")
    return path / "any.safetensors", {"num_heads": theirs.config.num_attention_heads, "eps": theirs.config.eps}


def self_forcing(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    """Both groups, the one of the moving average in float32 and with the prefixes of training."""
    ema = {f"model._fsdp_wrapped_module.{name}": value for name, value in original(theirs).items()}
    ema = {name.replace(".ffn", "._checkpoint_wrapped_module.ffn"): value for name, value in ema.items()}
    plain = {f"model.{name}": torch.zeros_like(value).bfloat16() for name, value in original(theirs).items()}
    torch.save({"generator": plain, "generator_ema": ema}, path / "self_forcing_dmd.pt")
    settings = {"num_attention_heads": theirs.config.num_attention_heads, "eps": theirs.config.eps}
    return path / "self_forcing_dmd.pt", settings


def compiled(theirs: WanTransformer3DModel, path: Path) -> tuple[Path, dict | None]:
    """Only `generator`, diffusers' names, prefixes of torch.compile."""
    state = {f"_orig_mod.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"generator": state}, path / "model.pt")
    return path / "model.pt", {"heads": theirs.config.num_attention_heads, "eps": theirs.config.eps}


WAYS = [
    diffusers_folder,
    diffusers_shards,
    pipeline_folder,
    original_folder,
    original_shards,
    bare_file,
    self_forcing,
    compiled,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_diffusers(tmp_path, kind, way):
    config = WAN_KINDS[kind]
    theirs = oracle(config)
    path, settings = way(theirs, tmp_path)
    ours = aapt_fast.load_generator(path, config=settings)
    given = inputs(config)
    assert_near(ours(**given), theirs(**given).sample, 5e-5)
    assert not ours.training and ours.patch_embedding.weight.dtype == torch.float32
    for field in ("heads", "head_dim", "layers", "in_channels", "out_channels", "image_width", "cross_norm", "eps"):
        assert getattr(ours.config, field) == getattr(config, field)


def test_half_precision_equals_diffusers(tmp_path):
    theirs = oracle(WAN_KINDS["t2v"])
    theirs.save_pretrained(tmp_path)
    given = inputs(WAN_KINDS["t2v"])
    expected = theirs(**given).sample
    ours = aapt_fast.load_generator(tmp_path, dtype=torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in ours.state_dict().items()}
    assert kinds["blocks.0.ffn.0.weight"] == kinds["patch_embedding.weight"] == torch.bfloat16
    assert kinds["blocks.1.modulation"] == kinds["head.modulation"] == kinds["blocks.0.norm3.weight"] == torch.float32
    assert kinds["time_embedding.0.weight"] == torch.float32
    half = {name: value if name == "timestep" else value.bfloat16() for name, value in given.items()}
    actual = ours(**half)
    assert actual.dtype == torch.bfloat16
    assert relative_l2(actual, expected) < 1.1e-2


def test_dtype_of_the_file_is_kept(tmp_path):
    save_file({name: value.bfloat16() for name, value in random_wan().state_dict().items()}, tmp_path / NAME)
    ours = aapt_fast.load_generator(tmp_path, config={"num_heads": 3})
    assert ours.patch_embedding.weight.dtype == torch.bfloat16
    assert aapt_fast.load_generator(tmp_path, dtype=torch.float32, config={"num_heads": 3}).head.head.bias.dtype == (
        torch.float32
    )


def test_heads_of_a_bare_file_are_128_wide(tmp_path):
    save_file(random_wan(WAN_KINDS["one head of 128"]).state_dict(), tmp_path / NAME)
    ours = aapt_fast.load_generator(tmp_path / NAME)
    assert (ours.config.heads, ours.config.head_dim) == (1, 128)


def test_what_frames_see_is_said_by_the_user(tmp_path):
    save_file(random_wan().state_dict(), tmp_path / NAME)
    settings = {"num_heads": 3, "num_frame_per_block": 2, "local_attn_size": 9, "sink_size": 1}
    assert aapt_fast.load_generator(tmp_path, config=settings).config.window_rule == WindowRule(2, 6, 1)
    settings["local_attn_size"] = -1
    assert aapt_fast.load_generator(tmp_path, config=settings).config.window_rule == WindowRule(2, None, 1)


def test_norms_that_nobody_uses_are_passed_over(tmp_path):
    theirs = oracle(WAN_KINDS["i2v"])
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / NAME)
    save_file(state | {"blocks.0.attn2.norm_added_q.weight": torch.ones(32)}, tmp_path / NAME)
    given = inputs(WAN_KINDS["i2v"])
    assert_near(aapt_fast.load_generator(tmp_path)(**given), theirs(**given).sample, 5e-5)


# ---- our own ----


def test_our_own(tmp_path):
    model = random_model(NANO)
    model.save_pretrained(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        generator = aapt_fast.load_generator(path)
        assert isinstance(generator, Generator) and generator.config == NANO
        assert torch.equal(generator.patch_embed.weight, model.generator.patch_embed.weight.half().float())
    with pytest.raises(ValueError, match="config: expected None"):
        aapt_fast.load_generator(tmp_path, config={"heads": 2})


def test_a_bundled_name():
    expected = aapt_fast.StreamModel.from_pretrained("mini-person").generator.state_dict()
    actual = aapt_fast.load_generator("mini-person").state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


# ---- refused ----


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def with_(**tensors: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name.replace("__", "."): value for name, value in tensors.items()}


WIDE = torch.zeros(48, 49)
BAD_TENSORS = {
    "missing": (without("blocks.1.ffn.2.bias"), {}, r"any.safetensors: expected key blocks.1.ffn.2.bias, got none"),
    "missing modulation": (without("head.modulation"), {}, "expected key head.modulation, got none"),
    "no patches": (without("patch_embedding.weight"), {}, "expected key patch_embedding.weight, as Wan transformers"),
    "no block": (lambda s: {n: t for n, t in s.items() if "blocks" not in n}, {}, "expected key blocks.0.ffn.0.weight"),
    "extra": (with_(blocks__0__ffn__3__weight=WIDE), {}, "expected no key blocks.0.ffn.3.weight, got one"),
    "extra trunk": (with_(decoder__weight=WIDE), {}, "expected no key decoder.weight, got one"),
    "shape": (with_(blocks__0__self_attn__q__weight=WIDE), {}, r"q.weight: expected shape \[48, 48\], got \[48, 49\]"),
    "dimensions": (with_(head__head__weight=torch.zeros(3)), {}, "head.head.weight: expected 2 dimensions"),
    "patch": (with_(patch_embedding__weight=torch.zeros(48, 16, 1, 4, 4)), {}, r"a patch of \[1, 2, 2\], got \[1, 4"),
    "rows": (with_(head__head__weight=torch.zeros(63, 48)), {}, "expected a multiple of 4 rows, got 63"),
    "nan": (with_(head__head__bias=torch.full((64,), torch.nan)), {}, "head.head.bias: expected finite values"),
    "heads": (dict, {"num_heads": 5}, "heads: expected a divisor of its width 48, got 5"),
    "heads unsaid": (
        dict,
        None,
        "head_dim: expected a divisor of its width 48, got 128; give the number",
    ),
    "heads x head_dim": (dict, {"num_heads": 3, "head_dim": 8}, "heads: expected 48 = heads x head_dim.*got 3 x 8"),
    "layers": (dict, {"num_heads": 3, "num_layers": 3}, "num_layers: expected 2 as in the tensors, got 3"),
    "width": (dict, {"num_heads": 3, "dim": 64}, "dim: expected 48 as in the tensors, got 64"),
    "odd heads": (dict, {"num_heads": 16}, "head_dim: expected a positive even number, got 3"),
    "eps": (dict, {"num_heads": 3, "eps": 0.0}, "eps: expected a positive number"),
    "window": (dict, {"num_heads": 3, "local_attn_size": 2}, r"local_attn_size: expected 3 or more frames \(sink_size"),
    "window in words": (dict, {"num_heads": 3, "local_attn_size": "all"}, "local_attn_size: .* or -1 for all, got all"),
    "sink": (dict, {"num_heads": 3, "sink_size": -2}, "got sink_size: expected a whole number from 0 on, got -2"),
    "block": (dict, {"num_heads": 3, "num_frame_per_block": 0}, "got num_frame_per_block: expected .* 1 on, got 0"),
    "prompt": (dict, {"num_heads": 3, "text_len": 0}, "got text_len: expected at least 1, got 0"),
    "norm": (
        dict,
        {"num_heads": 3, "qk_norm": "layer_norm"},
        "qk_norm: expected rms_norm_across_heads as in the tensors",
    ),
}


@pytest.mark.parametrize(("change", "config", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors(tmp_path, change, config, message):
    save_file(change(dict(random_wan().state_dict())), tmp_path / "any.safetensors")
    config = {"num_heads": 3, **config} if config is not None and "num_heads" not in config else config
    with pytest.raises(CheckpointError, match=message) as error:
        aapt_fast.load_generator(tmp_path / "any.safetensors", config=config)
    assert "any.safetensors" in str(error.value)


def test_an_incomplete_image_model_is_no_text_model(tmp_path):
    state = dict(random_wan(WAN_KINDS["i2v"]).state_dict())
    save_file(without("img_emb.proj.1.weight")(state), tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"expected key img_emb.proj.1.weight, .*got none"):
        aapt_fast.load_generator(tmp_path, config={"heads": 2})


def test_the_names_of_the_file_are_reported(tmp_path):
    """Also where they are not ours: a missing key in diffusers' layout, an unknown one behind prefixes."""
    theirs = oracle(WAN_KINDS["t2v"])
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / NAME)
    some = ("blocks.1.norm2.weight", "blocks.0.scale_shift_table", "scale_shift_table", "blocks.0.attn1.to_q.bias")
    for key in (*some, "proj_out.weight", "condition_embedder.text_embedder.linear_1.weight"):
        save_file(without(key)(state), tmp_path / NAME)
        with pytest.raises(CheckpointError, match=f"expected key {key}, .*got none"):
            aapt_fast.load_generator(tmp_path)
    save_file(state | {"blocks.0.attn3.to_q.bias": torch.zeros(48)}, tmp_path / NAME)
    with pytest.raises(CheckpointError, match=r"expected no key blocks.0.attn3.to_q.bias, got one"):
        aapt_fast.load_generator(tmp_path)
    (tmp_path / NAME).unlink()
    wrapped = {f"model.{name}": value for name, value in original(theirs).items()}
    torch.save({"generator": wrapped | {"head.head.bias": torch.zeros(64)}}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"one tensor head.head.bias, got model.head.head.bias and"):
        aapt_fast.load_generator(tmp_path / "model.pt", config={"heads": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_attention_heads": 4, "attention_head_dim": 12, "num_heads": 3},
            "num_heads: expected 4 as in num_attention_heads of its config.json, got 3 in its config.json",
        ),
        ({"num_attention_heads": 4}, "heads: expected 48 = heads x head_dim, as its tensors say, got 4 x 16"),
        ({"num_layers": 7}, "num_layers: expected 2 as in the tensors, got 7"),
        ({"in_channels": 36}, "in_channels: expected 16 as in the tensors, got 36"),
        ({"ffn_dim": 81}, "ffn_dim: expected 80 as in the tensors, got 81"),
        ({"image_dim": 1280}, "image_dim: expected 0 as in the tensors, got 1280"),
        ({"cross_attn_norm": False}, "cross_attn_norm: expected True as in the tensors, got False"),
        ({"patch_size": [1, 1, 1]}, r"patch_size: expected \(1, 2, 2\) as in the tensors, got \(1, 1, 1\)"),
        ({"eps": "small"}, "expected the configuration of a Wan transformer"),
    ],
)
def test_contradicting_configurations(tmp_path, change, message):
    oracle(WAN_KINDS["t2v"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        aapt_fast.load_generator(tmp_path)


def test_the_user_contradicts_the_configuration(tmp_path):
    oracle(WAN_KINDS["t2v"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"heads: expected 3 as in .* of its config.json, got 6 in config"):
        aapt_fast.load_generator(tmp_path, config={"heads": 6})
    with pytest.raises(ValueError, match=r"config: expected names out of .*, got number_of_heads"):
        aapt_fast.load_generator(tmp_path, config={"number_of_heads": 6})


def test_other_frames_than_those_of_the_configuration(tmp_path):
    """They are for the sampler of a session to say, and the message shows how."""
    oracle(WAN_KINDS["t2v"]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"local_attn_size": 21}))
    message = (
        r"local_attn_size: expected 21 as in local_attn_size of its config.json, got 4 in config; .*WindowRule\(frames"
    )
    with pytest.raises(CheckpointError, match=message):
        aapt_fast.load_generator(tmp_path, config={"local_attn_size": 4})


def test_a_model_without_a_window_names_the_remedy(tmp_path):
    model = random_wan(WAN_KINDS["one head of 128"])
    save_file(model.state_dict(), tmp_path / NAME)
    save_file(
        {k: v.contiguous() for k, v in WanVAE(WanVAEConfig(base_dim=4)).state_dict().items()}, tmp_path / "vae.pt"
    )
    (tmp_path / "config.json").write_text('{"local_attn_size": -1, "sink_size": 1}')
    model = aapt_fast.StreamModel.from_pretrained(tmp_path / NAME, vae=tmp_path / "vae.pt", grid=(4, 4))
    prompt = torch.zeros(2, 16)
    example = r"sampler=(FewStepSampler\(window=WindowRule\(frames=3, window=18, sink=1\)\))"
    with pytest.raises(
        ValueError, match=rf"^window: expected a number of past frames, .*{example}, got None"
    ) as caught:
        aapt_fast.StreamSession(model, prompt=prompt)
    written = re.search(example, str(caught.value))[1]
    sampler = eval(written, {name: getattr(aapt_fast, name) for name in ("FewStepSampler", "WindowRule")})
    with aapt_fast.StreamSession(model, prompt=prompt, sampler=sampler) as session:
        assert session.sampler.rule(model.generator) == WindowRule(3, 18, 1)


@pytest.mark.parametrize("experts", [("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")])
def test_one_of_two_experts_is_not_chosen_silently(tmp_path, experts):
    theirs = oracle(WAN_KINDS["t2v"])
    for number, name in enumerate(experts):
        theirs.patch_embedding.bias.fill_(number)
        (tmp_path / name).mkdir()
        _, config = bare_file(theirs, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"expected one transformer, got {' and '.join(experts)}; name one"):
        aapt_fast.load_generator(tmp_path, config=config)
    for number, name in enumerate(experts):
        model = aapt_fast.load_generator(tmp_path / name, config=config)
        assert (model.patch_embedding.bias == number).all()


def test_other_files(tmp_path):
    for name in ("no such file", "no-such-model"):
        with pytest.raises(CheckpointError, match=name):
            aapt_fast.load_generator(name)
    save_file(
        {"patch_embedding.weight": torch.zeros(4, 4, 1, 2, 2, dtype=torch.float8_e4m3fn)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"a.safetensors"):
        aapt_fast.load_generator(tmp_path)
    save_file({n: t.to(torch.float8_e4m3fn) for n, t in random_wan().state_dict().items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a.safetensors: expected torch.float32 or .*, got torch.float8_e4m3fn"):
        aapt_fast.load_generator(tmp_path, config={"heads": 3})
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"got a folder with a.safetensors, b.safetensors; name one of them"):
        aapt_fast.load_generator(tmp_path)


class Code:
    """Runs when it is unpickled without care."""

    def __reduce__(self):
        return (print, ("executed",))


BAD_FILES = {
    "empty": b"",
    "web page": b"<!DOCTYPE html><html>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "huge header": b"\xff\xff\xff\xff\xff\xff\xff\x7f{",
    "noise": bytes(range(200, 256)),
}


@pytest.mark.parametrize("content", [*BAD_FILES.values(), "truncated", "code"], ids=[*BAD_FILES, "truncated", "code"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_damaged_files(tmp_path, name, content, capsys):
    path = tmp_path / name
    if content == "code":
        torch.save({"generator": {"x": Code()}}, path)
    elif content == "truncated":
        state = random_wan().state_dict()
        torch.save(state, path) if name.endswith("pt") else save_file(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        aapt_fast.load_generator(path, config={"heads": 3})
    assert "executed" not in capsys.readouterr().out


def test_published_configurations_are_recognised():
    """From the shapes alone: every published model has heads of 128."""
    for config in (WanConfig(), WanConfig(heads=40, layers=40, ffn_width=13824, in_channels=36, image_width=1280)):
        with torch.device("meta"):
            state = WanTransformer(config).state_dict()
        assert wan_config(state, "file") == config
