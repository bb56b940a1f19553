# SPDX-License-Identifier: Apache-2.0
"""Messages on their way to one client: all JSON messages, and the newest steps of each stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from aapt_fast.serve.streams import Seat

MOST_TEXTS = 5_000  # a client that reads none of them is closed
AHEAD_STEPS = 12  # that may be on the way to a client which tells what it has shown: two seconds

SendText = Callable[[dict[str, Any]], Awaitable[None]]
SendBytes = Callable[[bytes], Awaitable[None]]


class TooSlow(Exception):
    """The client takes nothing."""


class Outbox:
    """Bounded queues of one connection.

    Args:
        queued_steps: of a stream that may wait; when there are more, the oldest is dropped as a whole.
        slow_seconds: that one message may wait for the network.
        want_key: called for a seat whose H.264 has lost a step, and begins again with a key frame.
        count_drop: called for every step that is dropped.
    """

    def __init__(
        self,
        queued_steps: int,
        slow_seconds: float,
        want_key: Callable[[Seat], None],
        count_drop: Callable[[], None],
    ) -> None:
        self._queued_steps, self._slow_seconds = queued_steps, slow_seconds
        self._want_key, self._count_drop = want_key, count_drop
        self._texts: deque[dict[str, Any]] = deque()
        self._seats: list[Seat] = []
        self._waits_for_key: set[Seat] = set()
        self._on_the_way: dict[Seat, deque[int]] = {}  # first frames of steps, of seats that tell what they have shown
        self._changed = asyncio.Event()

    def add_text(self, message: dict[str, Any]) -> None:
        """Queue a JSON message; they go before pictures."""
        self._texts.append(message)
        self._changed.set()

    def add_step(self, seat: Seat, pictures: list[bytes], frames: range, has_key: bool) -> None:
        """Queue the pictures of one step, and drop the oldest step if too many wait."""
        if seat in self._waits_for_key and not has_key:
            self._drop(seat)
            return
        self._waits_for_key.discard(seat)
        if seat not in self._seats:
            self._seats.append(seat)
        seat.queue.append((pictures, frames))
        while len(seat.queue) > self._queued_steps:
            seat.queue.popleft()
            self._drop(seat)
            if seat.client.codec == "h264":
                self._start_with_key(seat)
        self._changed.set()

    def shown_until(self, seat: Seat, frame: int) -> None:
        """The client has shown this video frame; from now on, few steps are on the way to it at any time."""
        steps = self._on_the_way.setdefault(seat, deque(maxlen=4 * AHEAD_STEPS))
        while steps and steps[0] <= frame:
            steps.popleft()
        self._changed.set()

    def restart(self, seat: Seat) -> None:
        """Forget what is on the way: the numbers of the frames begin anew."""
        if seat in self._on_the_way:
            self._on_the_way[seat].clear()

    def forget(self, seat: Seat) -> None:
        """Drop everything that waits for a seat."""
        seat.queue.clear()
        self._waits_for_key.discard(seat)
        self._on_the_way.pop(seat, None)
        if seat in self._seats:
            self._seats.remove(seat)

    async def send_all(self, send_text: SendText, send_bytes: SendBytes) -> None:
        """Send what comes, for ever. Raises TooSlow for a client that takes nothing for so long."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                while self._texts or any(self._may_send(seat) for seat in self._seats):
                    if len(self._texts) > MOST_TEXTS:
                        raise TooSlow
                    with anyio.fail_after(self._slow_seconds):
                        await self._send_next(send_text, send_bytes)
            except TimeoutError:
                raise TooSlow from None

    async def _send_next(self, send_text: SendText, send_bytes: SendBytes) -> None:
        if self._texts:
            await send_text(self._texts.popleft())
            return
        seat = next(seat for seat in self._seats if self._may_send(seat))
        self._seats.remove(seat)  # in turn
        self._seats.append(seat)
        pictures, frames = seat.queue.popleft()
        if seat in self._on_the_way:
            self._on_the_way[seat].append(frames[0])
        for picture in pictures:
            await send_bytes(picture)

    def _may_send(self, seat: Seat) -> bool:
        return bool(seat.queue) and len(self._on_the_way.get(seat, ())) < AHEAD_STEPS

    def _drop(self, seat: Seat) -> None:
        seat.dropped += 1
        self._count_drop()

    def _start_with_key(self, seat: Seat) -> None:
        """Drop all H.264 that waits: it cannot be decoded without the step that was dropped."""
        for _ in range(len(seat.queue)):
            seat.queue.popleft()
            self._drop(seat)
        self._waits_for_key.add(seat)
        self._want_key(seat)
