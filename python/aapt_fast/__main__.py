# SPDX-License-Identifier: Apache-2.0
"""`aapt-fast` and `python -m aapt_fast`. Imports wait until Ctrl-C can end them without a word."""

import sys

STOPPED = 130
"""Exit status of a command that a signal has ended."""


def program() -> int:
    """Run the command of this process, which ends after it; returns its exit status."""
    try:
        from aapt_fast.cli import program as run

        return run()
    except KeyboardInterrupt:  # during the imports, or while the arguments are read: no command has begun
        from signal import SIG_IGN, SIGINT, signal

        signal(SIGINT, SIG_IGN)
        return STOPPED


if __name__ == "__main__":
    sys.exit(program())
