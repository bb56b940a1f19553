# SPDX-License-Identifier: Apache-2.0
"""Files of weights: every kind is read, every damage is refused by the name of file and key."""

from __future__ import annotations

import collections
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.read import fill, read_config, read_tensors
from aapt_fast.models.vae.layers import CausalConv3d

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, Tensor]:
    return {
        "a.weight": torch.arange(6.0).view(2, 3),
        "a.bias": torch.ones(2, dtype=torch.bfloat16),
        "n": torch.ones(()),
    }


def write_shards(folder: Path) -> Path:
    names = {"a.weight": "model-1.safetensors", "a.bias": "model-2.safetensors", "n": "model-2.safetensors"}
    for file in set(names.values()):
        save_file({key: tensor for key, tensor in tensors().items() if names[key] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return folder / INDEX


def write_safetensors(folder: Path) -> Path:
    save_file(tensors(), folder / "model.safetensors")
    return folder / "model.safetensors"


def write_torch(content: object, name: str = "model.pt", **options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / name, **options)
        return folder / name

    return write


KINDS: dict[str, Callable[[Path], Path]] = {
    "safetensors": write_safetensors,
    "shards": write_shards,
    "torch": write_torch(tensors()),
    "torch with another name": write_torch(tensors(), "Model_VAE.pth"),
    "torch before 1.6": write_torch(tensors(), _use_new_zipfile_serialization=False),
    "parameters": write_torch({key: nn.Parameter(tensor) for key, tensor in tensors().items()}),
    "ordered": write_torch(collections.OrderedDict(tensors())),
    "grouped": write_torch({"generator": {"b": torch.zeros(1)}, "generator_ema": tensors(), "step": 7}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read(tmp_path: Path, kind: str) -> None:
    file = KINDS[kind](tmp_path)
    for path in (file, str(file), tmp_path):
        found = read_tensors(path, groups=("generator_ema", "generator"))
        assert found.keys() == tensors().keys()
        for key, tensor in tensors().items():
            assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
            assert type(found[key]) is Tensor and not found[key].requires_grad


def test_the_variant_without_a_name_is_meant(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({"half": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert read_tensors(tmp_path).keys() == tensors().keys()


@pytest.mark.parametrize("length", [0x3C, 0x3C20, 0x500])
def test_a_header_length_is_no_web_page(tmp_path: Path, length: int) -> None:
    """Lengths whose bytes are `<`, ` <`: a file written by someone else may have them."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\7")
    assert read_tensors(file)["x"].item() == 7


class Exploit:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def cut(write: Callable[[Path], Path], keep: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def damage(folder: Path) -> Path:
        file = write(folder)
        file.write_bytes(keep(file.read_bytes()))
        return file

    return damage


def put(content: bytes, name: str = "model.safetensors") -> Callable[[Path], Path]:
    return cut(lambda folder: folder / name if (folder / name).touch() is None else folder, lambda _: content)


def edit_index(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    def damage(folder: Path) -> Path:
        file = write_shards(folder)
        index = json.loads(file.read_text())
        change(index)
        file.write_text(json.dumps(index))
        return file

    return damage


def without_shard(folder: Path) -> Path:
    file = write_shards(folder)
    (folder / "model-2.safetensors").unlink()
    return file


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda folder: folder / "none.pt", "none.pt: expected a file or folder of weights, got nothing there"),
    "an empty folder": (lambda folder: folder, "expected a file or folder of weights, got an empty folder"),
    "empty": (put(b""), "expected a whole safetensors file, got an empty file; download it again"),
    "truncated": (cut(write_safetensors, lambda b: b[:-5]), r"got a part of a safetensors file: \d+ of \d+ bytes"),
    "truncated in the header": (cut(write_safetensors, lambda b: b[:20]), "its 20 bytes end in the header"),
    "truncated torch": (cut(KINDS["torch"], lambda b: b[: len(b) // 2]), "got a part of a file of torch.save, or"),
    "truncated old torch": (cut(KINDS["torch before 1.6"], lambda b: b[:-20]), "model.pt: expected"),
    "huge header": (put((2**62).to_bytes(8, "little") + b"{}"), "damaged safetensors file: its header would have"),
    "bytes too many": (cut(write_safetensors, lambda b: b + b"12345"), "5 bytes too many at its end"),
    "a header that is no JSON": (put((2).to_bytes(8, "little") + b"{x"), "its header makes no sense"),
    "web page": (put(b"\n<!doctype html><html></html>", "model.pt"), "expected a file of weights, got a web page"),
    "git-lfs pointer": (put(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "got a git-lfs pointer"),
    "an answer in JSON": (put(b'{"error": "not found"}', "model.pt"), "got JSON beginning with"),
    "code": (write_torch({"x": Exploit()}), r"expected tensors only, got a pickle that wants posix.system"),
    "code by a good name": (write_torch({"x": Exploit()}, "x.safetensors"), "a pickle under a name of safetensors"),
    "old code": (write_torch({"x": Exploit()}, _use_new_zipfile_serialization=False), "expected tensors only"),
    "a whole model": (write_torch(nn.Linear(2, 2)), "a pickle that wants torch.nn.modules.linear.Linear"),
    "a list": (write_torch([torch.ones(1)]), "expected a dict of tensors, got list"),
    "an empty dict": (write_torch({}), "expected a dict of tensors, got an empty dict"),
    "a number": (write_torch({"a": torch.ones(1), "step": 3}), "expected a dict of tensors.*, got int under 'step'"),
    "other groups": (
        write_torch({"critic": tensors()}),
        r"expected a dict of tensors \(or a state dict under generator\), got dict under 'critic'",
    ),
    "a number in a group": (write_torch({"generator": {"step": 3}}), "generator: expected a dict of tensors, got int"),
    "sparse": (write_torch({"a": torch.eye(2).to_sparse()}), "expected a dict of tensors.*, got Tensor under 'a'"),
    "index without a map": (edit_index(lambda index: index.pop("weight_map")), "expected a weight_map"),
    "index that is no JSON": (put(b"{", INDEX), "expected readable JSON"),
    "index that is a list": (put(b"[]", INDEX), "expected a JSON object, got list"),
    "missing shard": (without_shard, f"{INDEX}: expected the file model-2.safetensors beside it, got none"),
    "shard elsewhere": (
        edit_index(lambda index: index["weight_map"].update(n="../model.safetensors")),
        "expected the file ../model.safetensors beside it, got none",
    ),
    "missing key": (
        edit_index(lambda index: index["weight_map"].update(more="model-1.safetensors")),
        "model-1.safetensors: expected key more, got none",
    ),
    "stranger in a shard": (
        edit_index(lambda index: index["weight_map"].pop("n")),
        "model-2.safetensors: n: expected in no file, got it here",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = BAD[name]
    file = write(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(file, groups=("generator",))
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_folder_with_two_models_is_refused(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        save_file(tensors(), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"got a folder with one.safetensors, two.safetensors; name one"):
        read_tensors(tmp_path)


def test_configurations(tmp_path: Path) -> None:
    file = write_safetensors(tmp_path)
    assert read_config(file) is None and read_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"z_dim": 3}')
    assert read_config(file) == read_config(tmp_path) == {"z_dim": 3}
    (tmp_path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(CheckpointError, match=r"config\.json: expected readable JSON"):
        read_config(file)


# ---- filling a module ----


class Net(nn.Module):
    """A convolution in its own memory layout, a saved and an unsaved buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = CausalConv3d(3, 4, (3, 3, 3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.tensor([1.0, 2.0], device="cpu"), persistent=False)


def net_on_meta() -> Net:
    with torch.device("meta"):
        return Net()


def contents() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"conv.weight": (4, 3, 3, 3, 3), "conv.bias": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {
        "count": torch.tensor(9)
    }


@pytest.mark.parametrize("build", [Net, net_on_meta])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_is_filled(build: Callable[[], Net], dtype: torch.dtype) -> None:
    net = build().to(dtype)
    parameter, stride = net.conv.weight, Net().conv.weight.stride()
    fill(net, {f"net/{name}": tensor for name, tensor in contents().items()}, "file", file_key="net/{}".format)
    for name, tensor in contents().items():
        assert torch.equal(net.state_dict()[name], tensor.to(net.state_dict()[name].dtype)), name
    assert net.conv.weight.stride() == stride and net.conv.weight.dtype == dtype
    assert net.conv.weight.requires_grad and net.table.tolist() == [1, 2]
    assert not any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert (net.conv.weight is parameter) == (build is Net), "an optimiser may hold the parameters of a live module"


def test_a_filled_module_does_not_hang_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(contents(), file)
    net = net_on_meta()
    fill(net, read_tensors(file), file)
    file.write_bytes(b"\0" * file.stat().st_size)
    assert torch.equal(net.conv.bias, contents()["conv.bias"])


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("conv.bias"), "file: expected key conv.bias, got none"),
    "extra": (lambda t: t.update(more=torch.ones(1)), "file: expected no key more, got one"),
    "shape": (lambda t: t.update({"conv.bias": torch.ones(1)}), "file: conv.bias: expected shape [4], got [1]"),
    "nan": (lambda t: t["conv.bias"][2].fill_(torch.nan), "file: conv.bias: expected finite values in torch.float16"),
    "infinite": (lambda t: t["conv.bias"][2].fill_(-torch.inf), "file: conv.bias: expected finite values"),
    "overflow": (lambda t: t["conv.bias"][2].fill_(7e4), "file: conv.bias: expected finite values in torch.float16"),
    "integers": (lambda t: t.update({"conv.bias": t["conv.bias"].int()}), "file: conv.bias: expected a dtype like"),
    "floats": (lambda t: t.update(count=torch.ones(())), "file: count: expected a dtype like torch.int64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_refused(name: str) -> None:
    change, message = WRONG[name]
    wrong = contents()
    change(wrong)
    with pytest.raises(CheckpointError, match="^" + re.escape(message)):
        fill(net_on_meta().to(torch.float16), wrong, "file")


def test_nothing_is_written_before_all_names_fit() -> None:
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError):
        fill(net, contents() | {"more": torch.ones(1)}, "file")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_lost_table_is_noticed() -> None:
    net = net_on_meta()
    net.table = net.table.to("meta")
    with pytest.raises(ValueError, match=r"module: expected values in buffers that no file holds, got meta .* table"):
        fill(net, contents(), "file")
