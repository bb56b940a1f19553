# SPDX-License-Identifier: Apache-2.0
"""Files of weights: safetensors, sharded safetensors with an index, and files of torch.save.

A file is recognised by its first bytes, not by its name. Tensors are mapped from the file where the format allows:
their values are read when they are copied, so nothing is held twice. Pickles are read with `weights_only`: nothing in
them is executed. A damaged file is refused with its name, the expectation and the finding. `fill` then puts
tensors into a module, all of them or none.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from aapt_fast.errors import CheckpointError, require
from aapt_fast.models.files.find import INDEX_SUFFIX, weight_file
from aapt_fast.models.files.recognise import (
    PICKLE,
    PICKLES,
    ZIP,
    is_safetensors,
    is_shard,
    recognise,
    refusal,
)

CONFIG_NAME = "config.json"
COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float64)
"""The dtypes that every device computes in without loss of speed or range; a GPU has float16 as well."""
WHOLE = "a whole safetensors file"

Change = Callable[[Tensor], Tensor]
"""From a tensor [...] in a file to the one that a model gets: same shape, wider dtype."""
Cut = Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Change]]
"""Lets a module without values keep a part of itself, as a rank of several does (`distributed.shard`).

It is given the module and the tensors [...] of the file by the names in the module, whose names and shapes are checked.
Returns, by name, the functions from such a tensor to the part that the module keeps, a view of it where that can be.
"""


def read_tensors(path: str | Path, groups: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Every tensor of a file, by its name there, on the CPU and mapped from the file where the format allows.

    Args:
        path: a safetensors file, an index of shards (`*.index.json`), a file of `torch.save`, or a folder that holds
            one of these.
        groups: for a file of `torch.save` that holds several state dicts by name: the names to look for, the first
            one found is read.

    Raises CheckpointError (file, expected, got) for anything else, and for a damaged file.
    """
    path = weight_file(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path, groups)
    if is_shard(path.name):
        got = "one of its shards; give the folder with all of them"
        raise CheckpointError(f"{path}: expected a whole model, got {got}")
    return _read_file(path, groups)


def _read_file(path: Path, groups: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of one file."""
    head = _head(path)
    if is_safetensors(head) or path.suffix == ".safetensors":  # torch.load, too, goes by that name
        with open_safetensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if head.startswith((ZIP, *PICKLES)) and recognise(path).kind == PICKLE:
        return _state_dict(path, _unpickle(path, mapped=head.startswith(ZIP)), groups)
    raise refusal(path, "a file of weights")


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The content of `config.json` in the folder `path`, or beside the file `path`; None if there is no such file.

    Raises CheckpointError if it is not a JSON object.
    """
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / CONFIG_NAME
    return read_json(file) if file.is_file() else None


def computing_dtype(tensors: Mapping[str, Tensor], device: torch.device | str) -> torch.dtype:
    """The dtype that most of these numbers [...] have, if it is one to compute in on `device`, else float32."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.numel()
    found = sizes.most_common(1)[0][0]
    half_on_gpu = found == torch.float16 and torch.device(device).type != "cpu"
    return found if found in COMPUTED_IN or half_on_gpu else torch.float32


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """The open file, as of `safetensors.safe_open`, for a `with` block that reads from it.

    Raises CheckpointError, also inside the block, for anything but whole safetensors that can be mapped.
    """
    if not is_safetensors(_head(path)):
        raise refusal(path, WHOLE)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        found = recognise(path)
        if found.kind in ("damaged", "unreadable"):
            raise refusal(path, WHOLE) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = "if its disk cannot map files into memory, or memory is short, copy it to a local disk"
        raise CheckpointError(f"{path}: expected {WHOLE} that can be mapped, got {reason}; {advice}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; nothing for another file. Raises CheckpointError for a damaged one."""
    if not is_safetensors(_head(path)):
        return {}
    with open_safetensors(path) as file:
        return dict(file.metadata() or {})


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: object,
    *,
    file_key: Callable[[str], str] = str,
    device: torch.device | str = "cpu",
    changes: Mapping[str, Sequence[Change]] | None = None,
    cut: Cut | None = None,
) -> None:
    """Give every parameter and persistent buffer of `module` its values, in the dtype that the module has.

    A module built under `torch.device("meta")` costs neither memory nor initialisation; its parameters come to life
    here, on `device`, in the memory layout that they were declared with. Otherwise values are copied into the
    tensors that are there.

    Args:
        module: its buffers that are not saved must hold their values already.
        tensors: [...] by the names in the file, exactly those that the module wants.
        source: the file, for messages.
        file_key: from a name in the module to the name in the file.
        device: of a module on the meta device.
        changes: made to tensors [...] as they are read, by their names in the file.
        cut: for a module on the meta device that keeps a part of itself. Of what it leaves, nothing is read.

    Raises CheckpointError (file, key, expected, got) for a missing, extra or misshapen tensor, one of another kind of
    dtype, and values that are not finite. Nothing is written before names, shapes and kinds are checked.
    """
    expected = module.state_dict()
    unsaved = [name for name, buffer in module.named_buffers() if buffer.is_meta and name not in expected]
    require(not unsaved, "module", "values in buffers that no file holds", f"meta tensors: {', '.join(unsaved)}")
    keys = {name: file_key(name) for name in expected}
    check_tensors(expected, keys, tensors, source)
    parts: Mapping[str, Change] = {}
    if cut is not None:
        parts = cut(module, {name: tensors[key] for name, key in keys.items()})
        expected = module.state_dict()
    from_nothing = any(target.is_meta for target in expected.values())
    values = {}
    with torch.inference_mode(False), torch.no_grad():  # whatever the caller's mode, the weights can be trained
        for name, target in expected.items():
            value = torch.empty_like(target, device=device) if from_nothing else target
            given = changed(tensors[keys[name]], (changes or {}).get(keys[name], ()))
            given = parts[name](given) if name in parts else given
            value.copy_(given)
            require_finite(given if given.dtype == value.dtype else value, keys[name], source)
            values[name] = value
        if from_nothing:
            module.load_state_dict(values, strict=True, assign=True)


