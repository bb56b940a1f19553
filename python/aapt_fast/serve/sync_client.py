# SPDX-License-Identifier: Apache-2.0
"""`client` without `async`: the same objects, whose calls wait.

with connect("http://localhost:8000/") as client:
    stream = client.open(gallery=0, action="walk")
    for frame in stream.frames():
        show(frame.picture())
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from aapt_fast.serve import client
from aapt_fast.serve.client import Rows, VideoFrame

T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aapt_fast-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncStream:
    """A `client.Stream` whose methods wait."""

    def __init__(self, loop: _Loop, stream: client.Stream) -> None:
        self._loop, self._stream = loop, stream

    @property
    def key(self) -> str:
        """For `SyncClient.watch`."""
        return self._stream.key

    @property
    def state(self) -> dict[str, Any]:
        """step, oldest_step, paused, parked and viewers, as the server told them last."""
        return self._stream.state

    @property
    def ended(self) -> str | None:
        """The reason why the stream is over; None while it is not."""
        return self._stream.ended

    def control(
        self, *, action: str | None = None, pose: Rows | None = None, camera: Sequence[float] | None = None
    ) -> int:
        """`Stream.control`."""
        return self._loop.run(self._stream.control(action=action, pose=pose, camera=camera))

    def release(self, track: str = "pose") -> int:
        """`Stream.release`."""
        return self._loop.run(self._stream.release(track))

    def pause(self) -> None:
        """`Stream.pause`."""
        self._loop.run(self._stream.pause())

    def resume(self) -> None:
        """`Stream.resume`."""
        self._loop.run(self._stream.resume())

    def step(self) -> None:
        """`Stream.step`."""
        self._loop.run(self._stream.step())

    def rewind(self, step: int) -> None:
        """`Stream.rewind`."""
        self._loop.run(self._stream.rewind(step))

    def reset(self, *, first: dict[str, Any] | None = None, seed: int | None = None) -> None:
        """`Stream.reset`."""
        self._loop.run(self._stream.reset(first=first, seed=seed))

    def set_prompt(self, prompt: str, policy: str = "keep") -> None:
        """`Stream.set_prompt`."""
        self._loop.run(self._stream.set_prompt(prompt, policy))

    def fork(self) -> SyncStream:
        """`Stream.fork`."""
        return SyncStream(self._loop, self._loop.run(self._stream.fork()))

    def close(self) -> None:
        """`Stream.close`."""
        self._loop.run(self._stream.close())

    def replay(self) -> bytes:
        """`Stream.replay`."""
        return self._loop.run(self._stream.replay())

    def frames(self) -> Iterator[VideoFrame]:
        """`Stream.frames`."""
        frames = self._stream.frames()

        async def take() -> VideoFrame | None:
            return await anext(frames, None)

        while (frame := self._loop.run(take())) is not None:
            yield frame


class SyncClient:
    """A `client.Client` whose methods wait."""

    def __init__(self, loop: _Loop, connected: client.Client) -> None:
        self._loop, self._client = loop, connected

    @property
    def model(self) -> dict[str, Any]:
        """`Client.model`."""
        return self._client.model

    def open(self, **options: Any) -> SyncStream:
        """`Client.open`."""
        return SyncStream(self._loop, self._loop.run(self._client.open(**options)))

    def watch(self, key: str) -> SyncStream:
        """`Client.watch`."""
        return SyncStream(self._loop, self._loop.run(self._client.watch(key)))

    def upload_image(self, data: bytes) -> str:
        """`Client.upload_image`."""
        return self._loop.run(self._client.upload_image(data))

    def upload_replay(self, data: bytes) -> str:
        """`Client.upload_replay`."""
        return self._loop.run(self._client.upload_replay(data))


@contextlib.contextmanager
def connect(url: str, token: str | None = None, codecs: Sequence[str] = ("jpeg",)) -> Iterator[SyncClient]:
    """Connect to a server, for the time of a `with` block. Arguments and errors as in `client.connect`."""
    loop = _Loop()
    try:
        connection = client.connect(url, token, codecs)
        connected = loop.run(connection.__aenter__())
        try:
            yield SyncClient(loop, connected)
        finally:
            loop.run(connection.__aexit__(None, None, None))
    finally:
        loop.close()
