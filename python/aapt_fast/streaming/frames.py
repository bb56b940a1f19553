# SPDX-License-Identifier: Apache-2.0
"""The iterator of `StreamSession.frames`, for `for` and for `async for`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

from torch import Tensor


class FrameIterator(Iterator[Tensor], AsyncIterator[Tensor]):
    """Videos of one step after the other, uint8 [F, H, W, 3] each.

    `async for` computes each step in a thread of the event loop's, so that the loop serves others meanwhile.

    Args:
        take: the next video; raises StopIteration after the last one.
        end: called once, at the end of the loop or by `close`.
    """

    def __init__(self, take: Callable[[], Tensor], end: Callable[[], None] = lambda: None) -> None:
        self._take, self._end, self._ended = take, end, False

    def __iter__(self) -> FrameIterator:
        return self

    def __next__(self) -> Tensor:
        if self._ended:
            raise StopIteration
        try:
            return self._take()
        except BaseException:
            self.close()
            raise

    def __aiter__(self) -> FrameIterator:
        return self

    async def __anext__(self) -> Tensor:
        video = await asyncio.to_thread(next, self, None)
        if video is None:
            raise StopAsyncIteration
        return video

    def close(self) -> None:
        """End the loop: the next call raises StopIteration. A second call does nothing."""
        if not self._ended:
            self._ended = True
            self._end()

    def __del__(self) -> None:
        self.close()
