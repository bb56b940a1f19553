# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the scripts in bench/: the command line, times of streams, ceilings, counts of tests."""
