# SPDX-License-Identifier: Apache-2.0
"""Convert the weights of a generator, a VAE or a pipeline to safetensors that load fast, and verify the result."""

from __future__ import annotations

import argparse
import json
import time

from aapt_fast.cli.checks import GIB, read_json_option
from aapt_fast.models.files.convert import convert_files


def run(arguments: argparse.Namespace) -> None:
    begun = time.perf_counter()
    try:
        report = convert_files(
            arguments.source,
            arguments.out,
            config=read_json_option(arguments.config, "--config"),
            dtype=arguments.dtype,
            verify=arguments.verify,
            shard_bytes=int(arguments.shard_size * GIB),
            say=print,
        )
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop}; no file was written") from None
    print(json.dumps(report | {"seconds": round(time.perf_counter() - begun, 2)}))
