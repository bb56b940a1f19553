# SPDX-License-Identifier: Apache-2.0
"""Copies of each step's video from the device to the host, made while the next step is computed."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from aapt_fast.errors import require, require_dtype, require_shape, require_type


class PendingFrames:
    """Video uint8 [F, H, W, 3] on its way to one of `buffers` buffers, made by `FrameDownloader.submit`."""

    def __init__(self, frames: Tensor, arrived: torch.cuda.Event | None, buffers: int) -> None:
        self._frames, self._arrived, self._buffers = frames, arrived, buffers
        self._overwritten = False

    def result(self) -> numpy.ndarray:
        """The video, uint8 [F, H, W, 3], once it has arrived: a view of the buffer, not a copy.

        It stays what it is until as many more videos have been submitted as there are buffers (with two, the submit
        after next writes to it); copy what is needed for longer. A second call gives the same memory. May be called in
        another thread than `submit`.

        Raises RuntimeError if that many have been submitted already.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._overwritten:
            expected = f"a call before {self._buffers} more videos are submitted, one per buffer"
            raise RuntimeError(f"result: expected {expected}, got one after")
        return self._frames.numpy()


class FrameDownloader:
    """Copies the videos of steps to host memory, into a few buffers in turn, while the next step is computed.

        out, videos = FrameDownloader(3), queue.Queue(1)  # one is shown, one waits, one is sent
        for control in controls:
            videos.put(out.submit(session.step(control)))  # in another thread: show(videos.get().result())

    `StreamSession.step` waits for its frames. To overlap, call `result()` in another thread, or one step later. From a
    GPU the copies go to pinned memory, on a stream of their own. On a CPU they are done when `submit` returns.

    Args:
        buffers: number of videos in host memory at a time, at least 2. Each buffer is allocated when it is first used.

    Raises:
        TypeError, ValueError: another number of buffers.
    """

    def __init__(self, buffers: int = 2) -> None:
        require_type("buffers", buffers, int)
        require(buffers >= 2, "buffers", "at least 2", buffers)
        self._memory = [torch.empty(0, dtype=torch.uint8, device="cpu")] * buffers
        self._pending: list[PendingFrames | None] = [None] * buffers
        self._next = 0  # buffer
        self._device: torch.device | None = None
        self._stream: torch.cuda.Stream | None = None

    def submit(self, video: Tensor) -> PendingFrames:
        """Begin to copy a video uint8 [F, H, W, 3], whose `result` is there when it has arrived.

        Sizes may change from call to call, the device may not. The tensor may be dropped after this, but on a GPU not
        changed before the result is there. The video submitted as many calls ago as there are buffers is overwritten.

        Raises:
            TypeError, ValueError: something else, or a video on another device than before. Nothing has changed.
        """
        require_shape("video", video, "F", "H", "W", 3)
        require_dtype("video", video, torch.uint8)
        got = f"one on {video.device}"
        require(video.device.type in ("cpu", "cuda"), "video", "one on a CPU or a CUDA device", got)
        require(self._device in (None, video.device), "video", f"one on {self._device}, like those before", got)
        frames = self._buffer(video)
        former = self._pending[self._next]
        if former is not None:
            former._overwritten = True
        pending = PendingFrames(frames, self._copy(video, frames), len(self._memory))
        self._pending[self._next], self._device = pending, video.device
        self._next = (self._next + 1) % len(self._memory)
        return pending

    def _buffer(self, video: Tensor) -> Tensor:
        """The part of the next buffer that takes `video`; a larger one replaces a buffer that is too small."""
        if self._memory[self._next].numel() < video.numel():
            with torch.inference_mode(False):
                size, pinned = video.numel(), video.is_cuda
                self._memory[self._next] = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        return self._memory[self._next][: video.numel()].view(video.shape)

    def _copy(self, video: Tensor, frames: Tensor) -> torch.cuda.Event | None:
        if not video.is_cuda:
            frames.copy_(video)
            return None
        with torch.cuda.device(video.device):  # else leaving the stream would open the GPU that was current before
            if self._stream is None:
                self._stream = torch.cuda.Stream(video.device)
            self._stream.wait_stream(torch.cuda.current_stream(video.device))
            arrived = torch.cuda.Event()
            with torch.cuda.stream(self._stream):
                frames.copy_(video, non_blocking=True)
                arrived.record(self._stream)
        video.record_stream(self._stream)  # its memory is not given to others before
        return arrived
