# SPDX-License-Identifier: Apache-2.0
"""Where a training runs: the device of this process, and the ranks that train one model together.

Ranks share the rows of every batch, and with `context` the tokens of each row as well. Everything that chance decides
is drawn for the whole batch, on the CPU and from the seed of the step, by every rank, which then takes its own rows. So
n ranks on any devices see the numbers that one process sees, and make the same model up to rounding.

Weights, gradients, averages and the state of optimisers are cut among all ranks by torch's FSDP2 (`fully_shard`): each
rank keeps 1/n, and has the whole weights of a block only while it computes with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aapt_fast.distributed import launch
from aapt_fast.distributed.context_parallel import share_tokens
from aapt_fast.distributed.transport import TorchTransport, Transport, require_agreement, sum_over_ranks
from aapt_fast.errors import require
from aapt_fast.training.precision import mixed_precision, training_dtype
from aapt_fast.training.recomputing import recompute

T = TypeVar("T")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Place:
    """A device, and the ranks that train together; `ALONE` is one process on the CPU.

    Args:
        device: of this process.
        transport: to the other ranks; None: a process by itself.
        context: number of ranks that share the tokens of the same rows (distributed/context_parallel.py).
        recompute: compute the blocks of a network again in the backward pass, instead of keeping what they computed.
        sharded: cut weights among the ranks; False only where ranks are no processes.

    Raises:
        ValueError: `context` does not divide the ranks.
    """

    def __init__(
        self,
        device: torch.device,
        transport: Transport | None = None,
        *,
        context: int = 1,
        recompute: bool = False,
        sharded: bool = True,
    ) -> None:
        self.device, self.transport, self.context, self.recompute = device, transport, context, recompute
        self.rank, self.size = (transport.rank, transport.size) if transport else (0, 1)
        fits = context >= 1 and self.size % context == 0
        require(fits, "context", f"a number that divides {self.size} ranks", context)
        self.mesh: Any = None
        self.tokens: Transport | None = None  # to the ranks of the same context
        if transport is not None and sharded:
            from torch.distributed.device_mesh import init_device_mesh  # a second, which one process does not need

            self.mesh = init_device_mesh(device.type, (self.size,))
            if context > 1:
                both = init_device_mesh(device.type, (self.size // context, context), mesh_dim_names=("rows", "tokens"))
                self.tokens = TorchTransport(both["tokens"].get_group())

    @property
    def is_first(self) -> bool:
        """True in the rank that writes files and messages."""
        return self.rank == 0

    @property
    def compiles(self) -> bool:
        """True if networks may be compiled; those that are cut among ranks are not."""
        return self.mesh is None

    def share(self, batch: int) -> Share:
        """This rank's part of batches of `batch` rows. Raises ValueError for less rows than there are ranks for."""
        return Share(self, batch)

    def wait(self) -> None:
        """Wait for all ranks, for as long as it takes."""
        if self.transport is not None:
            self.transport.gather(None)

    def in_turn(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by the first rank and then, as it is on disk, by the others."""
        if not self.is_first:
            self.wait()
        result = work()
        if self.is_first:
            self.wait()
        return result

    def anywhere(self, happened: bool) -> bool:
        """True on every rank if something has happened on one of them. A rank that hangs is noticed here."""
        if self.transport is None:
            return happened
        return bool(self.transport.all_gather(torch.tensor([happened], device=self.device)).any())

    def first_says(self, value: T) -> T:
        """The value that the first rank has, on every rank."""
        return value if self.transport is None else self.transport.gather(value)[0]

    def require_same(self, **facts: object) -> None:
        """Raise the same ValueError on every rank unless all have the same `facts`."""
        if self.transport is not None:
            require_agreement(self.transport, {name: str(fact) for name, fact in facts.items()})

    def evaluating(self) -> AbstractContextManager[object]:
        """Context for networks outside of training: float32, but for blocks that `put` has in another dtype."""
        return nullcontext() if self.mesh is None else mixed_precision(self.device)

    def put(self, model: ModuleT, methods: Iterable[str] = (), *, keep: bool = False) -> ModuleT:
        """The model itself, its weights on the device and cut among the ranks.

        Args:
            model: with the same float32 weights on every rank; else all ranks raise the same ValueError.
            methods: names of those that are called besides `forward`.
            keep: keep the weights of blocks whole from the first forward pass until `settle`, for a model that takes
                many steps per update (as in ZeRO-2); else only while a block computes (ZeRO-3).
        """
        self.require_same(weights=_bits(model) if self.transport else "")
        for block in blocks_of(model) if self.recompute else ():
            recompute(block)
        if self.tokens is not None and blocks_of(model):
            share_tokens(model, self.tokens)
        if self.mesh is None:
            return model.to(self.device)
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 has no other memory format
        dtype = training_dtype(self.device)
        half = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks_of(model):
            fully_shard(block, mesh=self.mesh, reshard_after_forward=not keep, mp_policy=half)
        root: Any = fully_shard(model, mesh=self.mesh)
        root.set_reshard_after_backward(not keep)
        for name in methods:
            register_fsdp_forward_method(root, name)
        return model

    def settle(self, model: nn.Module) -> None:
        """Forget what a rank has of other ranks' weights. To be called before weights change, or what is trained."""
        if self.mesh is not None:
            from torch.distributed.fsdp import FSDPModule

            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def freeze(self, model: nn.Module, frozen: bool) -> None:
        """Train the weights of `model`, or do not. Not to be called between its forward and its backward pass."""
        self.settle(model)
        model.requires_grad_(not frozen)

    def whole_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The state of a model of `put` [...], whole and on the CPU; empty on all ranks but the first."""
        state = {}
        for name, value in model.state_dict().items():
            whole = uncut(value)
            if self.is_first:
                state[name] = whole.cpu()
        return state


class Share:
    """The rows of each batch that a rank computes, and what has to be the mean over all rows.

    Args:
        place: of the rank.
        batch: rows of all ranks together; a process by itself has all of them, whatever their number.
    """

    def __init__(self, place: Place, batch: int) -> None:
        groups = place.size // place.context
        require(batch >= groups, "batch", f"at least one row for each of {groups} ranks", batch)
        index = place.rank // place.context
        self.place, self._batch, self._groups = place, batch, groups
        self.rows = slice(index * batch // groups, (index + 1) * batch // groups)
        self.part = (self.rows.stop - self.rows.start) / batch
        """Of the batch that is this rank's."""
        self.weight = groups * self.part
        """What a mean over own rows is to be multiplied with, as FSDP2 takes the mean of gradients over ranks."""

    def own(self, whole: Tensor) -> Tensor:
        """The own rows, on the device, of what is known for the whole batch [B, ...]."""
        return (whole if self._groups == 1 else whole[self.rows]).to(self.place.device)

    def batch(self, own: Tensor) -> int:
        """Rows of all ranks together, where this one has those of `own` [b, ...]."""
        return len(own) if self._groups == 1 else self._batch

    def randn_like(self, own: Tensor) -> Tensor:
        """Own rows of normal noise that is drawn for the whole batch, like `own` [b, ...]."""
        return self.own(torch.randn(self.batch(own), *own.shape[1:], dtype=own.dtype))

    def mean(self, own: Tensor) -> Tensor:
        """Means over all rows [...], without gradient, from those over own rows."""
        return self._sum(own.detach() * self.part) if self.place.transport else own.detach()

    def norm(self, pull: Tensor) -> Tensor:
        """Norm [] of the gradient of a mean over all rows, from that of the mean over own rows, `pull` [b, ...]."""
        if self.place.transport is None:
            return pull.norm()
        return self._sum((self.part * pull).square().sum()).sqrt()

    def of_context(self, pull: Tensor) -> Tensor:
        """The gradient [...] with respect to what all ranks of a context have, from the part that this one got."""
        tokens = self.place.tokens
        return pull if tokens is None else sum_over_ranks(tokens, pull) / self.place.context

    def _sum(self, own: Tensor) -> Tensor:
        assert self.place.transport is not None
        # ranks of one context have the same rows
        return sum_over_ranks(self.place.transport, own.float()) / self.place.context


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a generator or of a discriminator, which are the bulk of it; none of another network."""
    return [*getattr(getattr(model, "trunk", model), "blocks", ())]


def _bits(model: nn.Module) -> int:
    """A number that changes with the weights: the sum of their bits."""
    return sum(int(each.detach().float().view(torch.int32).sum(dtype=torch.int64)) for each in model.parameters())


def uncut(x: Any) -> Tensor:
    """The whole of a tensor [...] that may be cut among ranks; all ranks have to call it."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def own_part(x: Any) -> Tensor:
    """This rank's part [...] of a tensor that may be cut among ranks, in the same memory."""
    return x.to_local() if hasattr(x, "to_local") else x


def join(device: str | None = None, *, context: int = 1, recompute: bool = False) -> Place:
    """Join the other processes that `torchrun` has started, and train with them.

    `device`, "cuda" or "cpu", is as for `aapt_fast.distributed.start`, whose errors this raises; `context` and
    `recompute` are as for `Place`. Raises ValueError on every rank if they differ.
    """
    transport, own = launch.start(device)
    place = Place(own, transport, context=context, recompute=recompute)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nobody here adds to it in place
    place.require_same(context=context, recompute=recompute, torch=torch.__version__)
    return place


ALONE = Place(torch.device("cpu"))
UNSHARED = ALONE.share(1)
"""All rows of any batch, on the CPU."""
