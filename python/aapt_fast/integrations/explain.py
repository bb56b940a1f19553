# SPDX-License-Identifier: Apache-2.0
"""A report on what runs in a patched model."""

from __future__ import annotations

from typing import Any

from aapt_fast.integrations.report import PatchReport
from aapt_fast.integrations.search import find_sites
from aapt_fast.integrations.sites import explain_sites


def explain(obj: Any) -> PatchReport:
    """Report on each place that `patch` knows in `obj`: replaced and running where it is now, or the reason why not.

    Kernels are reported by the choice that calls make; `aapt_fast.ops.observe_ops` records the calls themselves.
    Nothing is changed. Raises TypeError if nothing in `obj` is known here.
    """
    replaced, left_alone = explain_sites(find_sites(obj))
    return PatchReport(type(obj).__name__, tuple(replaced), tuple(left_alone))
