# SPDX-License-Identifier: Apache-2.0
"""The `torch.ops.aapt` namespace. Every op file defines its schema here and registers its implementations."""

from __future__ import annotations

import torch

library = torch.library.Library("aapt", "DEF")
