# SPDX-License-Identifier: Apache-2.0
"""Making somebody's model faster in place, and undoing that.

    report = aapt_fast.patch(pipe)      # a diffusers WanPipeline, one of its parts, or a Wan-family model
    print(report)                       # what was replaced, what was left alone, and why
    aapt_fast.unpatch(pipe)

Weights, keys and attributes stay as they are; see `integrations/swap.py` for how.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aapt_fast.integrations.report import PatchReport
from aapt_fast.integrations.search import find_sites, swapped_in
from aapt_fast.integrations.sites import explain_sites, patch_sites
from aapt_fast.integrations.swap import swap_back


def patch(
    obj: Any, *, attention: bool = True, vae: bool = True, cuda_graph: bool | None = None, strict: bool = False
) -> PatchReport:
    """Replace slow parts of `obj` by faster ones with the same results.

    Args:
        obj: a diffusers `WanPipeline`, `WanTransformer3DModel` or `AutoencoderKLWan`; the original `WanVAE_`; a
            `CausalWanModel` of Self-Forcing and its relatives, the decoder of its demo; or an object that holds such
            parts.
        attention: attention of transformers.
        vae: encoder and decoder.
        cuda_graph: whole forward passes of diffusers' `WanTransformer3DModel` as CUDA graphs. No GPU has run it, so
            None leaves it alone and the report says that it is there; True asks for it.
        strict: raise if a part that was asked for, and that `obj` has, is left alone anywhere. Attention and VAE are
            asked for unless they are False, `cuda_graph` only by True.

    Returns:
        what was replaced and what was left alone. A second call changes nothing and says the same.

    Raises:
        TypeError: nothing in `obj` is known here; a list; a model of this package, which is fast already.
        RuntimeError: `strict`, and something was left alone; then `obj` is as it was before.
    """
    wanted = {"attention": attention, "vae": vae, "cuda_graph": cuda_graph}
    before, sites = swapped_in(obj), find_sites(obj)
    replaced, left_alone = patch_sites(site for site in sites if wanted[site.part])
    stayed, not_asked_for = explain_sites(site for site in sites if wanted[site.part] is None and site.unasked)
    report = PatchReport(type(obj).__name__, (*replaced, *stayed), (*left_alone, *not_asked_for))
    if strict and left_alone:
        _restore(obj, before)
        raise RuntimeError(f"strict: expected everything asked for to be replaced, got\n{report}")
    return report


def unpatch(obj: Any) -> None:
    """Give every object in `obj` the methods it had before `patch`. Without a patch, nothing happens.

    Raises RuntimeError if another package has changed the class of a patched object since.
    """
    _restore(obj, [])


@contextmanager
def patched(obj: Any, **options: bool | None) -> Iterator[PatchReport]:
    """`patch(obj, **options)` for the length of a `with` block; what was patched before stays patched after it."""
    before = swapped_in(obj)
    try:
        yield patch(obj, **options)
    finally:
        _restore(obj, before)


def _restore(obj: Any, keep: list[Any]) -> None:
    kept = {id(target) for target in keep}
    for target in swapped_in(obj):
        if id(target) not in kept:
            swap_back(target)
