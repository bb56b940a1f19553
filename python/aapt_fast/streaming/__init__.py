# SPDX-License-Identifier: Apache-2.0
"""Streaming: pages, sessions and controls."""

from __future__ import annotations

from aapt_fast.streaming.latency import LatencyCounter
from aapt_fast.streaming.paged_cache import PagedCache, TextPages, pages_needed
from aapt_fast.streaming.pages import PagePool, pool_bytes
from aapt_fast.streaming.session import StreamSession, page_pool, session_pages

__all__ = [
    "LatencyCounter",
    "PagePool",
    "PagedCache",
    "StreamSession",
    "TextPages",
    "page_pool",
    "pages_needed",
    "pool_bytes",
    "session_pages",
]
