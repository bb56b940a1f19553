# SPDX-License-Identifier: Apache-2.0
"""The forward pass of diffusers' `WanTransformer3DModel` as CUDA graphs, one per signature of a call.

    inputs -> tensors that stay in place -> replay -> a copy of the result

A signature is all that decides which kernels are launched: shapes and dtypes of the inputs, autocast, the kernels and
attention backends chosen, the stream. What a recording reads besides, weights above all, is watched by `module_state`.
A call that cannot be replayed goes to the original: gradients, torch.compile, another recording, `attention_kwargs`.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from aapt_fast.integrations.module_state import marks, obstacle_to_recording
from aapt_fast.integrations.sites import Site
from aapt_fast.integrations.swap import Original
from aapt_fast.ops.kernels import selection
from aapt_fast.streaming.graph import Recording, record

PART = "cuda_graph"
UNASKED = "there, but no GPU has run it, so it is left alone unless asked for: cuda_graph=True"
RUNS = "the forward pass recorded as a CUDA graph per signature, while no gradients are recorded; no GPU has run it"
MAX_RECORDINGS = 4  # each holds the memory of a forward pass
_RECORDINGS = "_aapt_fast_recordings"

Inputs = Sequence[Tensor | None]


class RecordedForward(Original):
    """`forward` of `WanTransformer3DModel`, recorded in the first call of a signature and replayed from then on."""

    kept_by_swap = (_RECORDINGS,)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """hidden_states [B, C, F, h, w], timestep [B] or [B, N], text [B, L, d], image [B, L', d'] or None.

        Gives [B, C', F, h, w] as `Transformer2DModelOutput` or in a tuple. RuntimeError if recording fails.
        """
        inputs = (hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image)
        rest = {"attention_kwargs": attention_kwargs, **options}
        plain = super().forward
        if torch.compiler.is_compiling() or attention_kwargs or options or not _may_be_recorded(self, inputs):
            return plain(*inputs, return_dict=return_dict, **rest)
        output = _recordings_of(self).run(self, inputs, lambda *tensors: plain(*tensors, return_dict=False)[0])
        if output is None:
            return plain(*inputs, return_dict=return_dict, **rest)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """What `to`, `half` and the like do; recordings of weights that were elsewhere are freed at once."""
        module = super()._apply(*arguments, **options)
        recordings = vars(self).get(_RECORDINGS)
        if recordings is not None:
            recordings.check(self)
        return module


def transformer_site(transformer: Any, where: str) -> Site:
    """The forward pass of a `WanTransformer3DModel`."""
    obstacle = obstacle_to_recording(transformer)
    return Site(PART, where, transformer, "forward", RecordedForward, RUNS, obstacle, UNASKED)


def _may_be_recorded(module: nn.Module, inputs: Inputs) -> bool:
    """Whether nothing outside `module` speaks against a replay: no gradients, no other recording, ordinary tensors."""
    given = [x for x in inputs if x is not None]
    if any(type(x) is not Tensor for x in given) or len({x.device for x in given}) != 1:
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*given, *module.parameters())):
        return False
    if torch.autograd.forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0 or "_is_replica" in vars(module):
        return False
    return not (given[0].is_cuda and torch.cuda.is_current_stream_capturing())


# ---- recordings ----


@dataclass
class _Recorded:
    inputs: list[Tensor]
    recording: Recording


class Recordings:
    """The recordings of one module. They are dropped together when what they depend on has changed."""

    def __init__(self, module: nn.Module) -> None:
        self._owner = weakref.ref(module)
        self._lock = threading.RLock()
        self._marks: list[Any] = []
        self._obstacle: str | None = None
        self._recorded: OrderedDict[Any, _Recorded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recorded)

    def belongs_to(self, module: nn.Module) -> bool:
        """Whether these are of `module`, and not of one that it got its attributes from."""
        return self._owner() is module

    def check(self, module: nn.Module) -> str | None:
        """Drop recordings that are no longer right; why `module` is not recorded now, or None."""
        with self._lock:
            now = marks(module)
            if now != self._marks:
                self._recorded.clear()
                self._marks, self._obstacle = now, obstacle_to_recording(module)
            return self._obstacle

    def run(self, module: nn.Module, inputs: Inputs, forward: Callable[..., Tensor]) -> Tensor | None:
        """`forward(*inputs)` [...] by a replay, recorded before where it has to be; None: call it yourself."""
        given = [x for x in inputs if x is not None]
        with self._lock, torch.no_grad():
            if self.check(module) is not None or next(module.parameters()).device != given[0].device:
                return None
            key = _signature(inputs)
            if key not in self._recorded:
                while len(self._recorded) >= MAX_RECORDINGS:
                    self._recorded.popitem(last=False)
                self._recorded[key] = _record(inputs, forward)
            self._recorded.move_to_end(key)
            recorded = self._recorded[key]
            for place, value in zip(recorded.inputs, given, strict=True):
                place.copy_(value)
            return recorded.recording.replay().clone()


def _recordings_of(module: nn.Module) -> Recordings:
    found = vars(module).get(_RECORDINGS)
    if found is None or not found.belongs_to(module):
        found = vars(module)[_RECORDINGS] = Recordings(module)
    return found


def _signature(inputs: Inputs) -> tuple[Any, ...]:
    shapes = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
    device = next(x.device for x in inputs if x is not None)
    cast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    attention = torch.backends.cuda  # which of torch's own it may choose
    allowed = (attention.flash_sdp_enabled(), attention.mem_efficient_sdp_enabled(), attention.math_sdp_enabled())
    chosen = (selection(), _attention_backend(), allowed, attention.cudnn_sdp_enabled())
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    return shapes, cast, chosen, torch.are_deterministic_algorithms_enabled(), stream


def _attention_backend() -> Any:
    """What diffusers has been told to attend with; versions that cannot be told have one way only."""
    try:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry
    except ImportError:
        return None
    return _AttentionBackendRegistry.get_active_backend()[0]


def _record(inputs: Inputs, forward: Callable[..., Tensor]) -> _Recorded:
    with torch.inference_mode(False), torch.no_grad(), _without_cache_of_autocast():
        places = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
        here = [place for place in places if place is not None]
        for place, value in zip(here, (x for x in inputs if x is not None), strict=True):
            place.copy_(value)
        try:
            recording = record(lambda: forward(*places), here[0].device)
        except RuntimeError as error:
            raise RuntimeError(f"{error} (unpatch, then patch with cuda_graph=False)") from error
    return _Recorded(here, recording)


@contextlib.contextmanager
def _without_cache_of_autocast() -> Iterator[None]:
    """Weights that autocast has cast before are not in the recording, and not there later."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
