# SPDX-License-Identifier: Apache-2.0
"""The options of `aapt-fast serve`."""

from __future__ import annotations

import argparse

from aapt_fast.cli.option_types import file_path, integer, number
from aapt_fast.cli.rank_options import add_ranks


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = """Play a model in the browser, or stream it to programs: prints the address to open.

It listens to this machine alone unless --host says otherwise, and then needs a token. Ctrl-C or SIGTERM lets the
clients finish for a moment; a second signal ends it at once."""
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="mini-person, mini-anyone, or a file that train exported; repeatable, the page lets one choose "
        "(default: mini-person)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=integer, default=8000, help="0 takes any that is free (default: %(default)s)")
    parser.add_argument("--device", help="cpu | cuda | cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="(default: bfloat16 where the device computes in it)"
    )
    parser.add_argument("--streams", type=integer, default=4, help="that run at a time (default: %(default)s)")
    parser.add_argument("--parked", type=integer, default=8, help="idle ones in files (default: %(default)s)")
    parser.add_argument("--history", type=integer, default=60, help="steps to rewind by (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=integer,
        default=1,
        help="of torch on a CPU, beside a browser one (default: %(default)s)",
    )
    add_ranks(parser)
    parser.add_argument(
        "--drain", type=number, default=10.0, help="seconds from the signal to the end (default: %(default)s)"
    )
    access = parser.add_argument_group("access")
    access.add_argument("--token", help="that clients have to know; other users of this machine see it (default: none)")
    access.add_argument("--token-file", type=file_path, metavar="FILE", help="file with it (default: none)")
    access.add_argument("--tls-cert", type=file_path, metavar="FILE", help="PEM, for https (default: http)")
    access.add_argument("--tls-key", type=file_path, metavar="FILE", help="PEM (default: in the file of --tls-cert)")
    access.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="under which clients reach it, repeatable (default: --host, with 0.0.0.0 this machine's name and address)",
    )
    access.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="of another page that may use it, repeatable (default: its own page alone)",
    )
    access.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="one of those in docs/how-to/serve.md, repeatable (default: as listed there)",
    )
