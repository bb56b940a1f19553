# SPDX-License-Identifier: Apache-2.0
"""What runs in somebody's model now."""

from __future__ import annotations

from typing import Any

from aapt_fast.integrations.report import PatchReport
from aapt_fast.integrations.search import find_sites
from aapt_fast.integrations.sites import explain_sites


def explain(obj: Any) -> PatchReport:
    """Say for each place that `patch` knows in `obj` whether it is replaced and runs where it is now, and if not, why.

    Nothing is changed. Raises TypeError if nothing in `obj` is known here.
    """
    replaced, left_alone = explain_sites(find_sites(obj))
    return PatchReport(type(obj).__name__, tuple(replaced), tuple(left_alone))
