# SPDX-License-Identifier: Apache-2.0
"""The streams of a server: who watches each, which controls are under way, and when an idle one goes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from aapt_fast.serve.link import CallFailed, Link, StartProcess, WorkerGone
from aapt_fast.serve.metrics import Metrics, SimulatedViewer
from aapt_fast.serve.pipe import Header as Message
from aapt_fast.serve.protocol import DISCONTINUITY, FIRST_OF_STEP, H264_DELTA, Header
from aapt_fast.serve.settings import Settings

WORKER_ENDED = "the process that computed it has ended"
MOST_PENDING = (
    4096  # controls of a stream that wait for their step, while it is paused; the oldest have no second receipt
)


class Client(Protocol):
    """The part of a connection that streams use."""

    codec: str

    def send(self, message: dict[str, Any]) -> None:
        """Queue a JSON message."""

    def show(self, seat: Seat, pictures: list[bytes], frames: range, has_key: bool) -> None:
        """Queue the pictures of one step, or drop older ones."""

    def leave(self, seat: Seat) -> None:
        """Forget a seat whose stream has ended."""


@dataclass(eq=False)
class Seat:
    """A client's place at one stream."""

    client: Client
    stream: Stream
    number: int
    """Of the stream on the client's connection."""
    viewer: SimulatedViewer
    opened: float | None
    """Time of the message `open` until the first picture is there."""
    newest_id: int = 0
    """Of the controls that came."""
    obeyed_id: int = 0
    """Of the controls that the newest step obeys."""
    dropped: int = 0
    queue: deque[tuple[list[bytes], range]] = field(default_factory=deque)
    """Steps that wait to be sent, as the client's connection keeps them."""


@dataclass
class _Pending:
    """A control that no step has obeyed yet."""

    number: int
    seat: Seat
    id: int
    received: float


@dataclass(eq=False)
class Stream:
    """One stream of the worker."""

    key: str
    first: dict[str, Any]
    seed: int = 0
    seats: list[Seat] = field(default_factory=list)
    pending: deque[_Pending] = field(default_factory=lambda: deque(maxlen=MOST_PENDING))
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    state: dict[str, Any] = field(default_factory=dict)
    """step, oldest_step, paused, parked, action: as the worker told them last."""
    stats: dict[str, Any] = field(default_factory=dict)
    idle_since: float | None = None
    unwatched_since: float | None = None
    paused_by_server: bool = False
    last_shown: tuple[Message, bytes] | None = None
    """The newest step as JPEG, for those who come while the stream is paused."""
    last_step: float | None = None
    last_late: int = 0

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to everybody who watches, with the stream's number there."""
        for seat in self.seats:
            seat.client.send({**message, "stream": seat.number})

    def tell_state(self) -> None:
        """Send the state to everybody who watches."""
        self.tell({"type": "state", **self.state, "viewers": len(self.seats)})


