# SPDX-License-Identifier: Apache-2.0
"""A folder that several servers of one model share, with copies of their streams: where one ends, another goes on.

    <name>.json                facts of a stream: its server, kind of copy, step
    <name>.<step>.safetensors  the copy that the facts are about
    <server>.alive             touched every second while a server lives

A name is the hash of a stream's key, so nothing that a client sends becomes a path. A stream belongs to the server that
its facts name; others take it over only once that is gone, and only one of them gets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

ALIVE_SECONDS = 4.0  # since the last sign of life, after which a server counts as gone


class Elsewhere(Exception):
    """The stream is served by another server that lives."""


class Shelf:
    """Copies of streams in `folder`, as one server sees them. Clocks of the machines have to agree within a second."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.server = folder, f"{os.getpid()}-{secrets.token_hex(6)}"
        folder.mkdir(parents=True, exist_ok=True)

    def sign(self) -> None:
        """Show that this server lives."""
        self._sign_of(self.server).touch()

    def retire(self) -> None:
        """Leave the streams of this server to others from now on."""
        self._sign_of(self.server).unlink(missing_ok=True)

    def place(self, key: str, step: int) -> Path:
        """File for a copy of a stream after a step; `put` says that it is there."""
        return self._folder / f"{self._name(key)}.{step}.safetensors"

    def put(self, key: str, step: int, facts: dict[str, Any]) -> None:
        """Let others find the copy at `place`, with facts that JSON can hold. The copy before it goes."""
        path = self._facts_of(key)
        before = self._read(path)
        partial = path.with_suffix(f".{self.server}")
        partial.write_text(json.dumps({**facts, "server": self.server, "step": step}))
        partial.replace(path)
        if before is not None and before["step"] != step:
            self.place(key, before["step"]).unlink(missing_ok=True)

    def take(self, key: str) -> tuple[dict[str, Any], Path] | None:
        """Take a stream over: its facts and its copy; None if nobody has put it here.

        Raises Elsewhere if another server has it.
        """
        path = self._facts_of(key)
        facts = self._read(path)
        if facts is None:
            return None
        if facts["server"] != self.server and self._lives(facts["server"]):
            raise Elsewhere
        taken = path.with_suffix(".taken")
        try:
            path.rename(taken)  # one server succeeds
        except FileNotFoundError:
            raise Elsewhere from None
        self.put(key, facts["step"], facts)
        taken.unlink(missing_ok=True)
        return facts, self.place(key, facts["step"])

    def forget(self, key: str) -> None:
        """Delete the copy of a stream that has been closed."""
        path = self._facts_of(key)
        facts = self._read(path)
        if facts is not None:
            path.unlink(missing_ok=True)
            self.place(key, facts["step"]).unlink(missing_ok=True)

    def _lives(self, server: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return time.time() - self._sign_of(server).stat().st_mtime < ALIVE_SECONDS
        return False

    def _read(self, path: Path) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads(path.read_text()))
        return None

    def _sign_of(self, server: str) -> Path:
        return self._folder / f"{server}.alive"

    def _facts_of(self, key: str) -> Path:
        return self._folder / f"{self._name(key)}.json"

    def _name(self, key: str) -> str:
        return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]
