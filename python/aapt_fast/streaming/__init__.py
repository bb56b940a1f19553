# SPDX-License-Identifier: Apache-2.0
"""Streaming: pages, sessions and controls."""
