# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the scripts in bench/: the command line, timers, ceilings, processes with a time limit."""
