# SPDX-License-Identifier: Apache-2.0
"""The suites in this folder time GPU kernels. Without a GPU they are skipped: timing an emulation means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.harness.document import Document

WITHOUT_GPU = "no GPU: kernel timings need one; tests/bench/ runs these suites on the CPU, with tiny shapes"


@pytest.fixture
def gpu() -> torch.device:
    """The current GPU."""
    if not torch.cuda.is_available():
        pytest.skip(WITHOUT_GPU)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def document(gpu: torch.device, tmp_path: Path) -> Document:
    """A document for the results of one test; pytest-benchmark keeps them as extra_info."""
    return Document.create(tmp_path / "results.json", "pytest bench/kernels")