class Streams:
    """All streams of a server. Everything here happens in the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics, start: StartProcess) -> None:
        self.settings, self.metrics = settings, metrics
        self.link = Link(settings, start, self._receive, self._lose_all)
        self._streams: dict[str, Stream] = {}
        self._background: set[asyncio.Task[None]] = set()  # the event loop keeps weak references only
        metrics.watch("streams", "Open streams", lambda: len(self._streams))
        metrics.watch("viewers", "Connections that watch a stream", self._viewers)
        metrics.watch("worker_starts", "Starts of the worker process", lambda: self.link.starts)
        metrics.watch("parked_streams", "Streams in files", self._parked)

    def __len__(self) -> int:
        return len(self._streams)

    def find(self, key: str) -> Stream | None:
        """The stream with this key."""
        return self._streams.get(key)

    # ---- commands ----

    async def open(self, first: dict[str, Any], body: bytes, codec: str, **options: Any) -> Stream:
        """Open a stream that nobody watches yet. Raises CallFailed and WorkerGone."""
        key = secrets.token_urlsafe(12)
        return await self._add("open", key, first, body, codecs=[codec], **options)

    async def fork(self, origin: Stream, codec: str) -> Stream:
        """Open a stream that goes on from where `origin` is. Raises CallFailed and WorkerGone."""
        key = secrets.token_urlsafe(12)
        stream = await self._add("fork", key, origin.first, b"", codecs=[codec], origin=origin.key)
        stream.last_shown = stream.last_shown or origin.last_shown
        return stream

    async def command(self, stream: Stream, do: str, body: bytes = b"", **options: Any) -> None:
        """Let the worker do something to a stream, and tell its viewers. Raises CallFailed and WorkerGone."""
        answer, _ = await self.link.call(do, body, key=stream.key, **options)
        if do in ("pause", "resume"):
            stream.paused_by_server = False
        if do in ("reset", "rewind"):
            stream.last_shown = None
            for seat in stream.seats:
                seat.viewer.begin_again()
        self._update(stream, answer)
        stream.tell_state()

    def control(self, seat: Seat, id: int, track: str, value: Any) -> bool:
        """Pass a control on; False if its id is not newer than those before."""
        if id <= seat.newest_id:
            return False
        stream = seat.stream
        number = next(stream.numbers)
        seat.newest_id = id
        stream.pending.append(_Pending(number, seat, id, time.monotonic()))
        message = {"do": "control", "key": stream.key, "number": number, "track": track, "value": value}
        self.link.send(message)
        return True

    def sit(self, client: Client, stream: Stream, number: int, opened: float | None) -> Seat:
        """Let a client watch a stream from now on."""
        viewer = SimulatedViewer(self._period())
        seat = Seat(client, stream, number, viewer, opened)
        stream.seats.append(seat)
        stream.unwatched_since = None
        self._choose_codecs(stream)
        if stream.paused_by_server:
            stream.paused_by_server = False
            self._in_background(self.command(stream, "resume"))
        elif stream.state["paused"] and stream.last_shown is not None and client.codec == "jpeg":
            header, body = stream.last_shown
            self._show_to(seat, {**header, "discontinuous": True}, body)
        return seat

    def stand_up(self, seat: Seat) -> None:
        """The client does not watch any more; a stream without viewers is paused."""
        stream = seat.stream
        stream.seats.remove(seat)
        for pending in [each for each in stream.pending if each.seat is seat]:  # its second receipt reaches nobody
            stream.pending.remove(pending)
        if stream.seats:
            self._choose_codecs(stream)
            stream.tell_state()
        elif stream.key in self._streams:
            stream.unwatched_since = time.monotonic()
            if not stream.state.get("paused"):
                self._in_background(self._pause_unwatched(stream))

    def want_key_frame(self, stream: Stream) -> None:
        """Let the next H.264 picture be a key frame."""
        self._choose_codecs(stream)

    async def tidy(self) -> None:
        """Once a second: send statistics, park idle streams, close those that nobody comes back to."""
        while True:
            await asyncio.sleep(1)
            now, limits = time.monotonic(), self.settings.limits
            for stream in list(self._streams.values()):
                for seat in stream.seats:
                    seat.client.send({"type": "stats", "stream": seat.number, **self._stats(seat)})
                idle = stream.idle_since
                if stream.unwatched_since is not None and now - stream.unwatched_since > limits.close_seconds:
                    self._in_background(self.command(stream, "close"))
                elif idle is not None and now - idle > limits.park_seconds and not stream.state.get("parked"):
                    stream.idle_since = now  # if it cannot be parked, it is tried again later
                    self._in_background(self.command(stream, "park"))

    # ---- messages of the worker ----

    def _receive(self, header: Message, body: bytes) -> None:
        if "shown" in header:
            stream = self._streams.get(header["shown"])
            if stream is not None:
                self._show(stream, header, body)
        elif "refused" in header:
            self._refuse(header)
        elif "ended" in header:
            self._end(header["ended"], header["why"])

    def _show(self, stream: Stream, header: Message, body: bytes) -> None:
        """Pass the pictures of one step on to all who watch in this codec."""
        now = time.monotonic()
        self._apply(stream, header, now)
        if header["codec"] in self._codecs(stream)[:1]:  # a step comes once per codec
            self._measure(stream, header, now)
        if header["codec"] == "jpeg":
            stream.last_shown = (header, body)
        for seat in stream.seats:
            if seat.client.codec == header["codec"]:
                self._show_to(seat, header, body)
                self._watch_as_a_viewer(seat, header, now)
        if header["action"] != stream.state.get("action"):
            stream.state["action"] = header["action"]
            stream.tell_state()

    def _show_to(self, seat: Seat, header: Message, body: bytes) -> None:
        """Queue the pictures of a step for one viewer, each behind its header."""
        frames = range(header["frame"], header["frame"] + len(header["sizes"]))
        messages, begin = [], 0
        for frame, size, codec in zip(frames, header["sizes"], header["codecs"], strict=True):
            flags = (begin == 0) * (FIRST_OF_STEP | DISCONTINUITY * header["discontinuous"])
            head = Header(frame, int(header["done"]), seat.obeyed_id, seat.number, codec, flags)
            messages.append(head.pack() + body[begin : begin + size])
            begin += size
        seat.client.show(seat, messages, frames, header["codecs"][0] != H264_DELTA)
        if "pose" in header:
            seat.client.send({"type": "pose", "stream": seat.number, "frame": frames[-1], "value": header["pose"]})

    def _watch_as_a_viewer(self, seat: Seat, header: Message, now: float) -> None:
        """Count the stalls that a viewer notices, and the time to its first picture."""
        self.metrics.stalls.inc(seat.viewer.arrive(now, len(header["sizes"])))
        if header["paused"]:
            seat.viewer.begin_again()
        if seat.opened is not None:
            self.metrics.first_frame.observe(now - seat.opened)
            seat.opened = None

    def _apply(self, stream: Stream, header: Message, now: float) -> None:
        """Send the second receipt of all controls that a step obeys."""
        while stream.pending and stream.pending[0].number <= header["obeyed"]:
            pending = stream.pending.popleft()
            seat = pending.seat
            seat.obeyed_id = pending.id
            self.metrics.control.observe(now - pending.received)
            receipt = {"type": "applied", "id": pending.id, "step": header["step"], "frame": header["frame"]}
            seat.client.send({**receipt, "stream": seat.number})

    def _measure(self, stream: Stream, header: Message, now: float) -> None:
        stream.stats = {name: header[name] for name in ("step_ms", "encode_ms", "late", "dropped")}
        has_stopped = header["paused"] and not stream.state.get("paused")  # by itself: at the end of a replay
        stream.state |= {name: header[name] for name in ("step", "oldest_step", "paused")}
        if has_stopped:
            stream.tell_state()
        self.metrics.steps.inc()
        self.metrics.late_steps.inc(max(header["late"] - stream.last_late, 0))
        self.metrics.step.observe(header["step_ms"] / 1e3)
        self.metrics.encode.observe(header["encode_ms"] / 1e3)
        if stream.last_step is not None:
            self.metrics.record_interval(now - stream.last_step)
        stream.last_late, stream.last_step = header["late"], None if header["paused"] else now

    def _refuse(self, header: Message) -> None:
        stream = self._streams.get(header["refused"])
        if stream is None:
            return
        for pending in list(stream.pending):
            if pending.number == header["number"]:
                stream.pending.remove(pending)
                error = {"type": "error", "stream": pending.seat.number, "id": pending.id, **header["error"]}
                pending.seat.client.send(error)

    def _end(self, key: str, why: str) -> None:
        stream = self._streams.pop(key, None)
        if stream is not None:
            stream.tell({"type": "ended", "why": why})
            for seat in stream.seats:
                seat.client.leave(seat)
            stream.seats.clear()

    def _lose_all(self) -> None:
        for key in list(self._streams):
            self._end(key, WORKER_ENDED)

    # ---- inside ----

    async def _add(self, do: str, key: str, first: dict[str, Any], body: bytes, **options: Any) -> Stream:
        stream = Stream(key, first)
        self._streams[key] = stream  # pictures may come before the answer
        stream.unwatched_since = time.monotonic()
        try:
            try:
                answer, _ = await self.link.call(do, body, key=key, **options)
            except CallFailed as error:
                if not error.is_full or not await self._close_longest_unwatched(but=stream):
                    raise
                answer, _ = await self.link.call(do, body, key=key, **options)
        except BaseException as error:
            self._streams.pop(key, None)
            if not isinstance(error, CallFailed):  # the client has gone; the worker may open it all the same
                self.link.send({"do": "close", "call": 0, "key": key})
            raise
        if key not in self._streams:
            raise WorkerGone("server: the worker has ended")
        self._update(stream, answer)
        stream.seed = answer["seed"]
        return stream

    async def _close_longest_unwatched(self, but: Stream) -> bool:
        """Close the stream that has been without viewers for the longest time; False if all are watched."""
        unwatched = [each for each in self._streams.values() if each.unwatched_since is not None and each is not but]
        if not unwatched:
            return False
        await self.command(min(unwatched, key=lambda each: each.unwatched_since or 0.0), "close")
        return True

    async def _pause_unwatched(self, stream: Stream) -> None:
        await self.command(stream, "pause")
        if stream.seats:  # somebody has come meanwhile
            await self.command(stream, "resume")
        else:
            stream.paused_by_server = True

    def _update(self, stream: Stream, answer: Message) -> None:
        stream.state = {name: answer[name] for name in ("step", "oldest_step", "paused", "parked", "action")}
        if not answer["paused"]:
            stream.idle_since = None
        elif stream.idle_since is None:
            stream.idle_since = time.monotonic()
            stream.last_step = None
            for seat in stream.seats:
                seat.viewer.begin_again()

    def _codecs(self, stream: Stream) -> list[str]:
        return sorted({seat.client.codec for seat in stream.seats})

    def _choose_codecs(self, stream: Stream) -> None:
        self.link.send({"do": "codecs", "key": stream.key, "codecs": self._codecs(stream)})

    def _stats(self, seat: Seat) -> dict[str, Any]:
        stats = seat.stream.stats
        empty = {"step_ms": None, "encode_ms": None, "late": 0, "dropped": 0}
        return {**empty, **stats, "queue": len(seat.queue), "dropped": seat.dropped + stats.get("dropped", 0)}

    def _period(self) -> float:
        model = self.link.model or {"frames_per_step": 4, "fps": 24}
        return model["frames_per_step"] / model["fps"]

    def _viewers(self) -> int:
        return sum(len(each.seats) for each in self._streams.values())

    def _parked(self) -> int:
        return sum(bool(each.state.get("parked")) for each in self._streams.values())

    def _in_background(self, call: Any) -> None:
        """Run a command whose failure nobody waits for: the stream may have ended meanwhile."""

        async def quiet() -> None:
            with contextlib.suppress(CallFailed, WorkerGone):
                await call

        task = asyncio.get_running_loop().create_task(quiet())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