def changed(tensor: Tensor, changes: Sequence[Change]) -> Tensor:
    """Make `changes` to a tensor [...] of a file, one after the other."""
    for change in changes:
        tensor = change(tensor)
    return tensor


def check_tensors(
    expected: Mapping[str, Tensor], keys: Mapping[str, str], tensors: Mapping[str, Tensor], source: object
) -> None:
    """Check that `tensors` [...] are those that a module expects: none missing, none else, same shapes, same kinds.

    `keys` leads from the names of `expected` to those of `tensors`. Raises CheckpointError (file, key, expected, got).
    """
    for name, want in expected.items():
        have = tensors.get(keys[name])
        if have is None:
            raise CheckpointError(f"{source}: expected key {keys[name]}, got none")
        if have.shape != want.shape:
            others = (
                sum(keys[each] in tensors and tensors[keys[each]].shape != expected[each].shape for each in keys) - 1
            )
            more = f" (and {others} more with other shapes)" if others else ""
            got = f"{list(have.shape)}{more}"
            raise CheckpointError(f"{source}: {keys[name]}: expected shape {list(want.shape)}, got {got}")
        if have.is_floating_point() != want.is_floating_point():
            raise CheckpointError(f"{source}: {keys[name]}: expected a dtype like {want.dtype}, got {have.dtype}")
    wanted = set(keys.values())
    for key in tensors:
        if key not in wanted:
            raise CheckpointError(f"{source}: expected no key {key}, got one")


def require_finite(value: Tensor, key: str, source: object) -> None:
    """Raise CheckpointError unless all of [...] are finite in the dtype of the module: an overflow on the way to
    float16 counts too."""
    if value.is_floating_point() and value.numel():
        low, high = torch.aminmax(value)
        if not (low.isfinite() and high.isfinite()):
            raise CheckpointError(f"{source}: {key}: expected finite values in {value.dtype}, got nan or inf")


def _head(path: Path) -> bytes:
    """The first bytes of a file. Raises CheckpointError for a file that cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise refusal(path, "a file of weights") from error


def _unpickle(path: Path, mapped: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0].removeprefix("Weights only load failed. ")
        names = [word for line in str(error).splitlines() if "GLOBAL" in line for word in line.split() if "." in word]
        what = f"a pickle that wants {names[0]}" if names else f"a pickle that cannot be read: {reason}"
        raise CheckpointError(f"{path}: expected tensors only, got {what}; nothing was executed") from error
    except Exception as error:  # of many kinds, for bytes that are not what they begin as
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: expected a whole file of torch.save, got {reason}") from error


def _state_dict(path: Path, content: object, groups: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors in the content of a pickle: a state dict, or the first of `groups` that it has."""
    place = ""
    if isinstance(content, dict):
        for group in groups:
            if isinstance(content.get(group), dict):
                content, place = content[group], f"{group}: "
                break
    if not isinstance(content, dict) or not content:
        got = "an empty dict" if content == {} else type(content).__name__
        raise CheckpointError(f"{path}: {place}expected a dict of tensors, got {got}")
    found = {}
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
            wanted = f" (or a state dict under {' or '.join(groups)})" if groups and not place else ""
            got = f"{type(value).__name__} under {name!r}"
            raise CheckpointError(f"{path}: {place}expected a dict of tensors{wanted}, got {got}")
        found[name] = value.detach()
    return found


def _read_shards(index: Path, groups: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of all files that an index names; index and files must agree on the place of every key."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a weight_map from keys to files, got {type(weight_map).__name__}")
    found: dict[str, Tensor] = {}
    for name in sorted({str(file) for file in weight_map.values()}):
        shard = index.with_name(name) if Path(name).name == name else None
        if shard is None or not shard.is_file():
            raise CheckpointError(f"{index}: expected the file {name} beside it, got none")
        part = _read_file(shard, groups)
        for key in part:
            if weight_map.get(key) != name:
                raise CheckpointError(f"{shard}: {key}: expected in {weight_map.get(key, 'no file')}, got it here")
        found |= part
    for key, name in weight_map.items():
        if key not in found:
            raise CheckpointError(f"{index.with_name(str(name))}: expected key {key}, got none")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises CheckpointError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected readable JSON, got {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
