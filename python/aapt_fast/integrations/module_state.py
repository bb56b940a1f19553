# SPDX-License-Identifier: Apache-2.0
"""What a recording of somebody's module holds fast, and which modules cannot be recorded.

A recording knows the addresses of weights and the numbers that Python read while it was made, and runs no hooks. So
before each replay `marks` is compared with what it was then; it is one walk over the modules, without a look at values.
A module of a class whose numbers are not known here is not recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from aapt_fast.streaming.graph import RECORDERS

_PLAIN_TENSORS = (Tensor, nn.Parameter)
_KNOWN_PACKAGES = ("torch.nn.", "diffusers.", "peft.")
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def marks(root: nn.Module) -> list[Any]:
    """What has to be as it was for a recording of `root` to be right: modules, hooks, places of weights, numbers."""
    found: list[Any] = [_global_hooks()]
    waiting: list[nn.Module] = [root]
    while waiting:
        module = waiting.pop()
        state: dict[str, Any] = vars(module)
        kind: Any = type(module)
        found += (None if module is root else module, kind, state["training"], state.get("forward"))
        found += (len(state["_forward_hooks"]), len(state["_forward_pre_hooks"]), state.get("_compiled_call_impl"))
        for tensors in (state["_parameters"], state["_buffers"]):
            for tensor in tensors.values():
                if type(tensor) in _PLAIN_TENSORS:
                    found += (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
                else:
                    found.append(type(tensor))
        if _numbers_matter(kind):
            found += _numbers(state)
        waiting += [child for child in state["_modules"].values() if child is not None]
    return found


def obstacle_to_recording(root: nn.Module) -> str | None:
    """Why the forward pass of `root` is not recorded as it is now, or None."""
    places = {tensor.device for tensor in (*root.parameters(), *root.buffers())}
    if len(places) != 1:
        return f"its weights are on {len(places)} devices"
    (device,) = places
    if device.type not in RECORDERS:
        return f"CUDA graphs are for GPUs, and it is on {device}: patch it where it is to run"
    if _global_hooks():
        return "torch runs a hook with every module, and a recording runs none"
    return next(_obstacles(root), None)


def _obstacles(root: nn.Module) -> Iterator[str]:
    for name, module in root.named_modules():
        kind, state = type(module), vars(module)
        place = f"{name} ({kind.__name__})" if name else "the model"
        if not f"{kind.__module__}.".startswith(_KNOWN_PACKAGES):
            yield f"{place} is of {kind.__module__}, and what its forward reads besides weights is not known here"
        if module is not root and (state["_forward_hooks"] or state["_forward_pre_hooks"]):
            yield f"{place} has hooks, and a recording runs none"
        if _other_forward(module):
            yield f"another package has replaced the forward of {place}, as offloading and caches do"
        if state.get("_compiled_call_impl") is not None:
            yield f"{place} is compiled"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            yield f"{place} is in training mode with dropout"
        for tensor in (*state["_parameters"].values(), *state["_buffers"].values()):
            if tensor is not None and type(tensor) not in _PLAIN_TENSORS:
                yield f"{place} has weights of type {type(tensor).__name__}"
        processor = state.get("processor")
        if processor is not None and not type(processor).__module__.startswith("diffusers."):
            yield f"{place} has a processor of its own, {type(processor).__name__}"
        if getattr(processor, "_parallel_config", None) is not None:
            yield f"{place} is one of several in parallel"


def _global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _other_forward(module: nn.Module) -> bool:
    """Whether `module` has a forward of its own; hooks that are gone may leave it the one of its class."""
    own = vars(module).get("forward")
    bound = getattr(own, "__self__", None) is module and getattr(own, "__func__", None) is type(module).forward
    return own is not None and not bound


@functools.cache
def _numbers_matter(kind: Any) -> bool:
    """Whether modules of this class are switched in Python: adapters, attention, dropout."""
    switched = kind.__module__.startswith("peft.") or kind.__name__ == "WanAttention"
    return switched or issubclass(kind, nn.modules.dropout._DropoutNd)


def _numbers(state: dict[str, Any]) -> Iterator[Any]:
    for name, value in state.items():
        if name == "processor":
            yield value
            yield _still(getattr(value, "__dict__", None))
        elif name not in _OF_EVERY_MODULE and not isinstance(value, torch.nn.Module):
            yield _still(value)


def _still(value: Any) -> Any:
    """A copy of numbers, words and what holds them, to be compared later; of anything else the identity."""
    if value is None or isinstance(value, bool | int | float | str | type):
        return value
    if isinstance(value, dict):
        return tuple((_still(key), _still(item)) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_still, value))
    return id(value)
