# SPDX-License-Identifier: Apache-2.0
"""`python -m aapt_fast` is `aapt-fast`."""

import sys

from aapt_fast.cli import program

sys.exit(program())
