# SPDX-License-Identifier: Apache-2.0
"""Recognition of what a user gives where a model is expected: a name, a folder, a file, or the names of its tensors.

Loaders call `refusal` or `require_kind` where they cannot go on. So every message says what is there and what to do
next, whichever loader it comes from. Nothing is executed and no tensor is read.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aapt_fast.errors import CheckpointError
from aapt_fast.models.files.bundled import PRESETS, bundled_models

TRANSFORMER, VAE, TEXT_ENCODER = "Wan transformer", "video VAE", "text encoder"
LORA, ALL_IN_ONE, OWN, PICKLE = "LoRA", "all-in-one checkpoint", "model of this package", "pickle"
UNKNOWN, SHARDS, PIPELINE, PRESET, EMPTY = "unknown", "shards", "pipeline", "preset", "empty"
MODELS = (OWN, TRANSFORMER, ALL_IN_ONE, PICKLE, SHARDS)
"""Kinds that a stream can be made from, with a VAE beside some of them."""
CONVERTED = (*MODELS, VAE, UNKNOWN)
"""Kinds that `convert` reads; tensors of an unknown model are refused by their names."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
LARGEST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""

ZIP, PICKLES = b"PK\x03\x04", (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/+(.+)", re.IGNORECASE)  # one slash where a Path has joined two
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_AGAIN = "download it again"

_PARTS = {
    TRANSFORMER: ("model.diffusion_model.",),
    VAE: ("vae.", "first_stage_model."),
    TEXT_ENCODER: ("text_encoders.", "cond_stage_model.", "conditioner."),
}
"""Prefixes of the parts of an all-in-one checkpoint."""


@dataclass(frozen=True)
class Recognised:
    """Kind of a file, folder or name; in words for a message, with the next thing to do."""

    kind: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}" if self.advice else self.what


def refusal(source: str | os.PathLike[str], expected: str) -> CheckpointError:
    """The error of a loader that cannot read `source`: expected, what is there, what to do."""
    return CheckpointError(f"{source}: expected {expected}, got {recognise(source)}")


def require_kind(names: Iterable[str], kind: str, source: object) -> None:
    """Raise CheckpointError if the tensors of a file are recognised as another kind of model than `kind`."""
    found = recognise_tensors(names)
    if found.kind not in (kind, UNKNOWN):
        raise CheckpointError(f"{source}: expected a {kind}, got {found}")


def recognise(source: str | os.PathLike[str]) -> Recognised:
    """Recognise a path, or what a user took for one. Raises nothing: what cannot be opened is a finding too."""
    text = os.fspath(source)
    try:
        mode = os.stat(text).st_mode
        if stat.S_ISDIR(mode):
            return _folder(Path(text))
        if stat.S_ISREG(mode):
            return _file(Path(text))
        return Recognised("device", "neither a file nor a folder", "copy its contents to a file")
    except (FileNotFoundError, NotADirectoryError):
        return _absent(text)
    except OSError as error:
        return Recognised("unreadable", f"one that cannot be opened ({error.strerror})", "check its rights and name")
    except ValueError as error:
        return Recognised("unreadable", f"no path ({error})")


# ---- names ----


def _absent(text: str) -> Recognised:
    """A name under which there is nothing."""
    path = Path(text)
    if path.is_symlink():
        advice = f"{_AGAIN}, or copy the folder with the files that its links lead to (cp -L)"
        return Recognised("dangling link", f"a link to {os.readlink(path)}, which is not there", advice)
    if match := _URL.match(text):
        if text.lower().startswith("file:"):
            return Recognised("URL", "a URL", f"give the path without file://: /{match[1]}")
        return Recognised("URL", "a URL, and nothing is downloaded here", "download the file and give its path")
    if text.startswith("~"):
        return Recognised("nothing", "nothing there", f"~ is not expanded here; give {os.path.expanduser(text)}")
    if text in PRESETS and text not in bundled_models():
        what = "a preset without public weights; aapt_fast.list_models() names the trained models"
        advice = f"aapt_fast.profiling.systems.find_system({text!r}).build(device, dtype) makes one with random weights"
        return Recognised(PRESET, what, advice)
    near = difflib.get_close_matches(text, bundled_models(), 1, 0.7)
    if not near and path.parent.is_dir():
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.8)
    if near:
        return Recognised("nothing", "nothing there", f"did you mean {near[0]}?")
    if _HUB.fullmatch(text) and path.suffix not in WEIGHT_SUFFIXES and not path.parent.is_dir():
        what = "nothing there; it looks like an identifier of the Hugging Face hub, and nothing is downloaded here"
        return Recognised("hub identifier", what, f"run `hf download {text} --local-dir FOLDER` and give FOLDER")
    return Recognised("nothing", "nothing there")


