# SPDX-License-Identifier: Apache-2.0
"""Version 1 of the messages between a client and the server: JSON texts, and pictures behind a header of 16 bytes.

docs/reference/protocol.md describes them in words.
"""

from __future__ import annotations

import json
import re
import struct
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION = 1
SUBPROTOCOL = "aapt-fast.1"
JPEG, H264_KEY, H264_DELTA = 1, 2, 3
FIRST_OF_STEP, DISCONTINUITY = 1, 2

BAD_MESSAGE, BAD_TOKEN, BAD_ORIGIN, TOO_SLOW, FULL, TOO_MANY, DRAIN = 4400, 4401, 4403, 4408, 4409, 4429, 1001
"""Codes with which the server closes a WebSocket."""

Request = Annotated[int, Field(ge=0, lt=2**53)]
StreamNumber = Annotated[int, Field(ge=0, lt=2**16)]
ControlId = Annotated[int, Field(ge=1, lt=2**32)]
Step = Annotated[int, Field(ge=0, lt=2**53)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Name = Annotated[str, Field(max_length=100)]
Prompt = Annotated[str, Field(max_length=4000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Row = Annotated[list[Number], Field(max_length=64)]
Value: TypeAlias = Name | Annotated[list[Row], Field(max_length=256)] | Row | None


class Message(BaseModel):
    """A message of a client. Unknown fields and other types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class First(Message):
    """The start of a stream: one of the three."""

    gallery: Annotated[int, Field(ge=0)] | None = None
    image: Name | None = None
    replay: Name | None = None

    def model_post_init(self, _: object) -> None:
        given = [name for name in ("gallery", "image", "replay") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of gallery, image and replay, got {', '.join(given) or 'none'}")


class Hello(Message):
    """The first message."""

    type: Literal["hello"]
    version: int
    token: Annotated[str, Field(max_length=1000)] | None = None
    codecs: Annotated[list[Name], Field(max_length=16)] = Field(default_factory=lambda: ["jpeg"])


class Open(Message):
    """Open a stream."""

    type: Literal["open"]
    request: Request
    first: First
    action: Name | None = None
    seed: Seed = 0
    prompt: Prompt | None = None
    paused: bool = False


class Watch(Message):
    """See and control a stream of another connection."""

    type: Literal["watch"]
    request: Request
    key: Name


class Control(Message):
    """Change one track of the control; the latest wins."""

    type: Literal["control"]
    stream: StreamNumber
    id: ControlId
    track: Literal["action", "pose", "camera"]
    value: Value


class Command(Message):
    """A command without further arguments."""

    type: Literal["pause", "resume", "step", "close", "fork"]
    request: Request
    stream: StreamNumber


class Reset(Message):
    """Start over."""

    type: Literal["reset"]
    request: Request
    stream: StreamNumber
    first: First | None = None
    seed: Seed | None = None
    prompt: Prompt | None = None


class SetPrompt(Message):
    """Go on under another prompt; `policy` is that of `StreamSession.set_prompt`."""

    type: Literal["prompt"]
    request: Request
    stream: StreamNumber
    prompt: Prompt
    policy: Literal["keep", "recompute"] = "keep"


class Rewind(Message):
    """Go back to the state after a step."""

    type: Literal["rewind"]
    request: Request
    stream: StreamNumber
    step: Step


class ReceivedUntil(Message):
    """The newest video frame that the client has shown."""

    type: Literal["received_until"]
    stream: StreamNumber
    frame: Annotated[int, Field(ge=0, lt=2**32)]


class Ping(Message):
    """A question for the server's time."""

    type: Literal["ping"]
    time: Number


ClientMessage: TypeAlias = Annotated[
    Hello | Open | Watch | Control | Command | Reset | SetPrompt | Rewind | ReceivedUntil | Ping,
    Field(discriminator="type"),
]
_READER: TypeAdapter[Any] = TypeAdapter(ClientMessage)
_REQUEST: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


class BadMessage(ValueError):
    """A message that is none of the protocol; `error` is the answer to it."""

    def __init__(self, error: dict[str, object]) -> None:
        super().__init__(error["message"])
        self.error = error


def read_message(text: str) -> Any:
    """The message in a text. Raises BadMessage, which names the argument, for another one."""
    try:
        return _READER.validate_json(text)
    except ValidationError as error:
        raise BadMessage(_refusal(error) | _addressee(text)) from None
    except UnicodeEncodeError:  # a lone surrogate: JSON is UTF-8
        raise BadMessage(refusal("message", "UTF-8", "a text that is none")) from None


def text_of(message: dict[str, Any]) -> str:
    """The text of a message of the server."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=True)


def refusal(argument: str, expected: object, got: object) -> dict[str, object]:
    """The fields of an `error` message."""
    message = f"{argument}: expected {expected}, got {got}"
    return {"argument": argument, "expected": str(expected), "got": str(got), "message": message}


def refusal_of(error: BaseException) -> dict[str, object]:
    """The fields of an `error` message for an exception of this package: argument, expected and got of its sentence."""
    text = str(error) or type(error).__name__
    parts = re.fullmatch(r"([\w.\[\] ]+): expected (.*), got (.*)", text, re.DOTALL)
    if parts is None:
        return {"argument": "", "expected": "", "got": "", "message": text}
    return {"argument": parts[1], "expected": parts[2], "got": parts[3], "message": text}


def _refusal(error: ValidationError) -> dict[str, object]:
    """The fields of an `error` message for the first mistake in a message."""
    found = error.errors(include_url=False)[0]
    kind, place, context = found["type"], list(map(str, found["loc"][1:])), found.get("ctx", {})  # loc[0]: the type
    got = f"{found['input']!r}"[:100]
    if kind == "json_invalid":
        return refusal("message", "JSON", f"a text that is none: {context['error']}")
    if kind.startswith("union_tag"):
        return refusal("type", context.get("expected_tags", "the type of a message"), context.get("tag", "none")[:100])
    if place[:1] == ["value"]:
        return refusal("value", "a name, numbers, rows of numbers, or null", got)
    argument = ".".join(place) or "message"
    if kind == "missing":
        return refusal(argument, "a value", "none")
    if kind == "extra_forbidden":
        return refusal(argument, "no such field", got)
    words = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("expected ")
    expected, _, said = words.partition(", got ")
    return refusal(argument, expected, said or got)


def _addressee(text: str) -> dict[str, object]:
    """The `request`, `stream` and `id` of a message that is wrong elsewhere, so that its sender knows which it was."""
    try:
        found = _REQUEST.validate_json(text)
    except ValidationError:
        return {}
    names = ("request", "stream", "id")
    return {name: found[name] for name in names if type(found.get(name)) is int and 0 <= found[name] < 2**53}


# ---- pictures ----

_HEADER = struct.Struct("<IIIHBB")


@dataclass(frozen=True)
class Header:
    """The 16 bytes before a picture."""

    frame: int
    """Number of the video frame, from 0 on."""
    time: int
    """Milliseconds of the server's clock when its step was done, modulo 2^32."""
    control: int
    """Id of the newest control of this connection that it obeys; 0 for none."""
    stream: int
    codec: int
    flags: int = 0

    def pack(self) -> bytes:
        """The bytes, little-endian."""
        words = (self.frame, self.time, self.control)
        return _HEADER.pack(*(word % 2**32 for word in words), self.stream, self.codec, self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """The header of a binary message. Raises ValueError for one that is shorter."""
        if len(data) < _HEADER.size:
            raise ValueError(f"data: expected {_HEADER.size} bytes or more, got {len(data)}")
        return cls(*_HEADER.unpack_from(data))


HEADER_BYTES = _HEADER.size


def milliseconds() -> float:
    """The server's clock: the same in its two processes, and that of `Header.time`."""
    return time.monotonic() * 1e3
