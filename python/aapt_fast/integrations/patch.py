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
from aapt_fast.integrations.sites import patch_sites
from aapt_fast.integrations.swap import swap_back


def patch(
    obj: Any, *, attention: bool = True, vae: bool = True, cuda_graph: bool = True, strict: bool = False
) -> PatchReport:
    """Replace slow parts of `obj` by faster ones with the same results.

    Args:
        obj: a diffusers `WanPipeline`, `WanTransformer3DModel` or `AutoencoderKLWan`; the original `WanVAE_`; a
            `CausalWanModel` of Self-Forcing and its relatives, the decoder of its demo; or an object that holds such
            parts.
        attention: attention of transformers.
        vae: encoder and decoder.
        cuda_graph: whole forward passes of transformers as CUDA graphs. Not built yet: the report says so, and
            `strict` needs `cuda_graph=False` for anything that holds a transformer.
        strict: raise if a part that was asked for, and that `obj` has, is left alone anywhere.

    Returns:
        what was replaced and what was left alone. A second call changes nothing and says the same.

    Raises:
        TypeError: nothing in `obj` is known here; a list; a model of this package, which is fast already.
        RuntimeError: `strict`, and something was left alone; then `obj` is as it was before.
    """
    parts = {name for name, wanted in (("attention", attention), ("vae", vae), ("cuda_graph", cuda_graph)) if wanted}
    before = swapped_in(obj)
    replaced, left_alone = patch_sites(site for site in find_sites(obj) if site.part in parts)
    report = PatchReport(type(obj).__name__, tuple(replaced), tuple(left_alone))
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
def patched(obj: Any, **options: bool) -> Iterator[PatchReport]:
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
