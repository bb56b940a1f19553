# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.models import write_nano_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A nano model with a gallery of one picture, 32x32."""
    return write_nano_model(tmp_path / "model")
