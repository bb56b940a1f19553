# SPDX-License-Identifier: Apache-2.0
"""One model on several devices, each served by a process of its own (a rank). See docs/how-to/use-many-gpus.md."""

from aapt_fast.distributed.launch import end, start
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.shared_session import SharedSession
from aapt_fast.distributed.shared_sessions import SharedSessions

__all__ = ["SharedSession", "SharedSessions", "end", "shard", "start"]
