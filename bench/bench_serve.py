# SPDX-License-Identifier: Apache-2.0
"""Real time over a socket: players of the bundled model on `aapt-fast serve`, server and players on this machine.

    python -m bench.bench_serve [--seconds N] [--minutes N]        a table, then the document

    one         one player, who sends a control twice a second: the time from it to the first picture that obeys
    two         two players: the rate of the slower one by that of the faster one
    beside nine the player of `one` beside nine connections that do nothing
    soak        `--minutes`: two players, and the memory of both processes of the server along the way

No browser: the time from a key to light on a screen has a frame of the display and a decoded JPEG more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aapt_fast.profiling.document import result
from aapt_fast.profiling.timing import Sample
from aapt_fast.serve.client import Stream, connect
from aapt_fast.serve.metrics import SimulatedViewer
from aapt_fast.streaming.latency import percentile
from bench.harness.program import ROOT, finish, open_document, parser

ACTIONS = ("walk", "wave", "dance", "kick")
BETWEEN_CONTROLS = 0.5  # seconds, on average
WARM_UP = 1.0  # seconds that are not counted
PERIOD = 4 / 24  # seconds of video in a step


@dataclass
class Played:
    """What one player has seen."""

    fps: float = 0.0
    control_ms: list[float] = field(default_factory=list)
    """From a control to the first picture that obeys it."""
    interval_ms: list[float] = field(default_factory=list)
    """Between the first pictures of two steps."""
    step_ms: list[float] = field(default_factory=list)
    encode_ms: list[float] = field(default_factory=list)
    stalls: int = 0
    late_pairs: int = 0
    """Pairs of steps, one after the other, that came more than a period late."""


@contextlib.contextmanager
def server(*options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `aapt-fast serve` on a free port; gives the process and its address."""
    command = [sys.executable, "-m", "aapt_fast", "serve", "--port", "0", "--drain", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def memory_mb(process: int) -> list[float]:
    """Megabytes in memory of a process and its children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    texts = [Path(f"/proc/{each}/status").read_text() for each in (process, *children)]
    return [int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1e3 for text in texts]  # type: ignore[index]


async def play(address: str, seconds: float, number: int = 0) -> Played:
    """Watch a stream under controls that come at random moments."""
    played, sent = Played(), {}
    async with connect(address) as client:
        stream = await client.open(gallery=number, seed=number, action=ACTIONS[0])
        steering = asyncio.create_task(steer(stream, number, sent))
        viewer = SimulatedViewer(PERIOD)
        begun, pictures, last, was_late = time.perf_counter(), 0, None, False
        async for frame in stream.frames():
            now = time.perf_counter()
            if now - begun < WARM_UP:
                continue
            pictures += 1
            for control in [each for each in sent if each <= frame.control]:
                played.control_ms.append(1e3 * (now - sent.pop(control)))
            if frame.number % 4 == 0:
                if last is not None:
                    played.interval_ms.append(1e3 * (now - last))
                    is_late = now - last > 2 * PERIOD
                    played.late_pairs += is_late and was_late
                    was_late = is_late
                last = now
                played.stalls += viewer.arrive(now, 4)
                if stream.stats.get("step_ms"):
                    played.step_ms.append(stream.stats["step_ms"])
                    played.encode_ms.append(stream.stats["encode_ms"])
            if now - begun > seconds + WARM_UP:
                break
        played.fps = pictures / (time.perf_counter() - begun - WARM_UP)
        steering.cancel()
        await stream.close()
    return played


async def steer(stream: Stream, number: int, sent: dict[int, float]) -> None:
    """Send a control every half second on average, at random moments; `sent` gets the times."""
    dice = random.Random(number)
    await asyncio.sleep(WARM_UP)
    while True:
        await asyncio.sleep(2 * BETWEEN_CONTROLS * dice.random())
        begun = time.perf_counter()
        sent[await stream.control(action=dice.choice(ACTIONS))] = begun


async def play_together(address: str, seconds: float, players: int, idle: int = 0) -> list[Played]:
    """Several players at a time, beside connections that do nothing."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(idle):
            await stack.enter_async_context(connect(address))
        return list(await asyncio.gather(*(play(address, seconds, number) for number in range(players))))


def entry(name: str, played: Played, **more: Any) -> dict[str, Any]:
    """The result of one player: its times from control to picture."""
    times = {f"interval_p{percent}_ms": percentile(played.interval_ms, percent) for percent in (50, 95, 99)}
    times |= {"step_ms": statistics.mean(played.step_ms), "encode_ms": statistics.mean(played.encode_ms)}
    sample = Sample(tuple(played.control_ms), None, "wall clock from control to picture")
    counts = {"video_fps": played.fps, "stalls": played.stalls, "late_pairs": played.late_pairs}
    return result(f"serve/mini-person/{name}", sample, "aapt-fast serve", **times, **counts, **more)


def measure(seconds: float) -> list[dict[str, Any]]:
    """One player, two, and one beside nine idle connections, each on the same server."""
    with server() as (_, address):
        [alone] = asyncio.run(play_together(address, seconds, 1))
        two = asyncio.run(play_together(address, seconds, 2))
        [beside] = asyncio.run(play_together(address, seconds, 1, idle=9))
    rates = sorted(each.fps for each in two)
    costs = {"fps_by_alone": beside.fps / alone.fps}
    return [
        entry("one", alone),
        *(entry(f"two, player {place}", each, slower_by_faster=rates[0] / rates[1]) for place, each in enumerate(two)),
        entry("beside nine idle connections", beside, **costs),
    ]


async def soak(address: str, process: int, minutes: float) -> list[list[float]]:
    """Two players for so long; returns the megabytes of the server's processes once a minute."""
    playing = asyncio.create_task(play_together(address, 60 * minutes, 2))
    found = []
    while not playing.done():
        await asyncio.wait([playing], timeout=min(60.0, 15 * minutes))
        found.append(memory_mb(process))
        print("memory of server and worker, MB:", *(f"{each:.1f}" for each in found[-1]), flush=True)
    await playing
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=30.0, help="of each case")
    options.add_argument("--minutes", type=float, default=0.0, help="of the soak; without it there is none")
    arguments = options.parse_args()
    document = open_document(arguments.out)
    for each in measure(arguments.seconds):
        document.add("results", each)
        waits = f"control to picture p50 {each['p50_ms']:.0f} ms, p95 {each['p95_ms']:.0f} ms"
        rest = f"step {each['step_ms']:.0f} ms, encode {each['encode_ms']:.2f} ms, {each['stalls']} stalls"
        print(f"{each['name']:52} {each['video_fps']:5.1f} fps, {waits}, {rest}", flush=True)
    if arguments.minutes > 0:
        with server() as (process, address):
            found = asyncio.run(soak(address, process.pid, arguments.minutes))
        facts = {"unit": "MB of server and worker together", "predicted": None, "verdict": "not judged"}
        for when, values in (("first", found[0]), ("last", found[-1])):
            value = sum(values)
            document.add("measurements", {"name": f"serve/soak/{when}", "value": value, **facts, "what_ran": "serve"})
    finish(document)


if __name__ == "__main__":
    main()
