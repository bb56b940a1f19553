# SPDX-License-Identifier: Apache-2.0
"""Convert the weights of a generator, a VAE or a pipeline to safetensors that load fast, and verify the result."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aapt_fast.errors import require
from aapt_fast.models.files.convert import convert_files

GIB = 1 << 30


def run(arguments: argparse.Namespace) -> None:
    begun = time.perf_counter()
    nbytes = arguments.shard_size * GIB
    require(1 <= nbytes < float("inf"), "shard-size", "a positive number of GiB", arguments.shard_size)
    report = convert_files(
        arguments.source,
        arguments.out,
        config=_config(arguments.config),
        dtype=arguments.dtype,
        verify=arguments.verify,
        shard_bytes=int(nbytes),
        say=print,
    )
    print(json.dumps(report | {"seconds": round(time.perf_counter() - begun, 2)}))


def _config(text: str | None) -> Mapping[str, Any] | None:
    """The JSON object in `text`, or in the file of that name."""
    if text is None:
        return None
    where = "config"
    try:
        if not text.lstrip().startswith("{"):
            where, file = f"config: {text}", Path(text)
            text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: expected JSON, got {error}") from error
    require(isinstance(content, dict), where, "a JSON object", type(content).__name__)
    return content
