# SPDX-License-Identifier: Apache-2.0
"""What the scripts of bench/ share: the document they write, timers, ceilings, cases, processes with a time limit."""
