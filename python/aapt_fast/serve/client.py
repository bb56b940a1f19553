# SPDX-License-Identifier: Apache-2.0
"""A client of `aapt-fast serve` for Python programs: with `async`, or without in `sync_client`.

async with connect("http://localhost:8000/") as client:
    stream = await client.open(gallery=0, action="walk")
    async for frame in stream.frames():
        show(frame.picture())
        if frame.number == 48:
            await stream.control(action="wave")
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import urllib.error
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import websockets
from PIL import Image

from aapt_fast.serve import protocol
from aapt_fast.serve.protocol import Header

KEPT_FRAMES = 48  # that a program has not taken yet; older ones are dropped
Rows = Sequence[Sequence[float]]


class ServerError(ValueError):
    """The server's answer to a mistake: `argument`, `expected` and `got` tell which."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.argument, self.expected, self.got = error["argument"], error["expected"], error["got"]


class StreamEnded(RuntimeError):
    """The stream, or the whole connection, is over; the message says why."""


@dataclass(frozen=True)
class VideoFrame:
    """One picture."""

    header: Header
    data: bytes
    """As JPEG, or H.264 in Annex B."""

    @property
    def number(self) -> int:
        """From 0 on since the start or a reset."""
        return self.header.frame

    @property
    def control(self) -> int:
        """What `control` returned for the newest control that the picture obeys; 0 for none."""
        return self.header.control

    @property
    def is_discontinuous(self) -> bool:
        """True for the first picture after a reset or a rewind."""
        return bool(self.header.flags & protocol.DISCONTINUITY)

    def picture(self) -> Image.Image:
        """The picture in RGB. Raises ValueError for H.264, which needs a decoder for the whole stream."""
        if self.header.codec != protocol.JPEG:
            raise ValueError("frame: expected a JPEG, got H.264; connect with codecs=['jpeg']")
        return Image.open(io.BytesIO(self.data)).convert("RGB")