# ---- folders ----


def _folder(folder: Path) -> Recognised:
    """A folder in which a loader found no file of weights, or no one in particular."""
    entries = sorted(folder.iterdir())
    names = [entry.name for entry in entries]
    if not names:
        return Recognised("folder", "an empty folder")
    parts = [entry.name for entry in entries if entry.is_dir()]
    if "transformer" in parts or "vae" in parts:
        advice = (
            "in Python, load_generator and load_vae read it, StreamModel.from_pretrained with the same folder in vae="
        )
        return Recognised(PIPELINE, f"a pipeline's folder with {', '.join(parts)}", advice)
    repositories = [name for name in names if name.startswith("models--")]
    if repositories:
        advice = f"give one model's snapshot: {repositories[0]}/snapshots/..."
        return Recognised("hub cache", f"the cache of the hub, with {len(repositories)} models", advice)
    if (folder / "snapshots").is_dir():
        snapshots = sorted(entry for entry in (folder / "snapshots").iterdir() if entry.is_dir())
        advice = f"give the snapshot in it: {snapshots[-1]}" if snapshots else _AGAIN
        return Recognised("hub cache", "the cache of one model of the hub", advice)
    broken = [entry.name for entry in entries if entry.is_symlink() and not entry.exists()]
    if broken:
        what = f"a folder with links to files that are not there ({_some(broken)})"
        return Recognised("dangling link", what, f"{_AGAIN}, or copy it with the files that its links lead to (cp -L)")
    shards = [name for name in names if is_shard(name)]
    if shards and not any(name.endswith(".index.json") for name in names):
        return _loose_shards(shards)
    if any(name.endswith(".gguf") for name in names):
        return _GGUF
    weights = [name for name in names if name.endswith((".index.json", *WEIGHT_SUFFIXES)) and name not in parts]
    if len(weights) > 1:
        return Recognised("folder", f"a folder with {_some(weights)}", "name one of them")
    if len(weights) == 1:
        return _file(folder / weights[0])
    if parts:
        return Recognised("folder", f"a folder of folders ({_some(parts)})", "name the one with the weights")
    return Recognised("folder", f"none in this folder ({_some(names)})")


def _loose_shards(shards: list[str]) -> Recognised:
    """Shards without their index."""
    match = SHARD.fullmatch(shards[0])
    assert match is not None
    stem, _, total, suffix = match.groups()
    wanted = [f"{stem}-{number:05d}-of-{total}.{suffix}" for number in range(1, int(total) + 1)]
    lost = [name for name in wanted if name not in shards]
    what = f"{len(wanted) - len(lost)} of {len(wanted)} shards of one model"
    return Recognised(SHARDS, what, f"download {_some([*lost, f'{stem}.{suffix}.index.json'])} as well")


# ---- files ----

_GGUF = Recognised("GGUF", "quantised weights (GGUF), which are not read here", "take the model's safetensors files")
_PICTURE = Recognised("picture", "a picture or video", "give the file with the model's weights")
_ARCHIVE = Recognised("archive", "an archive", "unpack it and give the file of weights in it")
_POINTER = Recognised("git-lfs pointer", "a git-lfs pointer, not the file itself", "run `git lfs pull`")

