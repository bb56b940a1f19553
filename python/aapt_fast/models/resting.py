# SPDX-License-Identifier: Apache-2.0
"""Weights that rest in host memory and visit a device for one computation.

Some weights are needed for a prompt and never in a step. They need no memory of a GPU in between:

    rest_on_host(module)                     once; from here on its weights lie in host memory
    visiting(module, x.device)(x)            computes with a copy on the device, which then goes

The module itself does not change during a visit, so several threads may compute with it at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from aapt_fast.errors import require

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def rest_on_host(modules: Iterable[nn.Module]) -> None:
    """Move the weights of modules on a GPU to pinned host memory, from which they are copied several times faster.

    Torch rounds a piece of pinned memory up to a power of two, so this takes up to twice the bytes of the weights.
    """
    for module in modules:
        module._apply(_pinned)


def visiting(module: ModuleT, device: torch.device) -> ModuleT:
    """The module, if its weights are on `device`, else a copy of it there. Nothing waits for the copy to be complete.

    `device` has an index where it is a GPU, as devices of tensors have. Gradients flow back to the module.
    """
    if all(tensor.device == device for tensor in _tensors(module)):
        return module
    return copied(module, device)


def copied(module: ModuleT, device: torch.device) -> ModuleT:
    """A copy of a module, with weights on `device`; weights that it has in several places stay shared."""
    in_place_of: dict[int, Any] = {id(tensor): tensor.to(device, non_blocking=True) for tensor in _tensors(module)}
    return copy.deepcopy(module, in_place_of)


class Visitor(nn.Module):
    """A module in the place of another one, whose weights visit the device of its first input in each call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        """x [...] and further arguments of the other module -> its result."""
        return visiting(self.module, x.device)(x, *arguments, **options)


def require_own_weights(argument: str, modules: Iterable[nn.Module], whole: nn.Module) -> None:
    """Raise ValueError if other parts of `whole` use a weight of these modules: all would move with it."""
    parts = list(modules)
    inside = {id(module) for part in parts for module in part.modules()}
    others = [module for module in whole.modules() if id(module) not in inside]
    elsewhere = {id(parameter) for module in others for parameter in module.parameters(recurse=False)}
    shared = {id(parameter) for part in parts for parameter in part.parameters()} & elsewhere
    names = [name for name, parameter in whole.named_parameters() if id(parameter) in shared]
    require(not names, argument, "False: other parts of the network use weights of the text stream", ", ".join(names))


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())


def _pinned(tensor: Tensor) -> Tensor:
    """A copy of a tensor [...] in pinned host memory; of one with several parts (quantised), in ordinary memory."""
    if is_traceable_wrapper_subclass(tensor):
        return tensor.to("cpu")
    place = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu", pin_memory=True)
    return place.copy_(tensor)
