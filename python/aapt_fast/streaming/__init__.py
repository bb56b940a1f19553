# SPDX-License-Identifier: Apache-2.0
"""Streaming: pages, sessions and controls."""

from __future__ import annotations

from aapt_fast.streaming.batch import SessionBatch
from aapt_fast.streaming.downloads import FrameDownloader, PendingFrames
from aapt_fast.streaming.latency import LatencyCounter
from aapt_fast.streaming.pages import PagePool, pool_bytes, session_pages
from aapt_fast.streaming.session import StreamSession

__all__ = [
    "FrameDownloader",
    "LatencyCounter",
    "PagePool",
    "PendingFrames",
    "SessionBatch",
    "StreamSession",
    "pool_bytes",
    "session_pages",
]