class Stream:
    """One stream of a `Client`. `Client.open`, `Client.watch` and `fork` make it.

    Every method raises ServerError for a mistake, StreamEnded once the stream is over.
    """

    def __init__(self, client: Client, opened: dict[str, Any]) -> None:
        self._client = client
        self.number, self.key, self.seed = opened["stream"], opened["key"], opened["seed"]
        self.state: dict[str, Any] = {"step": opened["step"]}
        """step, oldest_step, paused, parked and viewers, as the server told them last."""
        self.stats: dict[str, Any] = {}
        """step_ms, encode_ms, queue, late and dropped, once a second."""
        self.pose: list[list[float]] | None = None
        """[J][3] of the newest video frame, of a model that is controlled by poses."""
        self.applied: dict[int, int] = {}
        """Number of the first video frame that obeys it, for each of the newest controls."""
        self.refused: deque[ServerError] = deque(maxlen=16)
        """Answers to controls that the model does not take."""
        self.ended: str | None = None
        self._ids = itertools.count(1)
        self._frames: deque[VideoFrame] = deque(maxlen=KEPT_FRAMES)
        self._changed = asyncio.Event()

    async def control(
        self, *, action: str | None = None, pose: Rows | None = None, camera: Sequence[float] | None = None
    ) -> int:
        """Set one track of the control; returns the number that `VideoFrame.control` repeats.

        A pose, [J][3], or a camera is held, and goes before the action until `release`.
        """
        given = {"action": action, "pose": pose, "camera": camera}
        named = [(track, value) for track, value in given.items() if value is not None]
        if len(named) != 1:
            raise ValueError(f"control: expected one of action, pose and camera, got {len(named)}")
        return await self._control(*named[0])

    async def release(self, track: str = "pose") -> int:
        """Go back from a held pose or camera to the action; returns a number as `control` does."""
        return await self._control(track, None)

    async def pause(self) -> None:
        """Take no more steps until `resume`."""
        await self._ask("pause")

    async def resume(self) -> None:
        """Go on."""
        await self._ask("resume")

    async def step(self) -> None:
        """Take one step of a stream that is paused."""
        await self._ask("step")

    async def rewind(self, step: int) -> None:
        """Go back to the state after a step, `state["oldest_step"]` at the earliest."""
        await self._ask("rewind", step=step)

    async def reset(self, *, first: dict[str, Any] | None = None, seed: int | None = None) -> None:
        """Start over, from another first frame or with another seed if they are given."""
        await self._ask("reset", first=first, seed=seed)

    async def set_prompt(self, prompt: str, policy: str = "keep") -> None:
        """Go on under another prompt; `policy` is that of `StreamSession.set_prompt`."""
        await self._ask("prompt", prompt=prompt, policy=policy)

    async def fork(self) -> Stream:
        """Another stream that goes on from here; it is paused if this one is."""
        return self._client._add(await self._ask("fork"))

    async def close(self) -> None:
        """Leave the stream; its last viewer ends it."""
        await self._ask("close")
        self._client._end(self, "it was closed")

    async def replay(self) -> bytes:
        """A file from which `Client.upload_replay` and `Client.open` play the stream again."""
        return await self._client._http(f"/v1/streams/{self.key}/replay")

    async def frames(self) -> AsyncIterator[VideoFrame]:
        """Yield the video frames as they come, until the stream ends. A slow program misses some."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                if frame.header.flags & protocol.FIRST_OF_STEP:
                    await self._client._send(type="received_until", stream=self.number, frame=frame.number)
                yield frame
            if self.ended is not None:
                return
            self._changed.clear()
            await self._changed.wait()

    async def _control(self, track: str, value: Any) -> int:
        self._require_running()
        number = next(self._ids)
        await self._client._send(type="control", stream=self.number, id=number, track=track, value=value)
        return number

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._require_running()
        return await self._client._ask(kind, stream=self.number, **fields)

    def _require_running(self) -> None:
        if self.ended is not None:
            raise StreamEnded(f"stream {self.number}: {self.ended}")

    def _take(self, message: dict[str, Any]) -> None:
        """Note what the server says about this stream."""
        kind = message["type"]
        if kind == "state":
            self.state = {name: value for name, value in message.items() if name not in ("type", "stream")}
        elif kind == "stats":
            self.stats = {name: value for name, value in message.items() if name not in ("type", "stream")}
        elif kind == "pose":
            self.pose = message["value"]
        elif kind == "applied":
            self.applied[message["id"]] = message["frame"]
            self.applied.pop(message["id"] - 1000, None)
        elif kind == "error":
            self.refused.append(ServerError(message))
        elif kind == "ended":
            self._client._end(self, message["why"])

    def _show(self, frame: VideoFrame) -> None:
        self._frames.append(frame)
        self._changed.set()


class Client:
    """A connection to a server. `connect` makes it."""

    def __init__(self, socket: Any, welcome: dict[str, Any], address: str, token: str | None) -> None:
        self._socket, self._address, self._token = socket, address, token
        self.model: dict[str, Any] = welcome["model"]
        """name, width, height, fps, actions, gallery, control and more: see docs/reference/protocol.md."""
        self.limits: dict[str, Any] = welcome["limits"]
        self.codec: str = welcome["codec"]
        self.drain_seconds: float | None = None
        """Seconds until the server stops, once it has said so."""
        self._streams: dict[int, Stream] = {}
        self._early: dict[int, list[Any]] = {}  # what came for a stream before the answer to `open` was looked at
        self._requests = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    async def open(
        self,
        *,
        gallery: int | None = None,
        image: str | None = None,
        replay: str | None = None,
        action: str | None = None,
        seed: int = 0,
        prompt: str | None = None,
        paused: bool = False,
    ) -> Stream:
        """Open a stream from picture number `gallery`, an uploaded image, or an uploaded replay.

        Raises ServerError for a mistake, and for a server that is full.
        """
        named = {"gallery": gallery, "image": image, "replay": replay}
        first = {name: value for name, value in named.items() if value is not None} or {"gallery": 0}
        opened = await self._ask("open", first=first, action=action, seed=seed, prompt=prompt, paused=paused)
        return self._add(opened)

    async def watch(self, key: str) -> Stream:
        """See and control a stream that another connection has opened."""
        return self._add(await self._ask("watch", key=key))

    async def upload_image(self, data: bytes) -> str:
        """Upload a PNG, JPEG or WebP; returns the `image` of `open`."""
        return json.loads(await self._http("/v1/images", data))["image"]

    async def upload_replay(self, data: bytes) -> str:
        """Upload the file of `Stream.replay`; returns the `replay` of `open`."""
        return json.loads(await self._http("/v1/replays", data))["replay"]

    async def ping(self) -> tuple[float, float]:
        """Milliseconds that an answer takes, and of the server's clock in the middle of it."""
        begun = protocol.milliseconds()
        number = -next(self._requests)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._send(type="ping", time=number)
        pong = await answer
        return protocol.milliseconds() - begun, pong["server_time"]

    async def close(self) -> None:
        """End the connection; its streams stay on the server for a while, for `watch`."""
        self._reading.cancel()
        await self._socket.close()
        self._fail("the connection was closed")

    # ---- for streams ----

    async def _send(self, **message: Any) -> None:
        text = json.dumps({name: value for name, value in message.items() if value is not None or name == "value"})
        try:
            await self._socket.send(text)
        except websockets.ConnectionClosed as end:
            raise StreamEnded(f"connection: {_why(end)}") from None

    async def _ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a message, and wait for its answer."""
        number = next(self._requests)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(type=kind, request=number, **fields)
            return await answer
        finally:
            self._answers.pop(number, None)

    async def _http(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self._address + path, body)
        request.add_header("Content-Type", "application/octet-stream")
        if self._token is not None:
            request.add_header("Authorization", f"Bearer {self._token}")

        def fetch() -> bytes:
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    raise ServerError(json.load(error)) from None

        return await asyncio.to_thread(fetch)

    def _add(self, opened: dict[str, Any]) -> Stream:
        stream = Stream(self, opened)
        self._streams[stream.number] = stream
        for early in self._early.pop(stream.number, []):
            self._deliver(stream, early)
        return stream

    def _end(self, stream: Stream, why: str) -> None:
        stream.ended = stream.ended or why
        self._streams.pop(stream.number, None)
        stream._changed.set()

    # ---- messages of the server ----

    async def _read(self) -> None:
        try:
            async for message in self._socket:
                if isinstance(message, bytes):
                    header = Header.unpack(message)
                    self._route(header.stream, VideoFrame(header, message[protocol.HEADER_BYTES :]))
                else:
                    self._take(json.loads(message))
            self._fail("the server has closed the connection")
        except websockets.ConnectionClosed as end:
            self._fail(_why(end))

    def _take(self, message: dict[str, Any]) -> None:
        number = message.get("request", message.get("time"))
        answer = self._answers.pop(number, None) if number is not None else None
        if answer is not None and not answer.done():
            if message["type"] == "error":
                answer.set_exception(ServerError(message))
            else:
                answer.set_result(message)
        elif message["type"] == "drain":
            self.drain_seconds = message["seconds"]
        elif "stream" in message and number is None:
            self._route(message["stream"], message)

    def _route(self, number: int, message: Any) -> None:
        if number in self._streams:
            self._deliver(self._streams[number], message)
        else:
            early = self._early.setdefault(number, [])
            if len(early) < KEPT_FRAMES and len(self._early) <= 8:
                early.append(message)

    def _deliver(self, stream: Stream, message: Any) -> None:
        if isinstance(message, VideoFrame):
            stream._show(message)
        else:
            stream._take(message)

    def _fail(self, why: str) -> None:
        for stream in list(self._streams.values()):
            self._end(stream, why)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(StreamEnded(f"connection: {why}"))


@contextlib.asynccontextmanager
async def connect(url: str, token: str | None = None, codecs: Sequence[str] = ("jpeg",)) -> AsyncIterator[Client]:
    """Connect to a server, for the time of an `async with` block.

    Args:
        url: the address that `aapt-fast serve` prints, with its token.
        token: of the server, if it is not in the address.
        codecs: that this program can decode: "jpeg", "h264"; the server chooses.

    Raises:
        ServerError: the token or a codec is refused.
        OSError: no server answers.
    """
    parts = urlsplit(url)
    token = token or parse_qs(parts.fragment).get("token", [None])[0]
    place = f"://{parts.netloc}{parts.path.rstrip('/')}"  # the path is that of one of several models
    address, where = parts.scheme + place, f"{'wss' if parts.scheme == 'https' else 'ws'}{place}/v1/stream"
    async with websockets.connect(
        where, subprotocols=[protocol.SUBPROTOCOL], max_size=None, compression=None
    ) as socket:
        hello = {"type": "hello", "version": protocol.VERSION, "codecs": list(codecs)}
        await socket.send(json.dumps(hello if token is None else {**hello, "token": token}))
        try:
            welcome = json.loads(await socket.recv())
        except websockets.ConnectionClosed as end:
            raise StreamEnded(f"connection: {_why(end)}") from None
        if welcome["type"] == "error":
            raise ServerError(welcome)
        client = Client(socket, welcome, address, token)
        try:
            yield client
        finally:
            await client.close()


def _why(end: websockets.ConnectionClosed) -> str:
    received = end.rcvd
    return f"{received.reason or 'closed'} ({received.code})" if received is not None else "it was lost"
