# SPDX-License-Identifier: Apache-2.0
"""Queues of one connection: what a slow viewer misses, and what waits for its receipts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from aapt_fast.serve.metrics import SimulatedViewer
from aapt_fast.serve.outbox import AHEAD_STEPS, MOST_TEXTS, Outbox, TooSlow
from aapt_fast.serve.streams import Seat, Stream


class Network:
    """Takes messages, or does not."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.opened = asyncio.Event()
        self.opened.set()

    async def take(self, message: object) -> None:
        await self.opened.wait()
        self.sent.append(message)


SEATS: list[Seat] = []
"""Of the test that runs."""


def make_seat(codec: str = "jpeg") -> Seat:
    SEATS.append(Seat(SimpleNamespace(codec=codec), Stream("key", {}), 0, SimulatedViewer(0.1), None))
    return SEATS[-1]


def add(outbox: Outbox, seat: Seat, step: int, has_key: bool = True) -> None:
    outbox.add_step(seat, [f"{step}{part}".encode() for part in "ab"], range(2 * step, 2 * step + 2), has_key)


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def run(test, slow_seconds: float = 0.2) -> None:
    """Run a test with a network and an outbox that sends to it."""

    SEATS.clear()

    async def inside() -> None:
        network, keys, drops = Network(), [], []
        outbox = Outbox(
            queued_steps=2, slow_seconds=slow_seconds, want_key=keys.append, count_drop=lambda: drops.append(1)
        )
        sending = asyncio.create_task(outbox.send_all(network.take, network.take))
        try:
            await test(outbox, network, keys, sending)
        finally:
            sending.cancel()
        assert len(drops) == sum(seat.dropped for seat in SEATS)

    asyncio.run(inside())


def test_texts_go_first_and_the_newest_steps_stay():
    async def test(outbox, network, keys, sending):
        seat = make_seat()
        for step in range(5):
            add(outbox, seat, step)
        outbox.add_text({"type": "state"})
        await settle()
        assert network.sent == [{"type": "state"}, b"3a", b"3b", b"4a", b"4b"]
        assert (seat.dropped, keys) == (3, [])

    run(test)


def test_h264_goes_on_with_a_key_frame():
    async def test(outbox, network, keys, sending):
        seat = make_seat("h264")
        for step in range(3):
            add(outbox, seat, step, has_key=step == 0)
        assert keys == [seat] and seat.dropped == 3  # the rest cannot be decoded
        add(outbox, seat, 3, has_key=False)
        add(outbox, seat, 4, has_key=True)
        add(outbox, seat, 5, has_key=False)
        await settle()
        assert network.sent == [b"4a", b"4b", b"5a", b"5b"] and seat.dropped == 4

    run(test)


def test_streams_of_one_connection_take_turns():
    async def test(outbox, network, keys, sending):
        first, second = make_seat(), make_seat()
        for step in range(2):
            add(outbox, first, step)
            add(outbox, second, step + 5)
        await settle()
        assert network.sent[::2] == [b"0a", b"5a", b"1a", b"6a"]
        outbox.forget(first)
        assert not first.queue

    run(test)


def test_a_client_that_tells_what_it_has_shown_has_few_steps_on_the_way():
    async def test(outbox, network, keys, sending):
        seat = make_seat()
        outbox.shown_until(seat, 0)
        for step in range(AHEAD_STEPS + 4):
            add(outbox, seat, step)
            await settle()
        assert len(network.sent) == 2 * AHEAD_STEPS and seat.dropped == 2
        outbox.shown_until(seat, 2 * AHEAD_STEPS - 1)
        await settle()
        assert network.sent[-1] == f"{AHEAD_STEPS + 3}b".encode()
        outbox.restart(seat)  # frames begin anew
        outbox.shown_until(seat, 0)
        add(outbox, seat, 0)
        await settle()
        assert network.sent[-1] == b"0b"

    run(test)


@pytest.mark.parametrize(("texts", "slow_seconds"), [(1, 0.2), (MOST_TEXTS + 1, 1000.0)])
def test_a_client_that_takes_nothing_is_too_slow(texts, slow_seconds):
    async def test(outbox, network, keys, sending):
        network.opened.clear()
        for _ in range(texts):
            outbox.add_text({})
        with pytest.raises(TooSlow):
            await asyncio.wait_for(sending, 10)

    run(test, slow_seconds)


def test_a_simulated_viewer_notices_late_frames():
    viewer = SimulatedViewer(buffer=1 / 6)
    assert [viewer.arrive(step / 6, 4) for step in range(5)] == [0] * 5
    assert viewer.arrive(5 / 6 + 0.1, 4) == 0  # the buffer covers it
    assert viewer.arrive(6 / 6 + 0.5, 4) == 1 and viewer.stalls == 1
    assert viewer.arrive(7 / 6 + 0.5, 4) == 0
    viewer.begin_again()
    assert viewer.arrive(100.0, 4) == 0 and viewer.stalls == 1
