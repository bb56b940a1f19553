# SPDX-License-Identifier: Apache-2.0
"""Messages between the server and its worker process: a JSON text and bytes. Nothing is pickled."""

from __future__ import annotations

import json
import struct
from typing import Any

Header = dict[str, Any]
_LENGTH = struct.Struct("<I")


def pack(header: Header, body: bytes = b"") -> bytes:
    """One message."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(text)), text, body))


def unpack(message: bytes) -> tuple[Header, bytes]:
    """The header and body of a message of `pack`."""
    (length,) = _LENGTH.unpack_from(message)
    begin = _LENGTH.size
    return json.loads(message[begin : begin + length]), message[begin + length :]
