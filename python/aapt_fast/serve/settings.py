# SPDX-License-Identifier: Apache-2.0
"""Settings of a server, and the limits that keep one client from taking everything."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from aapt_fast.errors import require

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The most of everything. Clients get them in `welcome`. Raises ValueError for one that is not above 0."""

    connections: int = 64
    streams_per_connection: int = 4
    message_bytes: int = 64 * 1024
    """Of a WebSocket message of a client."""
    messages_per_second: int = 200
    """Of a connection; twice as many may come in one burst."""
    upload_bytes: int = 8 * MIB
    decoded_pixels: int = 32_000_000
    """Of an uploaded picture."""
    uploads: int = 64
    """Pictures and replays that are kept; the oldest go."""
    replay_steps: int = 9_000
    """Of a stream that has a replay, 25 minutes (8 MB of poses); a longer one has none until it is reset."""
    queued_steps: int = 3
    """Steps that wait for a slow viewer; older ones are dropped."""
    slow_seconds: float = 10.0
    """After which a viewer who takes nothing is closed."""
    hello_seconds: float = 10.0
    """Within which the first message has to come."""
    upload_seconds: float = 60.0
    """Within which an upload has to be complete."""
    park_seconds: float = 60.0
    """After which a stream that is paused, or that nobody watches, is moved to a file."""
    close_seconds: float = 600.0
    """After which a stream that nobody watches is closed."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            require(value > 0, each.name, "more than 0", value)

    def to_dict(self) -> dict[str, float]:
        """All of them, by name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Settings:
    """All that a server and its worker process need to know."""

    model: str = "mini-person"
    """A bundled model, or a file of a model of this package."""
    device: str | None = None
    """None for a GPU where there is one, else the CPU."""
    dtype: str | None = None
    """float32 or bfloat16; None for bfloat16 where the device computes in it."""
    streams: int = 4
    """Places for streams on the device."""
    parked: int = 8
    """Streams that may lie in files besides."""
    history: int = 60
    """Steps by which `rewind` can go back; 60 are ten seconds."""
    gpus: int = 1
    """Ranks that share each frame, one per GPU; with device "cpu" so many processes."""
    parallel: str = "auto"
    """The way they share it, as of `distributed.shard`."""
    threads: int = 1
    """Torch's threads on a CPU. With more, each operator waits for the slowest, above all beside a browser."""
    token: str | None = None
    """Which clients have to know; None only where the server listens to this machine alone."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """Names, without ports, under which clients may reach the server."""
    origins: tuple[str, ...] = ()
    """Pages of other servers that may use this one, such as https://example.org."""
    drain_seconds: float = 10.0
    """Between the signal to stop and the end."""
    limits: Limits = field(default_factory=Limits)
    shelf: str | None = None
    """Folder that servers of this model share, so that one goes on with the streams of another that has ended."""
    kept_as: str = "state"
    """Copies there: "state", as large as a session's memory, or "replay", a kilobyte per step, whose steps are taken
    again."""
    keep_seconds: float = 2.0
    """Between two copies of a stream."""

    def __post_init__(self) -> None:
        require(self.kept_as in ("state", "replay"), "kept_as", "state or replay", self.kept_as)
        require(self.keep_seconds > 0, "keep_seconds", "more than 0", self.keep_seconds)
        require(self.gpus >= 1, "gpus", "at least 1", self.gpus)
        alone = self.gpus == 1 or self.device in (None, "cpu", "cuda")
        require(alone, "device", "cpu or cuda where several GPUs share a frame", self.device)
        copies = self.gpus == 1 or self.shelf is None or self.kept_as == "replay"
        require(copies, "kept_as", "replay where several GPUs share a frame", self.kept_as)

    def to_json(self) -> str:
        """A text for the worker process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings of `to_json`."""
        values = json.loads(text)
        values |= {"hosts": tuple(values["hosts"]), "origins": tuple(values["origins"])}
        return cls(**values | {"limits": Limits(**values["limits"])})
