# SPDX-License-Identifier: Apache-2.0
"""Hostile inputs for tests, which are those of `aapt-fast verify`, and the devices of this machine."""

from __future__ import annotations

import torch

from aapt_fast.verification.hostile import ABSURD_PAGE as ABSURD_PAGE
from aapt_fast.verification.hostile import LENGTHS as LENGTHS
from aapt_fast.verification.hostile import PagedCase as PagedCase
from aapt_fast.verification.hostile import every_second as every_second
from aapt_fast.verification.hostile import padded_rows as padded_rows
from aapt_fast.verification.hostile import paged_case as paged_case
from aapt_fast.verification.hostile import strided as strided
from aapt_fast.verification.hostile import surrounded as surrounded

DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
