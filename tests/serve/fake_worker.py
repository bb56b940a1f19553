# SPDX-License-Identifier: Apache-2.0
"""A worker without torch: it answers at once, and takes a step when a test says so."""

from __future__ import annotations

import threading
from typing import Any

from aapt_fast.serve.link import OnEnd, OnMessage
from aapt_fast.serve.pipe import Header
from aapt_fast.serve.settings import Settings

MODEL = {
    "name": "fake",
    "width": 8,
    "height": 8,
    "fps": 24,
    "frames_per_step": 4,
    "actions": ["idle", "walk"],
    "gallery": 1,
    "has_prompt": False,
    "history": 10,
    "control": {"kind": "pose", "entry": [2, 3], "bones": [[0, 1, "middle"]], "names": ["0", "1"]},
    "codecs": ["jpeg", "h264"],
}
PICTURE = b"picture"


class FakeWorker:
    """A `Process` whose streams are numbers. `workers` of the settings' test has all that were started."""

    def __init__(self, settings: Settings, on_message: OnMessage, on_end: OnEnd) -> None:
        self._settings, self._on_message, self._on_end = settings, on_message, on_end
        self.streams: dict[str, dict[str, Any]] = {}
        self.commands: list[Header] = []
        self._lock = threading.Lock()
        on_message({"ready": MODEL, "sizes": [3]}, b"png")

    def send(self, header: Header, body: bytes = b"") -> None:
        with self._lock:
            self.commands.append(header)
            if header["do"] == "control":
                self._control(header)
            elif header["do"] == "codecs":
                if header["key"] in self.streams:
                    self.streams[header["key"]]["codecs"] = header["codecs"]
            else:
                self._answer(header, body)

    def stop(self) -> None:
        pass

    def die(self) -> None:
        """End, as a process does that was killed."""
        self._on_end()

    def take_step(self, key: str, size: int = 0) -> None:
        """Show one step of a stream, with pictures of so many bytes."""
        with self._lock:
            stream = self.streams[key]
            stream["step"] += 1
            for codec in stream["codecs"]:
                self._show(key, stream, codec, PICTURE.ljust(size, b"."))
            stream["discontinuous"] = stream["wants_key"] = False

    def _show(self, key: str, stream: dict[str, Any], codec: str, picture: bytes) -> None:
        numbers = [1] * 4 if codec == "jpeg" else [2 if stream["wants_key"] else 3, 3, 3, 3]
        header = {
            "shown": key,
            "step": stream["step"],
            "frame": 4 * (stream["step"] - 1),
            "done": 1e3 * stream["step"],
            "step_ms": 5.0,
            "encode_ms": 0.5,
            "obeyed": stream["obeyed"],
            "discontinuous": stream["discontinuous"],
            "late": 0,
            "dropped": 0,
            "paused": stream["paused"],
            "action": "walk",
            "oldest_step": 0,
            "codec": codec,
            "codecs": numbers,
            "sizes": [len(picture)] * 4,
        }
        self._on_message(header, picture * 4)

    def _control(self, header: Header) -> None:
        if header["value"] == "impossible":
            error = {"argument": "action", "expected": "idle or walk", "got": "impossible", "message": "action: no"}
            self._on_message({"refused": header["key"], "number": header["number"], "error": error}, b"")
        elif header["key"] in self.streams:
            self.streams[header["key"]]["obeyed"] = header["number"]

    def _answer(self, header: Header, body: bytes) -> None:
        answer: Header = {"answer": header["call"]}
        kind, key = header["do"], header.get("key", "")
        if kind == "fit":
            self._on_message(answer, bytes(8 * 8 * 3))
            return
        if kind == "replay":
            self._on_message(answer, b"a replay")
            return
        if kind in ("open", "fork"):
            if len(self.streams) >= self._settings.streams:
                error = {"argument": "engine", "expected": "a free place", "got": "none", "message": "full"}
                self._on_message({**answer, "error": {**error, "full": True}}, b"")
                return
            paused = self.streams[header["origin"]]["paused"] if kind == "fork" else header["paused"]
            stream = {"step": 0, "paused": paused, "parked": False, "obeyed": 0}
            self.streams[key] = {**stream, "discontinuous": False, "wants_key": True, "codecs": header["codecs"]}
        elif key not in self.streams:
            error = {"argument": "", "expected": "", "got": "", "message": "stream: it has ended"}
            self._on_message({**answer, "error": error}, b"")
            return
        stream = self.streams[key]
        if kind in ("pause", "resume", "park"):
            stream["paused"] = kind != "resume"
            stream["parked"] = kind == "park"
        elif kind in ("reset", "rewind"):
            stream["step"], stream["discontinuous"], stream["wants_key"] = header.get("step", 0), True, True
        elif kind == "close":
            del self.streams[key]
            self._on_message({"ended": key, "why": "it was closed"}, b"")
        state = {name: stream[name] for name in ("step", "paused", "parked")}
        state["action"] = "walk"
        self._on_message({**answer, **state, "oldest_step": 0, "seed": header.get("seed") or 0}, b"")
