# SPDX-License-Identifier: Apache-2.0
"""`load_vae`: tiny random models, written by diffusers and in the original layouts, load and give diffusers' video."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.models.vae.wan import WAN_2_2, WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_keys import WanVAEKeys
from aapt_fast.testing.compare import assert_near, relative_l2

CONFIGS = {
    "2.1": WanVAEConfig(base_dim=8),
    "2.2": dataclasses.replace(WAN_2_2, base_dim=8, decoder_base_dim=12),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLERANCE = 5e-5


@pytest.fixture(scope="module", params=CONFIGS)
def theirs(request, oracle) -> AutoencoderKLWan:
    torch.manual_seed(1)
    return oracle(CONFIGS[request.param])


@pytest.fixture(scope="module")
def theirs_2_1(oracle) -> AutoencoderKLWan:
    torch.manual_seed(1)
    return oracle(CONFIGS["2.1"])


def original(vae: AutoencoderKLWan) -> dict[str, Tensor]:
    """The weights under the names of the original code."""
    keys = WanVAEKeys(num_res_blocks=vae.config.num_res_blocks, is_residual=vae.config.is_residual)
    return {keys.to_original(name): tensor.contiguous() for name, tensor in vae.state_dict().items()}


# ---- every kind of file ----


def folder(vae: AutoencoderKLWan, path: Path) -> Path:
    vae.save_pretrained(path)
    return path


def file_in_folder(vae: AutoencoderKLWan, path: Path) -> Path:
    return folder(vae, path) / WEIGHTS


def sharded(vae: AutoencoderKLWan, path: Path) -> Path:
    vae.save_pretrained(path, max_shard_size="60KB")
    assert not (path / WEIGHTS).exists() and len(list(path.glob("*.safetensors"))) > 1
    return path


def pipeline(vae: AutoencoderKLWan, path: Path) -> Path:
    vae.save_pretrained(path / "vae")
    (path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return path


def from_the_future(vae: AutoencoderKLWan, path: Path) -> Path:
    vae.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"clip_output": False, "wings": 2}))
    return path


def original_pth(vae: AutoencoderKLWan, path: Path) -> Path:
    torch.save(original(vae), path / "Wan_VAE.pth")
    return path / "Wan_VAE.pth"


def original_folder(vae: AutoencoderKLWan, path: Path) -> Path:
    """As published: the transformer, with its configuration, in the same folder."""
    original_pth(vae, path)
    save_file({"blocks.0.ffn.0.weight": torch.ones(1)}, path / WEIGHTS)
    (path / "config.json").write_text('{"_class_name": "WanModel", "dim": 1536}')
    return path


def beside_an_unnamed_model(vae: AutoencoderKLWan, path: Path) -> Path:
    (path / "config.json").write_text('{"patch_size": [1, 2, 2], "dim_mult": 4}')
    return original_pth(vae, path)


def original_safetensors(vae: AutoencoderKLWan, path: Path) -> Path:
    save_file(original(vae), path / "wan_vae.safetensors")
    return path / "wan_vae.safetensors"


def wrapped(vae: AutoencoderKLWan, path: Path) -> Path:
    save_file({f"model.{name}": tensor for name, tensor in original(vae).items()}, path / "wan_vae.safetensors")
    return path / "wan_vae.safetensors"


def bare_diffusers(vae: AutoencoderKLWan, path: Path) -> Path:
    torch.save(vae.state_dict(), path / "weights.bin")
    return path / "weights.bin"


Writer = Callable[[AutoencoderKLWan, Path], Path]
KINDS: tuple[Writer, ...] = (
    folder, file_in_folder, sharded, pipeline, from_the_future, original_pth, original_folder,
    beside_an_unnamed_model, original_safetensors, wrapped, bare_diffusers,
)  # fmt: skip


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_every_kind_of_file_gives_the_same_vae(theirs: AutoencoderKLWan, tmp_path: Path, write: Writer) -> None:
    vae = aapt_fast.load_vae(write(theirs, tmp_path))
    assert isinstance(vae, WanVAE) and not vae.training
    config = CONFIGS["2.2" if theirs.config.is_residual else "2.1"]
    assert vae.config == dataclasses.replace(config, decoder_base_dim=config.decoder_base_dim or config.base_dim)
    assert vae.latent_channels == config.z_dim and vae.spatial_factor == (16 if config.is_residual else 8)
    state = vae.state_dict()
    for name, tensor in original(theirs).items():
        assert torch.equal(state.pop(name), tensor), name
    assert not state
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in (*vae.parameters(), *vae.buffers()))


def test_diffusers_knows_the_original_names_too(theirs_2_1: AutoencoderKLWan) -> None:
    converted = convert_wan_vae_to_diffusers(original(theirs_2_1))
    assert converted.keys() == theirs_2_1.state_dict().keys()
    for name, tensor in theirs_2_1.state_dict().items():
        assert torch.equal(converted[name], tensor), name


# ---- the loaded VAE against diffusers ----


def random_latents(vae: WanVAE, length: int = 4) -> Tensor:
    return torch.randn(1, vae.latent_channels, length, 3, 2)


def their_video(theirs: AutoencoderKLWan, latents: Tensor) -> Tensor:
    mean, std = (torch.tensor(theirs.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return theirs.decode((latents * std + mean).to(theirs.dtype)).sample


def test_decode_and_encode_equal_diffusers(theirs: AutoencoderKLWan, tmp_path: Path) -> None:
    vae = aapt_fast.load_vae(original_pth(theirs, tmp_path))
    latents = random_latents(vae)
    expected = their_video(theirs, latents)
    assert expected.std() > 0.05
    video = vae.decode(latents)
    assert_near(video, expected, TOLERANCE)
    stream = vae.stream()
    assert_near(torch.cat([stream.decode(z) for z in latents.split(1, dim=2)], dim=2), expected, TOLERANCE)
    mean, std = (torch.tensor(theirs.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert_near(vae.encode(expected), (theirs.encode(expected).latent_dist.mean - mean) / std, TOLERANCE)


def test_bfloat16_files(theirs: AutoencoderKLWan, tmp_path: Path) -> None:
    """Rounding to bfloat16 costs about what it costs diffusers. One small encoder, one video: theirs alone moves by a
    tenth with the number of threads."""
    path = original_safetensors(theirs, tmp_path)
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    half, exact = aapt_fast.load_vae(path), aapt_fast.load_vae(path, dtype=torch.float32)
    assert half.conv1.weight.dtype == torch.bfloat16 and exact.conv1.weight.dtype == torch.float32
    latents = random_latents(half)
    their_half = copy.deepcopy(theirs).bfloat16()
    expected = their_video(copy.deepcopy(their_half).float(), latents)
    assert_near(exact.decode(latents), expected, TOLERANCE)
    their_loss = relative_l2(their_video(their_half, latents), expected)
    assert relative_l2(half.decode(latents), expected) < 1.1 * their_loss < 0.03
    encoded = exact.encode(expected)
    their_mean = their_half.encode(expected.bfloat16()).latent_dist.mean.float()
    their_loss = relative_l2((their_mean - exact.latents_mean) / exact.latents_std, encoded)
    assert relative_l2(half.encode(expected), encoded) < 1.3 * their_loss < 0.03


@pytest.mark.parametrize("version", CONFIGS)
def test_bfloat16_gives_their_bfloat16(version: str, oracle, tmp_path: Path) -> None:
    """Most layers are equal bit for bit. A sum over channels in another order now and then moves a number to its
    neighbour, and what follows makes more of it: by chance up to the rounding error itself, mostly far less.
    """
    config = dataclasses.replace(CONFIGS[version], num_res_blocks=1)
    differences = []
    for seed in range(5):
        torch.manual_seed(seed)
        theirs = oracle(config).bfloat16()
        vae = aapt_fast.load_vae(original_safetensors(theirs, tmp_path))
        latents = random_latents(vae, 2)
        video = their_video(theirs, latents)
        differences.append(relative_l2(vae.decode(latents), video))
        assert differences[-1] < relative_l2(video, their_video(copy.deepcopy(theirs).float(), latents))
        mean = theirs.encode(video).latent_dist.mean.float()
        assert relative_l2(vae.encode(video), (mean - vae.latents_mean) / vae.latents_std) < 1.1e-2
    assert statistics.median(differences) < 1.1e-2


def test_statistics_of_the_latents_stay_wide(theirs_2_1: AutoencoderKLWan, tmp_path: Path) -> None:
    vae = aapt_fast.load_vae(original_safetensors(theirs_2_1, tmp_path))
    mean = vae.latents_mean.clone()
    moved = copy.deepcopy(vae).half().bfloat16()
    assert moved.latents_mean.dtype == torch.float32 and torch.equal(moved.latents_mean, mean)
    assert vae.double().latents_mean.dtype == torch.float64


def test_the_dtype_of_the_file(theirs_2_1: AutoencoderKLWan, tmp_path: Path) -> None:
    """float16 becomes float32 on the CPU; a few tensors of another dtype do not decide."""
    path = original_safetensors(theirs_2_1, tmp_path)
    tensors = load_file(path)
    for stored, loaded in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        mixed = {name: tensor.to(stored) for name, tensor in tensors.items()}
        save_file(mixed | {"conv2.bias": tensors["conv2.bias"]}, path)
        assert {parameter.dtype for parameter in aapt_fast.load_vae(path).parameters()} == {loaded}
    assert aapt_fast.load_vae(path, dtype=torch.bfloat16).conv2.bias.dtype == torch.bfloat16


def test_the_stream_in_five_lines(theirs: AutoencoderKLWan, tmp_path: Path) -> None:
    shown = []
    vae = aapt_fast.load_vae(original_pth(theirs, tmp_path))
    latents = random_latents(vae)
    stream = vae.stream()
    for z in latents.split(1, dim=2):
        shown.append(stream.decode(z, out="uint8"))
    factor = vae.spatial_factor
    assert [tuple(frames.shape) for frames in shown] == [(1, n, 3 * factor, 2 * factor, 3) for n in (1, 4, 4, 4)]
    expected = ((vae.decode(latents) + 1) * 127.5).round().permute(0, 2, 3, 4, 1)
    difference = (torch.cat(shown, dim=1).float() - expected).abs()
    assert difference.max() <= 1 and difference.mean() < 1e-3, "only what rounding may turn over"


# ---- this package's own files ----


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    tiny = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))
    StreamModel(Generator(NANO), MiniVAE(tiny).eval()).save_pretrained(tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


@pytest.mark.parametrize("bundled", [False, True])
def test_own_files_give_their_vae(own_file: Path, bundled: bool) -> None:
    source = "mini-person" if bundled else own_file
    vae, whole = aapt_fast.load_vae(source), aapt_fast.StreamModel.from_pretrained(source)
    assert isinstance(vae, MiniVAE) and not vae.training and vae.spatial_factor == 8
    latents = torch.randn(1, vae.latent_channels, 3, 2, 2)
    with torch.no_grad():
        assert torch.equal(vae.decode(latents), whole.vae.decode(latents))
    stream, same = vae.stream(), vae.stream()
    for count, z in zip((1, 4, 4), latents.split(1, dim=2), strict=True):
        frames, video = stream.decode(z, out="uint8"), same.decode(z)
        assert frames.shape == (1, count, 16, 16, 3) and frames.dtype == torch.uint8
        assert torch.equal(frames, ((video + 1) * 127.5).round().permute(0, 2, 3, 4, 1).to(torch.uint8))
    with pytest.raises(ValueError, match="out: expected 'float' or 'uint8', got 'png'"):
        stream.decode(latents[:, :, :1], out="png")
    assert aapt_fast.load_vae(source, dtype=torch.bfloat16).decode(latents).dtype == torch.bfloat16


def test_own_files_need_no_config(own_file: Path) -> None:
    with pytest.raises(ValueError, match="config: expected none: the file holds its configuration"):
        aapt_fast.load_vae(own_file, config={"z_dim": 16})
    tensors = load_file(own_file)
    tensors.pop("vae.latent_std")
    save_file(tensors, own_file, {"format": "aapt_fast-1", "config": "{}"})
    with pytest.raises(CheckpointError, match="expected readable configurations in the metadata"):
        aapt_fast.load_vae(own_file)


# ---- configurations ----


@pytest.fixture
def unpublished(oracle, tmp_path: Path) -> Path:
    """A VAE with three latent channels and nothing beside it."""
    theirs = oracle(WanVAEConfig(base_dim=4, z_dim=3, latents_mean=(1, 2, 3), latents_std=(4, 5, 6)))
    return original_pth(theirs, tmp_path)


def test_statistics_come_from_the_configuration(unpublished: Path) -> None:
    with pytest.raises(CheckpointError, match="expected latents_mean and latents_std in a config for 3 latent"):
        aapt_fast.load_vae(unpublished)
    statistics = {"latents_mean": [1.0, 2, 3], "latents_std": [4.0, 5, 6]}
    vae = aapt_fast.load_vae(unpublished, config=statistics)
    assert vae.config.latents_std == (4, 5, 6) and vae.latents_mean.flatten().tolist() == [1, 2, 3]
    unpublished.with_name("config.json").write_text(json.dumps(statistics))
    assert aapt_fast.load_vae(unpublished).config == vae.config


CONTRADICTIONS: dict[str, tuple[dict, str]] = {
    "width": ({"base_dim": 96}, "base_dim: expected 8 as in the tensors, got 96 in config"),
    "time": ({"temperal_downsample": [True, True, False]}, r"temperal_downsample: expected \(False, True, True\)"),
    "kind": ({"is_residual": True}, "is_residual: expected False as in the tensors, got True in config"),
    "blocks": ({"patch_size": 2}, "patch_size: expected 1 as in the tensors, got 2 in config"),
    "colours": ({"in_channels": 12}, "in_channels: expected 3 as in the tensors, got 12 in config"),
    "decoder": ({"decoder_base_dim": 9}, "decoder_base_dim: expected 8 as in the tensors, got 9 in config"),
    "attention": ({"attn_scales": [1.0]}, r"attn_scales: expected \(\) as in the tensors"),
    "count": ({"latents_mean": [0.0]}, r"latents_mean: expected \(-0.7571, .* in config.json, got \(0.0,\) in config"),
    "statistics": ({"latents_std": [1.0] * 16}, r"latents_std: expected .* as in config.json, got .* in config"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused(theirs_2_1: AutoencoderKLWan, tmp_path: Path, name: str) -> None:
    config, message = CONTRADICTIONS[name]
    folder(theirs_2_1, tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        aapt_fast.load_vae(tmp_path, config=config)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("bad", [[0.0, 1, 1], [1.0], 3])
def test_statistics_that_make_no_sense(unpublished: Path, bad: object) -> None:
    with pytest.raises(CheckpointError, match=r"expected a configuration that fits together, got .*latents_std|int"):
        aapt_fast.load_vae(unpublished, config={"latents_mean": [1.0, 2, 3], "latents_std": bad})


def test_what_agrees_is_welcome(theirs: AutoencoderKLWan, tmp_path: Path) -> None:
    vae = aapt_fast.load_vae(folder(theirs, tmp_path), config=dict(theirs.config))
    assert vae.latent_channels == theirs.config.z_dim


def test_a_slip_in_the_configuration_is_noticed(theirs_2_1: AutoencoderKLWan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config: expected entries among .*latents_mean.*, got latent_mean"):
        aapt_fast.load_vae(folder(theirs_2_1, tmp_path), config={"latent_mean": [0.0] * 16})


def test_another_autoencoder_is_refused(theirs_2_1: AutoencoderKLWan, tmp_path: Path) -> None:
    config = json.loads((folder(theirs_2_1, tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKLQwenImage"}))
    for path in (tmp_path, tmp_path / WEIGHTS):
        with pytest.raises(CheckpointError, match="_class_name: expected AutoencoderKLWan, got AutoencoderKLQwenImage"):
            aapt_fast.load_vae(path)


# ---- bad files ----

HEAD = {"original": "decoder.head.2.weight", "diffusers": "decoder.conv_out.weight"}


def edit(change: Callable[[dict[str, Tensor], str], object]) -> Callable[[Path, str], object]:
    """A damage that changes the tensors; `change` is given the name of the last convolution."""

    def damage(path: Path, layout: str) -> None:
        tensors = load_file(path)
        change(tensors, HEAD[layout])
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    return damage


class Exploit:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('executed')",)


BAD: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "truncated": (lambda path, _: path.write_bytes(path.read_bytes()[:-9]), "expected a whole safetensors file"),
    "empty": (lambda path, _: path.write_bytes(b""), "got an empty file"),
    "web page": (lambda path, _: path.write_text("<html>login</html>"), "got a web page"),
    "git-lfs pointer": (
        lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1"),
        "git-lfs pointer",
    ),
    "huge header": (lambda path, _: path.write_bytes(b"\xff" * 7 + b"\x7f{}"), "expected a whole safetensors file"),
    "pickle with code": (
        lambda path, _: torch.save({"x": Exploit()}, path),
        "a pickle under a name of safetensors; to read tensors from it, name it .pt",
    ),
    "missing key": (edit(lambda tensors, head: tensors.pop(head)), "expected key {head}, got none"),
    "extra key": (edit(lambda tensors, head: tensors.update({"more": torch.ones(1)})), "more: expected|no key more"),
    "wrong shape": (
        edit(lambda tensors, head: tensors.update({head: tensors[head][:, :7]})),
        r"{head}: expected shape \[3, 8, 3, 3, 3\], got \[3, 7, 3, 3, 3\]",
    ),
    "not finite": (edit(lambda tensors, head: tensors[head].fill_(torch.inf)), "{head}: expected finite values"),
    "another model": (
        edit(lambda tensors, head: (tensors.clear(), tensors.update(a=torch.ones(1)))),
        "expected the tensors of a Wan VAE",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("layout", HEAD)
def test_a_bad_file_is_refused(theirs_2_1: AutoencoderKLWan, tmp_path: Path, layout: str, name: str) -> None:
    path = (file_in_folder if layout == "diffusers" else original_safetensors)(theirs_2_1, tmp_path)
    damage, message = BAD[name]
    damage(path, layout)
    with pytest.raises(CheckpointError, match=message.replace("{head}", HEAD[layout])) as caught:
        aapt_fast.load_vae(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_missing_or_misshapen_tensor_is_named(oracle, tmp_path: Path, kind: str) -> None:
    """A file is told by the majority of its shapes: one bad tensor never makes another model of it.

    Every other tensor of those that are tried is missing, the rest are too long.
    """
    path = original_safetensors(oracle(dataclasses.replace(CONFIGS[kind], num_res_blocks=1)), tmp_path)
    whole = load_file(path)
    for number, (name, tensor) in enumerate(list(whole.items())[::7]):
        longer = torch.cat([tensor, tensor])
        if number % 2:
            save_file({key: value for key, value in whole.items() if key != name}, path)
            message = f"expected key {name}, got none"
        else:
            save_file(whole | {name: longer}, path)
            message = f"{name}: expected shape {list(tensor.shape)}, got {list(longer.shape)}"
        with pytest.raises(CheckpointError) as caught:
            aapt_fast.load_vae(path)
        assert message in str(caught.value), (name, str(caught.value))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a file, .* bundled model \(mini-anyone, mini-person"):
        aapt_fast.load_vae(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"expected a file, .* with a VAE, got an empty folder"):
        aapt_fast.load_vae(tmp_path)


def test_a_shard_is_missing(theirs_2_1: AutoencoderKLWan, tmp_path: Path) -> None:
    lost = sorted(sharded(theirs_2_1, tmp_path).glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"expected the file {lost.name} beside it, got none"):
        aapt_fast.load_vae(tmp_path)
    shutil.rmtree(tmp_path)


def test_odd_heights_are_refused_not_floored(theirs: AutoencoderKLWan, tmp_path: Path) -> None:
    vae = aapt_fast.load_vae(original_pth(theirs, tmp_path))
    factor = vae.spatial_factor
    with pytest.raises(ValueError, match=f"video: expected height and width multiples of {factor}, got"):
        vae.encode(torch.zeros(1, 3, 5, 2 * factor + factor // 2, factor))
