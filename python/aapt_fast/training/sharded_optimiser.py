# SPDX-License-Identifier: Apache-2.0
"""The optimiser of matrices and of all else, for weights that are cut among ranks.

AdamW looks at one number at a time, so each rank moves its own. Muon wants whole matrices: momentum stays where its
rows are, and the direction that it gives goes to one rank per matrix, which makes it orthogonal and gives the rows
back. So n ranks share the matrices of one shape, and each rank sends and gets 2 / n of what it holds of them per step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.training.muon import Float32Muon, orthogonal
from aapt_fast.training.optimiser import NOTHING_SLOW, adam_groups, matrices_in
from aapt_fast.training.place import Place, own_part


@dataclass(frozen=True)
class CutMatrices:
    """A parameter of `parts` matrices, one below the other, of which this rank has some rows."""

    own: nn.Parameter  # [own rows, columns], in the memory of the parameter
    parameter: Any  # cut, [rows, ...]
    parts: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole."""
        return len(self.parameter), self.own.shape[1]


class ShardedMatrixOptimiser:
    """`MatrixOptimiser` for a model that `place.put` has cut: the same steps, up to rounding.

    Its state holds tensors that are cut as the parameters are.
    """

    def __init__(
        self,
        model: nn.Module,
        place: Place,
        *,
        matrix_rate: float,
        rate: float,
        weight_decay: float = 0.01,
        slow: Mapping[str, float] = NOTHING_SLOW,
    ) -> None:
        self._place, self._rest = place, list[nn.Parameter]()
        self._matrices: list[CutMatrices] = []
        for name, parameter in model.named_parameters():
            if parts := matrices_in(name, parameter):
                own = nn.Parameter(own_part(parameter.data).flatten(1))
                self._matrices.append(CutMatrices(own, parameter, parts))
            else:
                self._rest.append(parameter)
        self._muon = Float32Muon([each.own for each in self._matrices], lr=matrix_rate, weight_decay=weight_decay)
        groups = adam_groups(model, self._rest, rate, slow)
        self._adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Settings of Muon and of AdamW."""
        return [*self._muon.param_groups, *self._adam.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._rest:
            parameter.grad = None
        for each in self._matrices:
            each.own.grad = each.parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters down their gradients; all ranks have to call it."""
        [group] = self._muon.param_groups
        moved = [each for each in self._matrices if each.parameter.grad is not None]
        for each in moved:
            each.own.grad = own_part(each.parameter.grad).flatten(1)
        for together in _by_shape(moved, self._place.size):
            updates = self._orthogonal(together, [self._muon.towards(each.own, group) for each in together], group)
            for each, update in zip(together, updates, strict=True):
                rows, columns = each.shape
                self._muon.move(each.own, update, group, (rows // each.parts, columns))
        self._adam.step()

    def _orthogonal(self, together: list[CutMatrices], towards: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Own rows of the updates, from those of the directions; each rank computes one of `together`."""
        transport, n = self._place.transport, self._place.size
        assert transport is not None
        rows, columns = together[0].shape
        height = -(-rows // n)  # of a rank, of the last ones less
        given = towards[0].new_zeros(n, height, columns)
        for number, own in enumerate(towards):
            given[number, : len(own)] = own
        whole = transport.all_to_all(given).flatten(0, 1)[:rows]
        if transport.rank < len(together):
            settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
            whole = torch.cat([orthogonal(part, *settings) for part in whole.chunk(together[0].parts)])
        padded = F.pad(whole, (0, 0, 0, n * height - rows)).view(n, height, columns)
        back = transport.all_to_all(padded.contiguous())
        return [back[number, : len(own)] for number, own in enumerate(towards)]

    def state_dict(self) -> dict[str, Any]:
        """Momenta, cut as the parameters, and what AdamW has."""
        return {"muon": [self._momentum(each) for each in self._matrices], "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`, of any number of ranks."""
        for each, momentum in zip(self._matrices, state["muon"], strict=True):
            if momentum is not None:
                self._muon.state[each.own]["momentum_buffer"] = own_part(momentum).to(each.own.device)
        self._adam.load_state_dict(state["adam"])

    def _momentum(self, each: CutMatrices) -> Tensor | None:
        """The momentum [rows, columns] of a parameter, cut; None before its first step."""
        from torch.distributed.tensor import DTensor, Shard

        if not self._muon.state[each.own]:
            return None
        own, (rows, columns) = self._muon.state[each.own]["momentum_buffer"], each.shape
        return DTensor.from_local(
            own, self._place.mesh, [Shard(0)], run_check=False, shape=torch.Size((rows, columns)), stride=(columns, 1)
        )


def _by_shape(matrices: list[CutMatrices], most: int) -> list[list[CutMatrices]]:
    """Lists of at most so many matrices, each of one shape and of as many parts."""
    kinds: dict[object, list[CutMatrices]] = {}
    for each in matrices:
        kinds.setdefault((each.shape, each.parts), []).append(each)
    return [kind[first : first + most] for kind in kinds.values() for first in range(0, len(kind), most)]
