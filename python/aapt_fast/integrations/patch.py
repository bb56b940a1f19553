# SPDX-License-Identifier: Apache-2.0
"""Replacement of slow parts in a model of another package, in place, and its reversal.

    report = aapt_fast.patch(pipe)      # a diffusers WanPipeline, one of its parts, or a Wan-family model
    print(report)                       # what was replaced, what was left alone, and why
    aapt_fast.unpatch(pipe)

Weights, keys and attributes stay as they are; `integrations/swap.py` says how.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from aapt_fast.integrations.report import PatchReport
from aapt_fast.integrations.search import find_sites, holds_known, require_known, swapped_in
from aapt_fast.integrations.sites import patch_sites
from aapt_fast.integrations.swap import swap_back


def patch(obj: Any, *, attention: bool = True, vae: bool = True, strict: bool = False) -> PatchReport:
    """Replace slow parts of `obj` by faster ones with the same results.

    Args:
        obj: a diffusers `WanPipeline`, `WanTransformer3DModel` or `AutoencoderKLWan`; the original `WanVAE_`; the
            `WanVAE` of ComfyUI; a `CausalWanModel` of Self-Forcing and its relatives, the decoder of its demo; or an
            object that holds such parts, as ComfyUI's `VAE`.
        attention: replace attention of transformers.
        vae: replace layers of encoder and decoder.
        strict: raise if a place of the parts above is left alone.

    Returns:
        the places that were replaced and those that were left alone. A second call changes nothing and reports the
        same.

    Raises:
        TypeError: `obj` holds no model that is known here, is a list, or is a model of this package, which is fast
            already.
        RuntimeError: `strict`, and a place was left alone; then `obj` is as it was before.
    """
    wanted = {"attention": attention, "vae": vae}
    before = swapped_in(obj)
    replaced, left_alone = patch_sites(site for site in find_sites(obj) if wanted[site.part])
    report = PatchReport(type(obj).__name__, tuple(replaced), tuple(left_alone))
    if strict and left_alone:
        _restore(obj, before)
        raise RuntimeError(f"strict: expected every place to be replaced, got\n{report}")
    return report


def unpatch(obj: Any) -> None:
    """Give every object in `obj` the methods it had before `patch`. Without a patch, nothing happens.

    Raises TypeError if `obj` is nothing that `patch` takes, nor a patched part of it, and RuntimeError if another
    package has changed the class of a patched object since.
    """
    require_known(obj, bool(swapped_in(obj)) or holds_known(obj))
    _restore(obj, [])


@contextmanager
def patched(obj: Any, **options: bool) -> Iterator[PatchReport]:
    """Apply `patch(obj, **options)` for the length of a `with` block. An earlier patch stays after it."""
    before = swapped_in(obj)
    try:
        yield patch(obj, **options)
    finally:
        _restore(obj, before)


def _restore(obj: Any, keep: Collection[Any]) -> None:
    kept = {id(target) for target in keep}
    for target in swapped_in(obj):
        if id(target) not in kept:
            swap_back(target)
