# SPDX-License-Identifier: Apache-2.0
"""Model files: what is written loads again, and every kind of damage is refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.files.model_file import FORMAT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig

TINY_VAE = MiniVAEConfig(encoder_widths=(4, 4, 4), decoder_widths=(4, 4, 4))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = StreamModel(Generator(NANO).eval(), MiniVAE(TINY_VAE).eval(), name="nano")
    model.save_pretrained(tmp_path / "model.safetensors", torch.float32)
    return tmp_path / "model.safetensors"


def test_what_is_saved_loads_again(file: Path) -> None:
    torch.manual_seed(0)  # the fixture's weights again
    generator, vae = Generator(NANO), MiniVAE(TINY_VAE)
    model = StreamModel.from_pretrained(file)
    assert model.name == "nano" and model.generator.config == NANO and model.vae.config == TINY_VAE
    for want, have in ((generator, model.generator), (vae, model.vae)):
        for name, tensor in want.state_dict().items():
            assert torch.equal(have.state_dict()[name], tensor), name
    assert StreamModel.from_pretrained(file.parent).name == "nano"
    assert not any(p.is_meta for p in (*model.generator.parameters(), *model.vae.parameters()))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_half_precision_file_loads_in_float32(file: Path) -> None:
    StreamModel.from_pretrained(file).save_pretrained(file)
    assert load_file(file)["generator.patch_embed.weight"].dtype == torch.float16
    assert StreamModel.from_pretrained(file).dtype == torch.float32
    assert StreamModel.from_pretrained(file, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, model = file.read_bytes(), StreamModel.from_pretrained(file)

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("aapt_fast.models.files.write.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_place_that_cannot_be_written_is_refused_before_any_work(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamModel.from_pretrained(file)
    monkeypatch.setattr(model, "generator", None)  # the first work would be a complaint about it
    for path, error, message in (
        (file.parent, ValueError, f"path: expected a file, got the folder {file.parent}"),
        ("", ValueError, "path: expected a name, a file or a folder, got an empty text"),
        (3, TypeError, "path: expected str or PathLike, got int"),
        (file / "x.safetensors", OSError, f"path: expected a folder that exists, got {file}, which is a file"),
        (file.parent / "no" / "x.safetensors", OSError, "path: expected a folder that exists, got .*which does not"),
    ):
        with pytest.raises(error, match=message):
            model.save_pretrained(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"my notes", r"text beginning with 'my notes'; delete it first"), (b"\x89PNG", "a picture or video; delete it")],
)
def test_a_file_of_another_kind_is_not_replaced(content: bytes, message: str, tmp_path: Path) -> None:
    model, path = StreamModel(Generator(NANO), MiniVAE(TINY_VAE)), tmp_path / "x.safetensors"
    path.write_bytes(content)
    expected = f"path: expected a new file, or a model of this package to replace, got {path}: "
    with pytest.raises(ValueError, match=expected + message):
        model.save_pretrained(path)
    assert path.read_bytes() == content
    for other in ("x.txt", "x"):
        with pytest.raises(
            ValueError, match=f"path: expected a name that ends in .safetensors, got {tmp_path / other}"
        ):
            model.save_pretrained(tmp_path / other)
    with pytest.raises(ValueError, match="path: expected a file, got /dev/full, which is a device"):
        model.save_pretrained("/dev/full")
    path.write_bytes(b"")  # as tempfile.NamedTemporaryFile makes it
    model.save_pretrained(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_write_that_fails_inside_of_safetensors_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamModel.from_pretrained(file)

    def fail(tensors: object, path: Path, metadata: object) -> None:
        raise SafetensorError("no space left")

    monkeypatch.setattr("aapt_fast.models.files.write.save_file", fail)
    with pytest.raises(OSError, match=r"model.partial-\w+.safetensors: expected to be written, got no space left"):
        model.save_pretrained(file)


def rewrite(change: Callable[[dict, dict], None]) -> Callable[[Path], None]:
    """A damage that edits tensors and metadata and writes the file again."""

    def damage(path: Path) -> None:
        tensors = load_file(path)
        configs = {"generator": dataclasses.asdict(NANO), "vae": dataclasses.asdict(TINY_VAE)}
        metadata = {"format": FORMAT, "name": "nano", "config": configs}
        change(tensors, metadata)
        metadata["config"] = json.dumps(metadata["config"])
        save_file(tensors, path, metadata)

    return damage


KEY = "generator.patch_embed.weight"

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "expected a whole safetensors file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "expected a whole safetensors file"),
    "huge header": (lambda path: path.write_bytes(b"\xff" * 8 + b"{}"), "expected a whole safetensors file"),
    "web page": (lambda path: path.write_text("<!doctype html><html></html>"), "got a web page"),
    "git-lfs pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git-lfs pointer",
    ),
    "pickle": (lambda path: torch.save({"x": 1}, path), "got a pickle"),
    "other format": (
        rewrite(lambda t, m: m.update(format="else")),
        rf"expected a model of this package \(metadata format {FORMAT}\), got metadata format else",
    ),
    "missing key": (rewrite(lambda t, m: t.pop(KEY)), f"expected key {KEY}, got none"),
    "extra key": (rewrite(lambda t, m: t.update({"vae.more": torch.ones(1)})), "expected no key vae.more"),
    "stranger": (rewrite(lambda t, m: t.update({"other.w": torch.ones(1)})), "got 'other.w'"),
    "shape": (rewrite(lambda t, m: t.update({KEY: torch.ones(2, 3)})), r"expected shape \[32, 160\], got \[2, 3\]"),
    "nan": (rewrite(lambda t, m: t[KEY].fill_(torch.nan)), f"{KEY}: expected finite values"),
    "head count": (
        rewrite(lambda t, m: m["config"]["generator"].update(heads=3)),
        "width: expected a multiple of heads",
    ),
    "folded timestep": (
        rewrite(lambda t, m: m["config"]["generator"].update(folded_t=1.0)),
        "folded_t: expected null: weights with a timestep folded into them are not supported, got 1.0",
    ),
    "unknown field": (rewrite(lambda t, m: m["config"]["generator"].update(wings=2)), "wings"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_by_name(file: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(file)
    with pytest.raises(CheckpointError, match=message) as caught:
        StreamModel.from_pretrained(file)
    assert str(file) in str(caught.value)


def test_a_file_that_says_that_no_timestep_is_folded_loads(file: Path) -> None:
    rewrite(lambda tensors, metadata: metadata["config"]["generator"].update(folded_t=None))(file)
    assert StreamModel.from_pretrained(file).config == NANO


def test_an_unknown_name_lists_the_bundled_models() -> None:
    with pytest.raises(
        ValueError, match=r"path: expected a bundled model \(.*\), a file or a folder, got no-such-model"
    ):
        StreamModel.from_pretrained("no-such-model")


def test_bundled_models_are_listed_with_a_sentence_each() -> None:
    models = aapt_fast.list_models()
    assert list(models) == ["mini-anyone", "mini-person"]
    for name, sentence in models.items():
        assert 40 < len(sentence) < 250 and sentence.endswith(".") and "\n" not in sentence
        assert aapt_fast.load_gallery(name)


def test_representations() -> None:
    first = aapt_fast.load_gallery("mini-person")[0]
    assert re.fullmatch(r"FirstFrame\(96 x 96, scene \d+, with pose\)", repr(first))
    model = StreamModel(Generator(NANO).eval(), MiniVAE(TINY_VAE).eval().bfloat16(), name="nano")
    said = "Generator in torch.float32, MiniVAE in torch.bfloat16, on cpu, video 32x32"
    assert repr(model) == f"StreamModel(nano: {said})"


def test_a_weight_that_is_not_finite_in_the_files_dtype_is_refused(tmp_path: Path) -> None:
    generator = Generator(NANO)
    with torch.no_grad():
        generator.unpatch.bias[0] = 1e5  # finite in float32 only
    model = StreamModel(generator, MiniVAE(TINY_VAE), name="nano")
    with pytest.raises(CheckpointError, match=r"generator\.unpatch\.bias: expected finite values in torch\.float16"):
        model.save_pretrained(tmp_path / "x.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    model.save_pretrained(tmp_path / "x.safetensors", dtype=torch.bfloat16)


def test_a_gallery_of_what_is_no_model_is_refused(file: Path) -> None:
    (file.parent / "notes.txt").write_text("words")
    (file.parent / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    save_file({"blocks.0.lora_A.weight": torch.zeros(1)}, file.parent / "lora.safetensors")
    for name, got in (("notes.txt", "text beginning"), ("picture.png", "a picture"), ("lora.safetensors", "a LoRA")):
        with pytest.raises(CheckpointError, match=rf"{name}: expected a model, got {got}"):
            aapt_fast.load_gallery(file.parent / name)


def test_models_without_a_gallery_have_an_empty_one(file: Path) -> None:
    wan = {"patch_embedding.weight": torch.zeros(1)}
    save_file(wan, file.parent / "wan.safetensors")
    torch.save(wan, file.parent / "wan.pt")
    for path in (file, file.parent / "wan.safetensors", file.parent / "wan.pt"):
        assert aapt_fast.load_gallery(path) == []
