# SPDX-License-Identifier: Apache-2.0
"""The process with torch, which `WorkerProcess` starts.

It reads the settings, then commands, from a socket pair, and ends with it. Where several GPUs share each frame, it is
rank 0, and starts a process of its own for every other rank: these do what it does, and end with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from aapt_fast.serve.pipe import Header, pack, unpack
from aapt_fast.serve.protocol import refusal_of
from aapt_fast.serve.settings import Settings

if TYPE_CHECKING:
    import torch

    from aapt_fast.distributed.launch import Followers
    from aapt_fast.distributed.transport import Transport
    from aapt_fast.models.stream_model import StreamModel
    from aapt_fast.serve.host import Host

DEATH_SECONDS = 1.0  # between the connection's loss and the end of a process that has died
END_SECONDS = 3.0  # that other ranks get to end by themselves; the server gives this process five


def main(descriptor: int) -> None:
    """Serve the streams of one model until the server closes its end of the connection, a file `descriptor`."""
    _ignore_signals()
    connection, sending = Connection(descriptor), threading.Lock()
    started, losing = threading.Event(), threading.Lock()

    def send(header: Header, body: bytes = b"") -> None:
        with sending, contextlib.suppress(OSError):  # the server has gone, which the loop below notices
            connection.send_bytes(pack(header, body))

    def lose(why: object) -> None:
        """End this process, as another rank has failed; from the thread that notices it first."""
        with losing:
            said = why
            if followers is not None:
                said = followers.ended(DEATH_SECONDS) or why
                followers.kill()
            send({"ending": str(said)} if started.is_set() else {"failed": {"message": f"gpus: {said}"}})
            os._exit(1)

    begin, _ = unpack(connection.recv_bytes())
    settings, folder = Settings.from_json(begin["settings"]), begin["folder"]
    followers: Followers | None = None
    try:
        device = _device(settings)
        if settings.gpus > 1:
            followers = _start_followers(settings, device, lose)
        host = _open(settings, device, send, folder, lose)
        pictures = host.gallery_pictures()
        send({"ready": host.describe(), "sizes": list(map(len, pictures))}, b"".join(pictures))
        started.set()
    except Exception as error:
        if followers is not None:
            followers.kill()
        send({"failed": refusal_of(error)})
        return
    try:
        while True:
            host.handle(*unpack(connection.recv_bytes()))
    except (EOFError, OSError):
        if followers is not None:
            followers.let_end()
        host.close()
        if followers is not None:
            from aapt_fast.distributed import launch

            launch.end()
            followers.close(END_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)  # if the server was killed, nobody else removes it


def follow() -> None:
    """Be a rank above 0: open, step and close the sessions that rank 0 does, until it ends."""
    from aapt_fast.distributed import SharedSessions, launch

    _ignore_signals()
    settings = Settings.from_json(launch.end_with_rank_0())
    transport, device = launch.start(_device(settings).type)
    SharedSessions(_load_part(settings, device, transport), transport).follow()
    launch.end()


def _ignore_signals() -> None:
    """Leave signals to the server: they may go to the whole group of processes, and it ends this one."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)


def _start_followers(settings: Settings, device: torch.device, lose: Callable[[object], object]) -> Followers:
    """Processes for the ranks above 0. Raises ValueError, before, for fewer GPUs than ranks."""
    from aapt_fast.distributed.launch import Followers, require_gpus

    if device.type == "cuda":
        require_gpus(settings.gpus)
    code = f"import sys; sys.path[:] = {sys.path!r}; from aapt_fast.serve.worker import follow; follow()"
    return Followers(settings.gpus, ["-c", code], settings.to_json(), lose)


def _open(
    settings: Settings,
    device: torch.device,
    send: Callable[[Header, bytes], None],
    folder: str,
    lose: Callable[[object], object],
) -> Host:
    """Load the model, on rank 0 of several together with the others."""
    from aapt_fast.models.files.model_file import load_gallery
    from aapt_fast.serve.host import Host

    gallery = load_gallery(settings.model)
    if settings.gpus == 1:
        from aapt_fast.models.stream_model import StreamModel

        model = StreamModel.from_pretrained(settings.model, **_placement(settings, device))
        return Host(model, gallery, settings, send, folder)
    from aapt_fast.distributed import SharedSessions, launch
    from aapt_fast.distributed.sharded_generator import decoding_alone

    transport, device = launch.start(device.type, on_failure=lose)
    sessions = SharedSessions(_load_part(settings, device, transport), transport)
    return Host(decoding_alone(sessions.model), gallery, settings, send, folder, sessions)


def _device(settings: Settings) -> torch.device:
    """The device that the settings name. Raises ValueError for one that torch cannot use."""
    import torch

    from aapt_fast.models.files.placement import require_usable_device

    if settings.device is not None:
        require_usable_device(settings.device, "--device")
    return torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load_part(settings: Settings, device: torch.device, transport: Transport) -> StreamModel:
    """The model of one rank of several."""
    from aapt_fast.distributed import shard

    return shard(settings.model, transport, settings.parallel, **_placement(settings, device))


def _placement(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Device and dtype of the model. Sets torch's threads."""
    import torch

    from aapt_fast.models.files.placement import fast_dtype

    torch.set_num_threads(settings.threads)
    return {"device": device, "dtype": fast_dtype(device) if settings.dtype is None else settings.dtype}
