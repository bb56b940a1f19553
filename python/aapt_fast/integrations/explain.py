# SPDX-License-Identifier: Apache-2.0
"""A report on what runs in a patched model, or in a model of this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from aapt_fast.integrations.report import Finding, PatchReport
from aapt_fast.integrations.search import find_sites
from aapt_fast.integrations.sites import explain_sites
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.aapt import AAPTVAE
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.vae.ring_cache import OPS as RING_OPS
from aapt_fast.models.vae.ring_cache import kernels_run
from aapt_fast.models.vae.video_stream import LayeredDecoder
from aapt_fast.models.vae.wan import WanVAE
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops.kernels import record_for, selection
from aapt_fast.ops.registry import OPS, implementation
from aapt_fast.streaming.session import StreamSession

ATTENTION = ("kv_write", "paged_attention")
OWN: dict[type[nn.Module], tuple[str, ...]] = {
    Generator: ("channel_concat", *ATTENTION, "gate_residual_norm"),
    WanTransformer: ATTENTION,
    MiniVAE: ("causal_conv3d",),
    WanVAE: ("causal_conv3d",),
    AAPTVAE: ("causal_conv3d",),
}
"""Ops that a stream of each model of this package calls; its other layers are torch's. A decoder whose frames lie in
rings calls `RING_OPS`."""


def explain(obj: Any) -> PatchReport:
    """Report on each place that `patch` knows in `obj`: replaced and running where it is now, or the reason why not.

    A model or session of this package needs no patch; its report lists its ops and what each would run. Kernels are
    reported by the choice that calls make; `aapt_fast.ops.observe_ops` records the calls themselves. On a GPU the
    report names the record of `aapt-fast verify`. Nothing is changed. Raises TypeError if nothing in `obj` is known
    here.
    """
    own = tuple(_own_ops(obj))
    if own:
        return PatchReport(type(obj).__name__, own=own, kernels=_record(_parts(obj).values()))
    sites = find_sites(obj)
    replaced, left_alone = explain_sites(sites)
    record = _record(site.target for site in sites)
    return PatchReport(type(obj).__name__, tuple(replaced), tuple(left_alone), kernels=record)


def _record(objects: Iterable[Any]) -> str | None:
    """One sentence about the record of the GPU that holds the first parameters among these objects."""
    modules = (each for each in objects if isinstance(each, nn.Module))
    devices = (parameter.device for module in modules for parameter in module.parameters())
    gpu = next((device for device in devices if device.type == "cuda"), None)
    found = None if gpu is None else record_for(gpu, selection())
    return None if found is None else found.in_words()


def _parts(obj: Any) -> dict[str, Any]:
    """The models of this package in `obj` by their places, or `obj` itself."""
    model = obj.model if isinstance(obj, StreamSession) else obj
    return {"generator": model.generator, "vae": model.vae} if isinstance(model, StreamModel) else {"": model}


def _own_ops(obj: Any) -> Iterator[Finding]:
    """One finding per op of the models of this package in `obj`; none for another object."""
    for where, part in _parts(obj).items():
        ops = next((ops for kind, ops in OWN.items() if isinstance(part, kind)), ())
        if isinstance(part, Generator) and part.config.prediction == "velocity" and part.head is None:
            ops = (*ops, "clean_frame")
        if isinstance(part, LayeredDecoder) and _decodes_in_rings(part):
            ops = RING_OPS
        for op in ops:
            device = next(part.parameters()).device
            runs = implementation(op, device) if device.type in OPS[op] else f"nothing on {device}"
            yield Finding("op", where, op, runs)


def _decodes_in_rings(decoder: LayeredDecoder) -> bool:
    """True where the frames of a stream would lie in a `RingCache`."""
    weight = next(decoder.parameters())
    return kernels_run(weight.device, weight.dtype)
