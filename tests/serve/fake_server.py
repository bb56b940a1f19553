# SPDX-License-Identifier: Apache-2.0
"""A server that speaks the protocol of `aapt-fast serve` with drawn pictures: for tests of the page without a model."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import math
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image, ImageDraw

import aapt_fast

STATIC = Path(aapt_fast.__file__).parent / "serve/static"
POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'"
STEP_S = 4 / 24
HISTORY = 12
POSE_CONTROL = {
    "kind": "pose",
    "entry": [6, 3],
    "names": ["pelvis", "chest", "neck", "left_shoulder", "left_elbow", "left_hand"],
    "bones": [[0, 1, "centre"], [3, 4, "left"], [4, 5, "left"]],
    "camera": {"focal": 1.4, "height": 0.92, "distance": 3.2, "horizon": 0.52},
}
POSE = [[0.5, 0.55, 0.0], [0.5, 0.35, 0.0], [0.5, 0.3, 0.0], [0.42, 0.36, 0.0], [0.38, 0.47, 0.0], [0.36, 0.57, 0.0]]
CAMERA_CONTROL = {"kind": "camera", "entry": [6], "names": [], "bones": [], "camera": None}


def picture(number: int, kind: str) -> bytes:
    """A ball on its way round, JPEG or PNG, 96x96."""
    image = Image.new("RGB", (96, 96), (30, 40, 60))
    angle = number * math.pi / 24
    x, y = 48 + 30 * math.cos(angle), 48 + 30 * math.sin(angle)
    ImageDraw.Draw(image).ellipse((x - 9, y - 9, x + 9, y + 9), fill=(255, 170, 60))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(number, "JPEG") for number in range(48)]


class FakeStream:
    """One stream: counts steps, and remembers its controls."""

    def __init__(self, socket: WebSocket, number: int, step: int = 0) -> None:
        self.socket, self.number, self.step, self.paused, self.key = socket, number, step, False, f"key-{number}"
        self.control, self.fresh, self.action = 0, True, "idle"

    def state(self) -> dict[str, Any]:
        """The `state` message."""
        oldest = max(0, self.step - HISTORY)
        now = {"step": self.step, "paused": self.paused, "oldest_step": oldest}
        return {"type": "state", "stream": self.number, **now, "parked": False, "viewers": 1, "action": self.action}

    async def take_step(self, control: dict[str, Any]) -> None:
        """Send the pictures of the next step."""
        frame = 4 * self.step
        self.step += 1
        fresh, self.fresh = self.fresh, False
        if control["kind"] == "pose":
            await self.socket.send_json({"type": "pose", "stream": self.number, "frame": frame + 3, "value": POSE})
        for index in range(4):
            flags = (index == 0) + 2 * (index == 0 and fresh)
            now = int(1e3 * time.time()) % 2**32
            header = struct.pack("<IIIHBB", frame + index, now, self.control, self.number, 1, flags)
            await self.socket.send_bytes(header + PICTURES[(frame + index) % len(PICTURES)])


class FakeServer:
    """The application and what it was told: `messages` in order, `uploads` by address."""

    def __init__(self, control: dict[str, Any], token: str | None = None) -> None:
        self.control, self.token, self.gallery = control, token, 3
        self.messages: list[dict[str, Any]] = []
        self.uploads: list[tuple[str, bytes]] = []
        self.streams: dict[int, FakeStream] = {}
        self.sockets: set[WebSocket] = set()
        self.numbers = itertools.count(1)
        self.app = FastAPI()
        self.app.middleware("http")(self._guard)
        self.app.add_api_websocket_route("/v1/stream", self._stream)
        self.app.add_api_route("/v1/models", lambda: [{"name": "fake", "path": ""}])
        self.app.add_api_route("/v1/gallery/{number}.png", self._gallery)
        self.app.add_api_route("/v1/streams/{key}/replay", self._replay)
        self.app.add_api_route("/favicon.ico", lambda: Response(status_code=204))  # of pages that are no page of ours
        self.app.add_api_route("/v1/{kind}", self._upload, methods=["POST"])
        self.app.mount("/", StaticFiles(directory=STATIC, html=True))

    def told(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Messages of this type with these fields."""
        return [each for each in self.messages if each["type"] == kind and fields.items() <= each.items()]

    def drop(self) -> None:
        """Cut every connection, as a broken network does."""
        for socket in list(self.sockets):
            asyncio.run_coroutine_threadsafe(socket.close(1011), self.loop).result()

    def end(self, number: int) -> None:
        """End a stream, as it happens when the process that computes it dies."""
        stream = self.streams.pop(number)
        ended = {"type": "ended", "stream": number, "why": "a test wants it"}
        asyncio.run_coroutine_threadsafe(stream.socket.send_json(ended), self.loop).result()

    def model(self) -> dict[str, Any]:
        """The part of `welcome` about the model."""
        actions = ["idle", "walk", "wave", "jump", "squat", "kick", "dance", "bow"]
        sizes = {"width": 96, "height": 96, "fps": 24, "frames_per_step": 4, "history": HISTORY}
        actions = actions if self.control["kind"] == "pose" else []
        return {
            "name": "fake",
            **sizes,
            "actions": actions,
            "gallery": self.gallery,
            "has_prompt": True,
            "control": self.control,
        }

    async def _guard(self, request: Request, follow: Any) -> Response:
        known = not self.token or request.headers.get("authorization") == f"Bearer {self.token}"
        if request.url.path.startswith("/v1/") and not known:
            return JSONResponse({"message": "a token is needed"}, status_code=401)
        response = await follow(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    async def _gallery(self, number: int) -> Response:
        return Response(picture(16 * number, "PNG"), media_type="image/png")

    async def _replay(self, key: str) -> Response:
        return Response(f"replay of {key}".encode(), media_type="application/octet-stream")

    async def _upload(self, kind: str, request: Request) -> dict[str, str]:
        self.uploads.append((kind, await request.body()))
        return {kind.removesuffix("s"): f"{kind}-{len(self.uploads)}"}

    async def _stream(self, socket: WebSocket) -> None:
        self.loop = asyncio.get_running_loop()
        await socket.accept("aapt-fast.1")
        hello = await socket.receive_json()
        if self.token and hello.get("token") != self.token:
            await socket.close(4401)
            return
        self.sockets.add(socket)
        await socket.send_json({"type": "welcome", "version": 1, "codec": "jpeg", "model": self.model(), "limits": {}})
        player = asyncio.create_task(self._play(socket))
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._answer(socket, await socket.receive_json())
        player.cancel()
        self.sockets.discard(socket)

    async def _play(self, socket: WebSocket) -> None:
        for tick in itertools.count():
            for stream in list(self.streams.values()):
                if stream.socket is socket and not stream.paused:
                    await stream.take_step(self.control)
                if stream.socket is socket and tick % 6 == 0:
                    stats = {"step_ms": 31.0, "encode_ms": 0.6, "queue": 0, "late": 0, "dropped": 0}
                    await socket.send_json({"type": "stats", "stream": stream.number, **stats})
            await asyncio.sleep(STEP_S)

    async def _answer(self, socket: WebSocket, message: dict[str, Any]) -> None:
        self.messages.append(message)
        kind, echo = message["type"], {"request": message.get("request")}
        stream = self.streams.get(message.get("stream", -1))
        if kind == "ping":
            await socket.send_json({"type": "pong", "time": message["time"], "server_time": 0})
        elif kind == "watch" and message["key"] not in [each.key for each in self.streams.values()]:
            await socket.send_json({"type": "error", **echo, "message": "key: expected that of an open stream"})
        elif kind in ("open", "watch", "fork"):
            stream = self._opened(socket, message, stream)
            answer = {"key": stream.key, "seed": 0, "step": stream.step, "first": {"gallery": 0}}
            await socket.send_json({"type": "opened", **echo, "stream": stream.number, **answer})
            await socket.send_json(stream.state())
        elif kind == "control" and stream:
            stream.control = message["id"]
            stream.action = message["value"] if message["track"] == "action" else stream.action
            applied = {"stream": stream.number, "id": message["id"], "step": stream.step + 1, "frame": 4 * stream.step}
            await socket.send_json({"type": "received", "stream": stream.number, "id": message["id"]})
            await socket.send_json({"type": "applied", **applied})
        elif stream and echo["request"]:
            await self._obey(stream, kind, message)
            await socket.send_json({"type": "done", **echo})
            if kind != "close":
                await socket.send_json(stream.state())

    def _opened(self, socket: WebSocket, message: dict[str, Any], origin: FakeStream | None) -> FakeStream:
        if message["type"] == "watch":
            stream = next(each for each in self.streams.values() if each.key == message["key"])
            stream.socket = socket
            return stream
        stream = FakeStream(socket, next(self.numbers), origin.step if origin else 0)
        stream.paused = origin is not None and origin.paused
        stream.action = origin.action if origin else message.get("action")
        self.streams[stream.number] = stream
        return stream

    async def _obey(self, stream: FakeStream, kind: str, message: dict[str, Any]) -> None:
        if kind in ("pause", "resume"):
            stream.paused = kind == "pause"
        elif kind == "step":
            await stream.take_step(self.control)
        elif kind in ("rewind", "reset"):
            stream.step, stream.fresh = message.get("step", 0), True
        elif kind == "close":
            del self.streams[stream.number]


@contextlib.contextmanager
def running(control: dict[str, Any], token: str | None = None) -> Iterator[tuple[FakeServer, str]]:
    """Serve in a thread until the block ends; yields the server and its address."""
    fake = FakeServer(control, token)
    server = uvicorn.Server(uvicorn.Config(fake.app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    try:
        yield fake, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
