# SPDX-License-Identifier: Apache-2.0
"""One client's WebSocket: its messages in, receipts and pictures out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, TypeAlias

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from aapt_fast.serve import protocol
from aapt_fast.serve.link import CallFailed, WorkerGone
from aapt_fast.serve.outbox import Outbox, TooSlow
from aapt_fast.serve.protocol import BadMessage, refusal
from aapt_fast.serve.security import bearer_token, same_token
from aapt_fast.serve.settings import Limits, Settings
from aapt_fast.serve.shelf import Elsewhere
from aapt_fast.serve.streams import Seat, Stream, Streams
from aapt_fast.serve.uploads import Uploads

log = logging.getLogger("aapt_fast.serve")
MOST_BAD_MESSAGES = 20  # of a connection, after which it is closed
MOST_REQUESTS = 32  # of a connection that wait for the worker
Answer: TypeAlias = dict[str, Any]


class Closed(Exception):
    """The server closes the connection with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class RateLimit:
    """Lets so many messages per second through, and twice as many in a burst."""

    def __init__(self, per_second: float) -> None:
        self._per_second, self._left, self._seen = per_second, 2 * per_second, time.monotonic()

    def take(self) -> bool:
        """True if one more may come now."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._seen) * self._per_second, 2 * self._per_second)
        self._seen = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Connection:
    """Serves one WebSocket until one side ends it."""

    codec = "jpeg"

    def __init__(self, socket: WebSocket, settings: Settings, streams: Streams, uploads: Uploads) -> None:
        self._socket, self._settings, self._streams, self._uploads = socket, settings, streams, uploads
        self._limits: Limits = settings.limits
        dropped = streams.metrics.dropped
        self._outbox = Outbox(self._limits.queued_steps, self._limits.slow_seconds, self._want_key, dropped.inc)
        self._rate = RateLimit(self._limits.messages_per_second)
        self._seats: dict[int, Seat] = {}
        self._next_number = 0
        self._bad_messages = 0
        self._requests: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_draining = False

    async def serve(self) -> None:
        """Accept, greet, and serve until the end."""
        offered = self._socket.scope["subprotocols"]
        await self._socket.accept(protocol.SUBPROTOCOL if protocol.SUBPROTOCOL in offered else None)
        works: list[asyncio.Task[None]] = []
        try:
            await self._greet()
            works = [asyncio.create_task(work) for work in (self._read(), self._write())]
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for work in done:
                work.result()
        except Closed as end:
            await self._close(end.code, end.reason, works)
        except TooSlow:
            self._streams.metrics.slow.inc()
            await self._close(protocol.TOO_SLOW, "the client takes nothing", works)
        except WebSocketDisconnect:
            pass
        finally:
            for work in [*works, *self._requests]:
                work.cancel()
            for seat in list(self._seats.values()):
                self._outbox.forget(seat)
                self._streams.stand_up(seat)
            self._seats.clear()
            if abort := self._socket.scope["extensions"].get("aapt_fast.abort"):
                asyncio.get_running_loop().call_later(1, abort)

    # ---- as streams see it ----

    def send(self, message: dict[str, Any]) -> None:
        self._outbox.add_text(message)

    def show(self, seat: Seat, pictures: list[bytes], frames: range, has_key: bool) -> None:
        self._outbox.add_step(seat, pictures, frames, has_key)

    def leave(self, seat: Seat) -> None:
        self._outbox.forget(seat)
        self._seats.pop(seat.number, None)

    @property
    def queued(self) -> int:
        """Steps that wait for the network."""
        return sum(len(seat.queue) for seat in self._seats.values())

    def drain(self, seconds: float) -> None:
        """Tell the client that the server will stop; no stream can be opened from now on."""
        self.is_draining = True
        self.send({"type": "drain", "seconds": seconds})

    def end(self) -> None:
        """Close the connection, since the server stops."""
        if not self._ending.done():
            self._ending.set_exception(Closed(protocol.DRAIN, "the server stops"))

    def _want_key(self, seat: Seat) -> None:
        self._streams.want_key_frame(seat.stream)

    # ---- the two directions ----

    async def _greet(self) -> None:
        """Wait for `hello`, check it, and answer once the model is there."""
        try:
            with anyio.fail_after(self._limits.hello_seconds):
                hello = await self._next_message()
        except TimeoutError:
            raise Closed(protocol.BAD_MESSAGE, "no hello came") from None
        except BadMessage as error:
            raise await self._refused(error.error) from None
        if not isinstance(hello, protocol.Hello):
            raise await self._refused(refusal("type", "hello, as the first message", hello.type))
        if hello.version != protocol.VERSION:
            raise await self._refused(refusal("version", protocol.VERSION, hello.version))
        if self._settings.token is not None:
            given = hello.token or bearer_token(self._socket.headers.get("authorization"))
            if not same_token(given, self._settings.token):
                got = "none" if given is None else "another one"
                raise await self._refused(refusal("token", "the token of this server", got), protocol.BAD_TOKEN)
        await self._streams.link.ready.wait()
        model = self._streams.link.model
        if model is None:
            raise Closed(1013, "the model could not be loaded")
        codecs = [codec for codec in model["codecs"] if codec in hello.codecs]
        if not codecs:
            raise await self._refused(refusal("codecs", f"one of {', '.join(model['codecs'])}", hello.codecs))
        self.codec = codecs[-1]
        self.send(
            {
                "type": "welcome",
                "version": protocol.VERSION,
                "server_time": protocol.milliseconds(),
                "codec": self.codec,
                "model": model,
                "limits": self._limits.to_dict(),
            }
        )

    async def _refused(self, error: dict[str, object], code: int = protocol.BAD_MESSAGE) -> Closed:
        """Send an error, and return the end of the connection."""
        self._streams.metrics.bad_messages.inc()
        await self._send_text({"type": "error", **error})
        return Closed(code, str(error["message"])[:100])

    async def _read(self) -> None:
        while True:
            try:
                message = await self._next_message()
            except BadMessage as error:
                self._streams.metrics.bad_messages.inc()
                self._bad_messages += 1
                if self._bad_messages >= MOST_BAD_MESSAGES:
                    raise await self._refused(error.error) from None
                self.send({"type": "error", **error.error})
                continue
            self._take(message)

    async def _next_message(self) -> Any:
        """The next message. Raises BadMessage for one that is none, Closed for a binary one and for too many."""
        received = await self._socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        if not self._rate.take():
            error = refusal("messages", f"at most {self._limits.messages_per_second} a second", "more")
            raise await self._refused(error, protocol.TOO_MANY)
        text = received.get("text")
        if text is None:
            raise await self._refused(refusal("message", "a JSON text", "bytes"))
        if (
            len(text.encode("utf-8", "surrogatepass")) > self._limits.message_bytes
        ):  # other servers than ours pass it on
            raise await self._refused(refusal("message", f"at most {self._limits.message_bytes} bytes", "more"))
        return protocol.read_message(text)

    async def _write(self) -> None:
        sending = asyncio.ensure_future(self._outbox.send_all(self._send_text, self._socket.send_bytes))
        try:
            await asyncio.wait([sending, self._ending], return_when=asyncio.FIRST_COMPLETED)
            for each in (self._ending, sending):
                if each.done():
                    each.result()
        finally:
            sending.cancel()

    async def _send_text(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(protocol.text_of(message))

    async def _close(self, code: int, reason: str, works: list[asyncio.Task[None]]) -> None:
        for work in works:
            work.cancel()
        with contextlib.suppress(TimeoutError, RuntimeError, WebSocketDisconnect):
            with anyio.fail_after(1):
                await self._socket.close(code, reason)

    # ---- messages ----

    def _take(self, message: Any) -> None:
        """Do what a message says. Those with a `request` are answered once the worker has done it."""
        if isinstance(message, protocol.Ping):
            self.send({"type": "pong", "time": message.time, "server_time": protocol.milliseconds()})
        elif isinstance(message, protocol.Hello):
            self.send({"type": "error", **refusal("type", "one hello", "another one")})
        elif isinstance(message, protocol.Control):
            self._control(message)
        elif isinstance(message, protocol.ReceivedUntil):
            if message.stream in self._seats:
                self._outbox.shown_until(self._seats[message.stream], message.frame)
        elif len(self._requests) >= MOST_REQUESTS:
            error = refusal("request", f"at most {MOST_REQUESTS} that wait for an answer", "one more")
            self.send({"type": "error", "request": message.request, **error})
        else:
            task = asyncio.create_task(self._answer(message))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    def _control(self, message: protocol.Control) -> None:
        seat = self._seats.get(message.stream)
        if seat is None:
            error = {**self._no_stream(message.stream), "stream": message.stream, "id": message.id}
            self.send({"type": "error", **error})
        elif self._streams.control(seat, message.id, message.track, message.value):
            self.send({"type": "received", "stream": message.stream, "id": message.id})

    async def _answer(self, message: Any) -> None:
        number = getattr(message, "stream", None)
        try:
            answer = await self._do(message)
        except BadMessage as error:
            answer = {"type": "error", **error.error}
        except CallFailed as failed:
            answer = {"type": "error", **failed.error}
            answer.pop("full", None)
        except WorkerGone as gone:
            answer = {"type": "error", **protocol.refusal_of(gone)}
        except Exception:
            log.exception("a message of type %s failed", message.type)
            answer = {"type": "error", **refusal("server", "no mistake of its own", "one, which its log tells")}
        if answer["type"] == "error" and number is not None:
            answer["stream"] = number
        self.send({**answer, "request": message.request})

    async def _do(self, message: Any) -> Answer:
        if isinstance(message, protocol.Open):
            return await self._open(message)
        if isinstance(message, protocol.Watch):
            self._require_place()
            try:
                stream = self._streams.find(message.key) or await self._streams.take_over(message.key, self.codec)
            except Elsewhere:
                error = refusal("key", "that of a stream of this server", "one that another server shows")
                raise BadMessage(error) from None
            if stream is None:
                raise BadMessage(refusal("key", "that of an open stream", "another one"))
            return self._sit(stream, None)
        seat = self._seats.get(message.stream)
        if seat is None:
            raise BadMessage(self._no_stream(message.stream))
        stream = seat.stream
        if message.type == "fork":
            self._require_place()
            begun = time.monotonic()
            return self._sit(await self._streams.fork(stream, self.codec), begun)
        if isinstance(message, protocol.Reset):
            await self._reset(seat, message)
        elif isinstance(message, protocol.Rewind):
            self._outbox.restart(seat)
            await self._streams.command(stream, "rewind", step=message.step)
        elif isinstance(message, protocol.SetPrompt):
            await self._streams.command(stream, "prompt", prompt=message.prompt, policy=message.policy)
        elif message.type == "close":
            await self._close_stream(seat)
        else:
            await self._streams.command(stream, message.type)
        return {"type": "done"}

    async def _open(self, message: protocol.Open) -> Answer:
        self._require_place()
        begun = time.monotonic()
        options, body = self._first(message.first)
        stream = await self._streams.open(
            message.first.model_dump(exclude_none=True),
            body,
            self.codec,
            action=message.action,
            seed=message.seed,
            prompt=message.prompt,
            paused=message.paused,
            **options,
        )
        return self._sit(stream, begun)

    async def _reset(self, seat: Seat, message: protocol.Reset) -> None:
        options: dict[str, Any] = {}
        body = b""
        if message.first is not None:
            if message.first.replay is not None:
                raise BadMessage(refusal("first.replay", "none: a replay is opened", "one"))
            options, body = self._first(message.first)
        self._outbox.restart(seat)
        stream = seat.stream
        await self._streams.command(stream, "reset", body, seed=message.seed, prompt=message.prompt, **options)
        stream.seed = stream.seed if message.seed is None else message.seed
        if message.first is not None:
            stream.first = message.first.model_dump(exclude_none=True)

    async def _close_stream(self, seat: Seat) -> None:
        """Leave a stream; the last viewer ends it."""
        stream = seat.stream
        self.leave(seat)
        if len(stream.seats) == 1:
            await self._streams.command(stream, "close")
        else:
            self._streams.stand_up(seat)

    def _first(self, first: protocol.First) -> tuple[dict[str, Any], bytes]:
        """Options and body of the worker's command for a first frame."""
        if first.gallery is not None:
            return {"gallery": first.gallery}, b""
        kind, name = ("image", first.image) if first.image is not None else ("replay", first.replay)
        body = self._uploads.get(kind, name or "")
        if body is None:
            raise BadMessage(refusal(f"first.{kind}", "the id of an upload that is still there", "another one"))
        return ({"replay": True} if kind == "replay" else {}), body

    def _sit(self, stream: Stream, opened: float | None) -> Answer:
        number = self._next_number
        self._next_number = (number + 1) % 2**16
        seat = self._streams.sit(self, stream, number, opened)
        self._seats[number] = seat
        asyncio.get_running_loop().call_soon(stream.tell_state)  # after the answer
        opened_as = {"stream": number, "key": stream.key, "seed": stream.seed, "step": stream.state["step"]}
        return {"type": "opened", **opened_as, "first": stream.first}

    def _require_place(self) -> None:
        if self.is_draining:
            raise BadMessage(refusal("server", "one that goes on", "one that stops"))
        most = self._limits.streams_per_connection
        if len(self._seats) >= most:
            raise BadMessage(refusal("streams", f"at most {most} on one connection", "one more"))

    def _no_stream(self, number: int) -> dict[str, object]:
        known = ", ".join(map(str, self._seats)) or "none, as none is open"
        return refusal("stream", f"the number of a stream on this connection ({known})", number)
