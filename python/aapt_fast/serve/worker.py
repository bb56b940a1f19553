# SPDX-License-Identifier: Apache-2.0
"""The process with torch, which `WorkerProcess` starts.

It reads the settings, then commands, from a socket pair, and ends with it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from aapt_fast.serve.pipe import Header, pack, unpack
from aapt_fast.serve.protocol import refusal_of
from aapt_fast.serve.settings import Settings

if TYPE_CHECKING:
    from aapt_fast.models.stream_model import StreamModel
    from aapt_fast.worlds.world import FirstFrame


def main(descriptor: int) -> None:
    """Serve the streams of one model until the server closes its end of the connection, a file `descriptor`."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they may go to the whole group of processes;
        signal.signal(kind, signal.SIG_IGN)  # the server ends this one
    connection, sending = Connection(descriptor), threading.Lock()

    def send(header: Header, body: bytes = b"") -> None:
        with sending, contextlib.suppress(OSError):  # the server has gone, which the loop below notices
            connection.send_bytes(pack(header, body))

    begin, _ = unpack(connection.recv_bytes())
    settings = Settings.from_json(begin["settings"])
    try:
        from aapt_fast.serve.host import Host

        host = Host(*_load(settings), settings, send, begin["folder"])
        pictures = host.gallery_pictures()
        send({"ready": host.describe(), "sizes": list(map(len, pictures))}, b"".join(pictures))
    except Exception as error:
        send({"failed": refusal_of(error)})
        return
    try:
        while True:
            host.handle(*unpack(connection.recv_bytes()))
    except (EOFError, OSError):
        host.close()
        shutil.rmtree(begin["folder"], ignore_errors=True)  # if the server was killed, nobody else removes it


def _load(settings: Settings) -> tuple[StreamModel, list[FirstFrame]]:
    import torch

    from aapt_fast.models.files.model_file import load_gallery
    from aapt_fast.models.files.placement import fast_dtype, require_usable_device
    from aapt_fast.models.stream_model import StreamModel

    if settings.device is not None:
        require_usable_device(settings.device, "--device")
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = fast_dtype(device) if settings.dtype is None else getattr(torch, settings.dtype)
    torch.set_num_threads(settings.threads)
    model = StreamModel.from_pretrained(settings.model, device=device, dtype=dtype)
    return model, load_gallery(settings.model)
