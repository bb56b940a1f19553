# SPDX-License-Identifier: Apache-2.0
"""What a user gives instead of a model is recognised, by every loader, with the next thing to do."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.files import read
from aapt_fast.models.files.convert import convert_files
from aapt_fast.models.files.recognise import recognise, recognise_tensors
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.testing.wan import TINY, random_wan

LOADERS: dict[str, Callable[[str | Path, Path], object]] = {
    "load_generator": lambda path, out: aapt_fast.load_generator(path),
    "load_vae": lambda path, out: aapt_fast.load_vae(path),
    "from_pretrained": lambda path, out: aapt_fast.StreamModel.from_pretrained(path),
    "vae=": lambda path, out: aapt_fast.StreamModel.from_pretrained("mini-person", vae=path),
    "lora=": lambda path, out: aapt_fast.load_generator(wan_file(out), config={"heads": TINY.heads}, lora=path),
    "convert": lambda path, out: convert_files(path, out / "converted"),
    "patch": lambda path, out: aapt_fast.patch(path),
    "explain": lambda path, out: aapt_fast.explain(path),
}


def wan_file(folder: Path) -> Path:
    path = folder / "wan.safetensors"
    folder.mkdir(exist_ok=True)
    if not path.exists():
        save_file(random_wan().state_dict(), path)
    return path


def named(*names: str) -> Callable[[Path], Path]:
    """A safetensors file with these tensors."""

    def write(folder: Path) -> Path:
        save_file({name: torch.ones(2) for name in names}, folder / "model.safetensors")
        return folder / "model.safetensors"

    return write


def holding(content: bytes, name: str = "model.safetensors") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def folder_of(*names: str) -> Callable[[Path], Path]:
    """A folder with these files, or empty folders where a name ends in a slash."""

    def write(folder: Path) -> Path:
        for name in names:
            path = folder / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        return folder

    return write


def dangling(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to("../blobs/0123")
    return folder / "model.safetensors"


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("model.safetensors", b"")
    return folder / "model.zip"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def array(folder: Path) -> Path:
    numpy.save(folder / "model.npy", numpy.ones(2))
    return folder / "model.npy"


def torchscript(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl"):
            archive.writestr(name, b"")
    return folder / "model.pt"


HUB = "Wan-AI/Wan2.1-T2V-1.3B"
CASES: dict[str, tuple[Callable[[Path], str | Path], str]] = {
    "hub identifier": (lambda _: HUB, f"identifier of the Hugging Face hub.*hf download {HUB} --local-dir"),
    "URL": (lambda _: "https://huggingface.co/a/b.safetensors", "a URL, .*; download the file and give its path"),
    "file URL": (lambda _: "file:///models/wan.pt", "a URL; give the path without file://: /models/wan.pt"),
    "slip": (lambda _: "mini_person", "nothing there; did you mean mini-person"),
    "slip in a folder": (lambda folder: named("x")(folder).with_name("modle.safetensors"), "you mean model.safeten"),
    "preset": (
        lambda _: "aapt-8b",
        r"a preset without public weights; aapt_fast.list_models\(\) names .*find_system\('aapt-8b'\).build\(",
    ),
    "nothing": (lambda folder: folder / "no" / "model.pt", "got .*nothing there"),
    "home": (lambda _: "~nobody/wan.pt", "nothing there; ~ is not expanded here; give "),
    "name too long": (lambda _: "x" * 5000, "cannot be opened .File name too long"),
    "zero byte": (lambda _: "a\0b", "no path"),
    "dangling link": (dangling, "a link to ../blobs/0123, which is not there; download it again"),
    "folder of dangling links": (lambda folder: dangling(folder).parent, "links to files that are not there"),
    "pipe": (pipe, "neither a file nor a folder"),
    "hub cache": (folder_of("models--a--b/", "version.txt"), "cache of the hub, with 1 models; give .*models--a--b"),
    "repository in the cache": (folder_of("blobs/", "snapshots/abc/"), "cache of one model.*snapshots/abc"),
    "empty folder": (folder_of(), "an empty folder"),
    "other folder": (folder_of("README.md"), "none in this folder .README.md"),
    "folder of folders": (folder_of("fp8/a.pt", "fp16/a.pt"), "a folder of folders .fp16, fp8.; name the one"),
    "shards without index": (
        folder_of("m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"),
        "2 of 3 shards of one model; download m-00002-of-00003.safetensors, m.safetensors.index.json as well",
    ),
    "several files": (folder_of("a.safetensors", "b.safetensors"), "a.safetensors, b.safetensors; name one"),
    "web page": (holding(b"\n<!doctype html>"), "a web page, .*; download the file itself"),
    "git-lfs pointer": (holding(b"version https://git-lfs.github.com/spec/v1\noid"), "pointer, .*`git lfs pull`"),
    "empty": (holding(b""), "an empty file; download it again"),
    "zeros": (holding(bytes(1000)), "begins with zeros"),
    "truncated": (holding((100).to_bytes(8, "little") + b'{"a"'), "part of a safetensors file: its 12 bytes end"),
    "GGUF": (holding(b"GGUF\3\0\0\0", "model.gguf"), "GGUF.*; take the model's safetensors files"),
    "folder with GGUF": (folder_of("Q4.gguf"), "GGUF"),
    "JSON": (holding(b'{"error": "Unauthorized"}'), "JSON beginning with '.\"error"),
    "text": (holding(b"root:x:0:0:root:/root:/bin/sh\n", "passwd"), "text beginning with 'root:"),
    "picture": (holding(b"\x89PNG\r\n\x1a\n", "model.png"), "a picture or video; give the file with"),
    "video": (holding(b"\0\0\0\x20ftypisom", "model.mp4"), "a picture or video"),
    "archive": (holding(b"\x1f\x8b\x08", "model.tar.gz"), "an archive; unpack it"),
    "zip": (zipped, "a zip archive with model.safetensors; unpack it"),
    "TorchScript": (torchscript, "a TorchScript program"),
    "NumPy": (array, "a NumPy array"),
    "noise": (holding(bytes(range(200, 256))), "one beginning with"),
    "text encoder": (
        named("encoder.block.0.layer.0.SelfAttention.q.weight"),
        "text or image encoder; in Python, TextEncoder",
    ),
    "language model": (named("model.layers.0.self_attn.q_proj.weight"), "text or image encoder"),
    "VACE": (named("vace_blocks.0.norm.weight", "patch_embedding.weight"), "VACE transformer, which is not"),
    "another family": (named("double_blocks.0.img_attn.proj.weight"), "diffusion model of another family"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_says_what_it_got(tmp_path: Path, loader: str) -> None:
    for number, (name, (write, message)) in enumerate(CASES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises((ValueError, TypeError), match=message):
            pytest.fail(f"{loader} took {name}: {LOADERS[loader](write(folder), tmp_path / 'out')}")
    assert not (tmp_path / "out" / "converted").exists()


LORA = "diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_B.weight"
MISPLACED = {
    "LoRA": (named(*LORA), "a LoRA file .*; in Python, load_generator merges it .*, as lora=", ("lora=",)),
    "VAE": (
        named("decoder.conv1.weight"),
        "VAE without a generator; in Python, load_vae",
        ("load_vae", "vae=", "convert"),
    ),
    "transformer": (
        wan_file,
        "Wan transformer without a VAE; in Python, load_generator",
        ("load_generator", "convert"),
    ),
    "own": (lambda _: "mini-person", "model of this package; in Python, StreamModel", (*tuple(LOADERS)[:5], "convert")),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_a_model_in_the_wrong_place_is_named_with_its_reader(tmp_path: Path, name: str) -> None:
    write, message, readers = MISPLACED[name]
    path = write(tmp_path)
    for loader in LOADERS.keys() - set(readers) - {"patch", "explain"}:
        with pytest.raises(CheckpointError, match=message):
            pytest.fail(f"{loader}: {LOADERS[loader](path, tmp_path / 'out')}")


def test_a_single_shard_is_no_model(tmp_path: Path) -> None:
    path = wan_file(tmp_path).rename(tmp_path / "m-00001-of-00002.safetensors")
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"head.head.bias": path.name}}))
    with pytest.raises(CheckpointError, match="expected a whole model, got one of its shards; give the folder"):
        aapt_fast.load_generator(path)
    with pytest.raises(CheckpointError, match=r"the index of a model's shards.*in vae="):
        aapt_fast.StreamModel.from_pretrained(tmp_path)
    (tmp_path / "m.safetensors.index.json").unlink()
    path.rename(tmp_path / "m-00001-of-00001.safetensors")
    assert aapt_fast.load_generator(tmp_path, config={"heads": TINY.heads}).config.heads == TINY.heads


def test_a_pipeline_needs_its_folder_twice(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a pipeline's folder with transformer, vae; .* same folder in vae="):
        aapt_fast.StreamModel.from_pretrained(folder_of("transformer/", "vae/")(tmp_path))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    path = wan_file(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)
    for loader in LOADERS.keys() - {"lora="}:
        with pytest.raises((ValueError, TypeError), match=f"one that cannot be opened .{error.strerror}.; check its"):
            LOADERS[loader](path, tmp_path / "out")


@pytest.mark.parametrize("error", [OSError("No such device (os error 19)"), MemoryError("Cannot allocate memory")])
def test_a_file_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = wan_file(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(read, "safe_open", fail)
    for loader in LOADERS.keys() - {"lora=", "patch", "explain"}:
        with pytest.raises(CheckpointError, match=r"that can be mapped, got .*copy it to a local disk") as caught:
            LOADERS[loader](path, tmp_path / "out")
        assert caught.value.__cause__ is error


def test_an_all_in_one_checkpoint_is_read_part_by_part(tmp_path: Path) -> None:
    torch.manual_seed(1)
    generator, vae = random_wan(), WanVAE(WanVAEConfig(base_dim=4))
    parts = {"model.diffusion_model.": generator.state_dict(), "vae.": vae.state_dict()}
    tensors = {prefix + name: value for prefix, part in parts.items() for name, value in part.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    tensors["text_encoders.umt5xxl.transformer.shared.weight"] = torch.ones(2, 3)
    file, config = tmp_path / "all.safetensors", {"heads": TINY.heads}
    save_file(tensors, file)
    assert "all-in-one checkpoint (Wan transformer, video VAE, text encoder)" in str(recognise(file))
    report = convert_files(file, tmp_path / "out", config={"transformer": config})
    assert list(report["parts"]) == ["transformer", "vae"] and report["left_behind"] == ["text encoder"]
    for source, said in ((file, config), (tmp_path / "out", None)):
        for expected, loaded in (
            (generator, aapt_fast.load_generator(source, config=said)),
            (vae, aapt_fast.load_vae(source)),
        ):
            assert all(torch.equal(loaded.state_dict()[name], value) for name, value in expected.state_dict().items())


def test_the_published_layouts_are_told_apart() -> None:
    """By keys of the files of Wan-AI, Comfy-Org and diffusers."""
    keys = {
        "Wan transformer": ["blocks.0.self_attn.q.weight", "patch_embedding.weight"],
        "video VAE": ["encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"],
        "text encoder": ["token_embedding.weight", "blocks.0.attn.q.weight", "blocks.0.pos_embedding.embedding.weight"],
        "LoRA": ["lora_unet_blocks_0_cross_attn_k.alpha", "lora_unet_blocks_0_cross_attn_k.lora_down.weight"],
        "unknown": ["x"],
    }
    for kind, names in keys.items():
        assert recognise_tensors(names).kind == kind
    assert (
        recognise_tensors(["condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight"]).kind
        == "Wan transformer"
    )
    assert recognise_tensors(["decoder.up_blocks.0.resnets.0.conv1.weight"]).kind == "video VAE"
    assert "scaled fp8" in str(recognise_tensors(["scaled_fp8", "blocks.0.self_attn.q.weight"]))
