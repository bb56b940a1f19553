# SPDX-License-Identifier: Apache-2.0
"""Steps down a gradient that is checked first; Muon for matrices inside a network and AdamW for all else, as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aapt_fast.training.muon import Float32Muon
from aapt_fast.training.place import uncut

NOTHING_SLOW: Mapping[str, float] = MappingProxyType({})


class Stateful(Protocol):
    """A part of a checkpoint: a module, an optimiser, an average."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as torch saves it."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take over a state of `state_dict`."""


class Optimiser(Stateful, Protocol):
    """The parts of a torch optimiser that a training needs."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Settings of each group, among them its learning rate "lr"."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Move the parameters down their gradients."""


def descend(model: nn.Module, optimiser: Optimiser, largest_norm: float = math.inf) -> None:
    """Take one step with the gradients of `model`, scaled down together to a norm of `largest_norm`, and forget them.

    Raises FloatingPointError, before any weight moves, naming the first parameter whose gradient is not finite.
    """
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    norm = uncut(nn.utils.get_total_norm(gradients.values()))
    if not norm.isfinite():
        bad = [name for name, gradient in gradients.items() if not uncut(gradient.norm()).isfinite()]
        raise FloatingPointError(f"the gradient of {bad[0] if bad else 'all weights together'} is not finite")
    nn.utils.clip_grads_with_norm_(model.parameters(), largest_norm, norm)
    optimiser.step()
    optimiser.zero_grad()


INNER = ("blocks.", "head.", "control_stem.", "encoder.", "decoder.")
"""Beginnings of the names of what is inside a generator or a codec."""
LAST = ("encoder.conv_out.weight", "decoder.conv_out.weight")
"""Kernels of a codec that begin at zero: a step of Muon, of full length however small the gradient, is too much."""


def matrices_in(name: str, parameter: Tensor) -> int:
    """How many matrices for Muon a parameter [...] of a network is, one below the other; 0 if it is for AdamW."""
    inner = name.startswith(INNER) and name.endswith("weight") and name not in LAST
    return (3 if ".qkv." in name else 1) if inner and parameter.ndim in (2, 4, 5) else 0


def as_matrix(values: Tensor, kernel: Tensor) -> Tensor:
    """Values [O, ...] of a kernel or its gradient as [O, inputs * taps], columns in the order of the kernel's memory.

    So the matrix of the kernel itself shares its memory, whatever its layout. Muon does not mind the order.
    """
    order = sorted(range(1, kernel.ndim), key=kernel.stride, reverse=True)
    return values.permute(0, *order).reshape(len(values), -1)


def adam_groups(model: nn.Module, rest: list[nn.Parameter], rate: float, slow: Mapping[str, float]) -> list[Any]:
    """Groups of AdamW for the parameters `rest` of a model; names that begin as in `slow` get that share of `rate`."""
    shares = {
        parameter: next((share for start, share in slow.items() if name.startswith(start)), 1.0)
        for name, parameter in model.named_parameters()
    }
    return [
        {"params": [each for each in rest if shares[each] == share], "lr": rate * share}
        for share in dict.fromkeys([1.0, *slow.values()])
    ]


class MatrixOptimiser:
    """Muon on linear maps and convolution kernels of blocks, head and stem; AdamW on the rest.

    Muon wants plain matrices: kernels are seen as [outputs, inputs * taps], a fused QKV as three matrices, through
    parameters that share memory with the model's own. `slow` has beginnings of names and the share of `rate` for them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        matrix_rate: float,
        rate: float,
        weight_decay: float = 0.01,
        slow: Mapping[str, float] = NOTHING_SLOW,
    ) -> None:
        self._views: list[tuple[nn.Parameter, Tensor, slice]] = []
        self._rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parts := matrices_in(name, parameter):
                rows = len(parameter) // parts
                for part in range(parts):
                    span = slice(part * rows, (part + 1) * rows)
                    self._views.append((nn.Parameter(as_matrix(parameter.data[span], parameter)), parameter, span))
            else:
                self._rest.append(parameter)
        self._muon = Float32Muon([view for view, _, _ in self._views], lr=matrix_rate, weight_decay=weight_decay)
        groups = adam_groups(model, self._rest, rate, slow)
        self._adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self._muon.param_groups, *self._adam.param_groups]

    def zero_grad(self) -> None:
        for parameter in self._rest:
            parameter.grad = None
        for view, parameter, _ in self._views:
            view.grad = parameter.grad = None

    def step(self) -> None:
        for view, parameter, span in self._views:
            if parameter.grad is not None:
                view.grad = as_matrix(parameter.grad[span], parameter)
        self._muon.step()
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
