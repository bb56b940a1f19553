# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training on ranks: each rank writes and reads its own parts, by torch.distributed.checkpoint.

    checkpoint.pt       the content, with the names, shapes and dtypes of tensors in their places
    checkpoint-120/     the tensors after step 120, a file per rank

`checkpoint.pt` is written last and names its folder, so a job that is killed while it writes keeps the one before. A
tensor that was cut among n ranks can be read by any number of them: each reads its rows, whoever wrote them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import CheckpointError
from aapt_fast.training.files import first_not_finite, load_whole, save_whole
from aapt_fast.training.place import Place, own_part

TENSOR = "tensor"
"""The key that tells the description of a tensor from other mappings."""
SHARDS = "shards"
"""The key of the folder in the file."""


def save_shards(path: Path, content: Mapping[str, Any], place: Place) -> None:
    """Write `content`, whose "state" holds tensors [...] that may be cut among ranks, unless its "step" is there.

    All ranks have to call it. Raises FloatingPointError on all of them, naming the first value that is not finite, and
    OSError if one of them cannot write; the old checkpoint stays then.
    """
    import torch.distributed.checkpoint as dcp  # takes half a second

    assert place.transport is not None
    bad = [name for name in place.transport.gather(first_not_finite(_mapped(content, own_part))) if name]
    if bad:
        raise FloatingPointError(f"{bad[0]} is not finite, so it was not saved in {path}")
    folder = path.with_name(f"{path.stem}-{content['step']}")
    if place.first_says(path.exists() and load_whole(path).get(SHARDS) == folder.name):
        return
    tensors: dict[str, Tensor] = {}
    described = _mapped(content["state"], lambda tensor: _described(tensor, tensors))
    try:
        dcp.save(tensors, checkpoint_id=folder, process_group=_group(place))
    except dcp.CheckpointException as error:  # no Exception
        raise OSError(f"{folder}: a checkpoint could not be written: {_first_cause(error)}") from error
    if place.is_first:
        save_whole(path, {**content, "state": described, SHARDS: folder.name})
        for other in path.parent.glob(f"{path.stem}-*"):
            if other != folder:
                shutil.rmtree(other)
    place.wait()


def load_shards(path: Path, content: Mapping[str, Any], place: Place) -> Any:
    """The "state" of `content`, which has been read from `path`, its tensors [...] cut as they were when saved.

    All ranks have to call it. Raises CheckpointError for a folder that is missing or damaged, and values not finite.
    """
    import torch.distributed.checkpoint as dcp

    folder, tensors = path.with_name(str(content[SHARDS])), dict[str, Tensor]()
    state = _filled(content["state"], place, tensors)
    try:
        dcp.load(tensors, checkpoint_id=folder, process_group=_group(place))
    except (Exception, dcp.CheckpointException) as error:  # many kinds, whose texts are long
        got = f"a missing or damaged one ({_first_cause(error)})"
        raise CheckpointError(f"{folder}: expected a whole folder of this training, got {got}") from error
    name = next((name for name, tensor in tensors.items() if not own_part(tensor).isfinite().all()), None)
    if place.anywhere(name is not None):
        raise CheckpointError(f"{folder}: {name or 'a tensor'}: expected finite values, got nan or inf")
    return state


def require_same_kind(path: Path, content: Any, place: Place) -> None:
    """Raise CheckpointError if `content`, of `path`, is of ranks and `place` is a process by itself, or vice versa."""
    names = {True: "ranks, started by torchrun or --gpus", False: "a single process"}
    of_ranks, here = isinstance(content, Mapping) and SHARDS in content, place.transport is not None
    if of_ranks != here:
        resume = "with the same kind of command, on any number of ranks," if of_ranks else "in the same way,"
        raise CheckpointError(
            f"{path}: expected a checkpoint of {names[here]}, got one of {names[of_ranks]}; continue it {resume} or "
            "begin in a new folder"
        )


def _described(tensor: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The description of a tensor, which is put into `tensors` under a name of its own."""
    name = f"tensor-{len(tensors)}"
    tensors[name] = tensor
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {TENSOR: name, "shape": list(tensor.shape), "dtype": dtype, "cut": hasattr(tensor, "to_local")}


def _filled(content: Any, place: Place, tensors: dict[str, Tensor]) -> Any:
    """`content` with zeros in the place of descriptions; the tensors are put into `tensors`, too."""
    if isinstance(content, Mapping):
        if TENSOR in content:
            name, dtype = content[TENSOR], getattr(torch, content["dtype"])
            tensors[name] = (
                _zeros(content["shape"], dtype, place) if content["cut"] else torch.zeros(content["shape"], dtype=dtype)
            )
            return tensors[name]
        return {key: _filled(value, place, tensors) for key, value in content.items()}
    return [_filled(value, place, tensors) for value in content] if isinstance(content, list) else content


def _zeros(shape: list[int], dtype: torch.dtype, place: Place) -> Tensor:
    from torch.distributed.tensor import Shard, zeros

    return zeros(shape, dtype=dtype, device_mesh=place.mesh, placements=[Shard(0)])


def _mapped(content: Any, change: Callable[[Any], Any]) -> Any:
    """Nested mappings and sequences with `change` of each tensor in its place."""
    if isinstance(content, Tensor):
        return change(content)
    if isinstance(content, Mapping):
        return {key: _mapped(value, change) for key, value in content.items()}
    return [_mapped(value, change) for value in content] if isinstance(content, list | tuple) else content


def _first_cause(error: BaseException) -> str:
    """What went wrong on the first rank where something did, in a line."""
    failures = getattr(error, "failures", {})
    cause = next(iter(failures.values()))[0] if failures else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]


def _group(place: Place) -> Any:
    return getattr(place.transport, "commands", None)