_SIGNATURES: tuple[tuple[int, bytes, Recognised], ...] = (
    (0, b"version https://git-lfs", _POINTER),
    (0, b"GGUF", _GGUF),
    (0, b"\x93NUMPY", Recognised("NumPy array", "a NumPy array", "give the file with the model's weights")),
    (0, b"\x89HDF", Recognised("HDF5", "an HDF5 file, which is not read here", "take the model's safetensors files")),
    (0, b"\x89PNG", _PICTURE),
    (0, b"\xff\xd8\xff", _PICTURE),
    (0, b"GIF8", _PICTURE),
    (0, b"RIFF", _PICTURE),
    (4, b"ftyp", _PICTURE),
    (0, b"\x1f\x8b", _ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", _ARCHIVE),
    (0, b"Rar!", _ARCHIVE),
    (0, b"\xfd7zXZ", _ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (257, b"ustar", _ARCHIVE),
)
"""(offset, bytes there, finding) of files that some loader was given."""


def _file(path: Path) -> Recognised:
    """A file, by its bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return Recognised(EMPTY, "an empty file", _AGAIN)
    if is_safetensors(head):
        return _safetensors(path)
    for offset, mark, found in _SIGNATURES:
        if head[offset:].startswith(mark):
            return found
    if head.startswith(ZIP):
        return _zip(path)
    if head.startswith(PICKLES):
        return _torch_save(path)
    if not head.strip(b"\0"):
        return Recognised("zeros", "a file that begins with zeros: an interrupted download or copy", _AGAIN)
    if path.name.endswith(".index.json"):
        advice = "in Python, load_generator and load_vae read it, StreamModel.from_pretrained with the VAE in vae="
        return Recognised(SHARDS, "the index of a model's shards", advice)
    start = head.lstrip()
    if start.startswith(b"<"):
        return Recognised("web page", "a web page, saved under this name", "download the file itself (its raw link)")
    if start.startswith((b"{", b"[")):
        advice = "give the file of weights beside it, or the folder; an error message means: download it again"
        return Recognised("JSON", f"JSON beginning with {_words(start)}", advice)
    if _is_text(head):
        return Recognised("text", f"text beginning with {_words(start)}", "give the file with the model's weights")
    return Recognised("bytes", f"one beginning with {head[:8]!r}", "safetensors and files of torch.save are read")


def is_shard(name: str) -> bool:
    """Tell if this is the name of one of several files of a model."""
    match = SHARD.fullmatch(name)
    return match is not None and int(match[3]) > 1


def is_safetensors(head: bytes) -> bool:
    """Tell if these are the first bytes of safetensors: eight of length, which may be any, then a JSON object."""
    return head[8:9] == b"{"


def _safetensors(path: Path) -> Recognised:
    """A safetensors file: damaged, or recognised by the names of its tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            return Recognised("damaged", f"a damaged safetensors file: its header would have {length} bytes", _AGAIN)
        if length + 8 > size:
            return Recognised("damaged", f"a part of a safetensors file: its {size} bytes end in the header", _AGAIN)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, AttributeError):
            return Recognised("damaged", "a damaged safetensors file: its header makes no sense", _AGAIN)
    if end > size:
        return Recognised("damaged", f"a part of a safetensors file: {size} of {end} bytes", _AGAIN)
    if end < size:
        return Recognised("damaged", f"a damaged safetensors file: {size - end} bytes too many at its end", _AGAIN)
    return recognise_tensors(name for name in header if name != "__metadata__")


def _zip(path: Path) -> Recognised:
    """A file that begins as zip: of torch.save (whole or not), or something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return Recognised("damaged", "a part of a file of torch.save, or a damaged one", _AGAIN)
    if any(name.endswith("constants.pkl") for name in names):
        return Recognised("TorchScript", "a TorchScript program, which is not run", "take the model's state dict")
    if any(name.endswith("data.pkl") for name in names):
        return _torch_save(path)
    return Recognised("zip", f"a zip archive with {_some(names)}", "unpack it and give the file of weights in it")


def _torch_save(path: Path) -> Recognised:
    """A file of torch.save, or another pickle. It may run code when it is opened without care, and is not opened."""
    if path.suffix == ".safetensors":
        return Recognised(PICKLE, "a pickle under a name of safetensors", "to read tensors from it, name it .pt")
    advice = "in Python, load_generator and load_vae read its tensors, StreamModel.from_pretrained with the VAE in vae="
    return Recognised(PICKLE, "a pickle, as torch.save writes it", advice)


# ---- names of tensors ----

_MODELS: tuple[tuple[str, str, str, str], ...] = (
    (
        TEXT_ENCODER,
        r"(encoder\.block\.\d+\.layer\.|blocks\.\d+\.pos_embedding\.|layers\.\d+\.(self_attn|mlp)\.|(text|vision)_model\.|(textual|visual)\.)",
        "a text or image encoder",
        "in Python, TextEncoder reads the folder with it, its config.json and its tokenizer",
    ),
    (
        "VACE",
        r"vace_(blocks|patch_embedding)\.",
        "a Wan VACE transformer, which is not supported",
        "take a T2V, I2V or TI2V model",
    ),
    (
        TRANSFORMER,
        r"(patch_embedding\.(weight|bias)|condition_embedder\.|blocks\.\d+\.(self_attn|cross_attn|attn1|attn2)\.)",
        "a Wan transformer without a VAE",
        "in Python, load_generator reads it, and StreamModel.from_pretrained with the VAE in vae=",
    ),
    (
        VAE,
        r"(model\.)?(encoder|decoder)\.(conv|mid|middle|head|down|up)",
        "a VAE without a generator",
        "in Python, load_vae reads one of Wan or SeedVR, and StreamModel.from_pretrained takes it as vae=",
    ),
    (
        "other",
        r"(input_blocks|double_blocks|joint_blocks|down_blocks|transformer_blocks)\.",
        "a diffusion model of another family",
        "Wan 2.1 and 2.2 models, and those made from them, are supported",
    ),
)
"""(kind, pattern at the beginning of a tensor's name, what, advice), first match counts."""
_WRAPPER = re.compile(
    r"((model|diffusion_model|module|_fsdp_wrapped_module|_orig_mod|transformer|vae|first_stage_model)\.)*"
)
_LORA = re.compile(r".+\.(lora_(A|B|up|down|mid)|lora\.(up|down)|diff|diff_b|hada_w\d_[ab]|lokr_w\d|dora_scale)\b")
_SCALE = re.compile(r".+\.(scale_weight|weight_scale)|(.+\.)?scaled_fp8")


def recognise_tensors(names: Iterable[str]) -> Recognised:
    """Recognise a model by the names of its tensors."""
    names = list(names)
    if not names:
        return Recognised(EMPTY, "one without any tensor", _AGAIN)
    lora = [name for name in names if _LORA.match(name)]
    if lora:
        advice = "in Python, load_generator merges it into the model that it was trained for, as lora="
        return Recognised(LORA, f"a LoRA file (changes to a model, as {lora[0]})", advice)
    parts = [part for part, prefixes in _PARTS.items() if any(name.startswith(prefixes) for name in names)]
    if TRANSFORMER in parts and len(parts) > 1:
        advice = "in Python, load_generator and load_vae read a Wan model from it"
        return Recognised(ALL_IN_ONE, f"an all-in-one checkpoint ({', '.join(parts)})", advice)
    if {name.partition(".")[0] for name in names} == {"generator", "vae"}:
        return Recognised(OWN, "a model of this package", "in Python, StreamModel.from_pretrained reads it")
    plain = [_WRAPPER.sub("", name, count=1) for name in names]
    for kind, pattern, what, advice in _MODELS:
        if any(re.match(pattern, name) for name in plain):
            scaled = " in scaled fp8" if any(map(_SCALE.fullmatch, names)) else ""
            return Recognised(kind, what + scaled, advice)
    return Recognised(UNKNOWN, f"{len(names)} tensors of an unknown model, the first {names[0]}")


def part_names(names: Iterable[str], part: str) -> list[str]:
    """Names of the tensors of one part, TRANSFORMER or VAE, of an all-in-one checkpoint; all names of another file."""
    names = list(names)
    if recognise_tensors(names).kind != ALL_IN_ONE:
        return names
    return [name for name in names if name.startswith(_PARTS[part])]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _is_text(head: bytes) -> bool:
    """Tell if these are printable characters in UTF-8, the last of which may be cut."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


def _words(start: bytes) -> str:
    return repr(start[:40].decode("utf-8", "replace"))
