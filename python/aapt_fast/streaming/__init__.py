# SPDX-License-Identifier: Apache-2.0
"""Streaming: pages, sessions and controls."""

from __future__ import annotations

from aapt_fast.streaming.cache_batch import CacheBatch
from aapt_fast.streaming.host_copies import HostFrames, PendingFrames
from aapt_fast.streaming.latency import LatencyCounter
from aapt_fast.streaming.paged_block_cache import PagedBlockCache, block_pages_needed
from aapt_fast.streaming.paged_cache import PagedCache, TextPages, pages_needed
from aapt_fast.streaming.pages import PagePool, pool_bytes
from aapt_fast.streaming.recorded_batch import RecordedBatch
from aapt_fast.streaming.samplers import session_pages
from aapt_fast.streaming.session import StreamSession, page_pool
from aapt_fast.streaming.together import step_together

__all__ = [
    "CacheBatch",
    "HostFrames",
    "LatencyCounter",
    "PagePool",
    "PagedBlockCache",
    "PagedCache",
    "PendingFrames",
    "RecordedBatch",
    "StreamSession",
    "TextPages",
    "block_pages_needed",
    "page_pool",
    "pages_needed",
    "pool_bytes",
    "session_pages",
    "step_together",
]
