# SPDX-License-Identifier: Apache-2.0
"""Measuring the package itself: what `aapt-fast bench` and the scripts of bench/ share, and what a step should take."""
