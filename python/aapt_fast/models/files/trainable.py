# SPDX-License-Identifier: Apache-2.0
"""Loading of weights that can be trained, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Loader = TypeVar("Loader", bound=Callable[..., Any])


def outside_inference_mode(load: Loader) -> Loader:
    """Run `load` outside of torch's inference mode: tensors made in that mode never get a gradient."""
    return torch.inference_mode(False)(load)
