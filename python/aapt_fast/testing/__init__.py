# SPDX-License-Identifier: Apache-2.0
"""Shared by tests/ and bench/, never imported by the library."""
