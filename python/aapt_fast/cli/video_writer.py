# SPDX-License-Identifier: Apache-2.0
"""Video files: frames go to .mp4, .gif or a folder of PNGs as they come; an unfinished file never stays behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from aapt_fast.errors import require


def check_video_target(path: Path, scale: int = 1) -> None:
    """Raise the errors of `VideoWriter` for these arguments, without writing anything."""
    ending = path.suffix.lower()
    require(ending in (".mp4", ".gif", ""), "--out", "a name ending in .mp4 or .gif, or a folder", path.name)
    require(scale >= 1, "--scale", "at least 1", scale)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(f"--out: expected a writable folder, got {path.parent}")
    if ending:
        require(not path.is_dir(), "--out", "a file", f"the folder {path}")
    elif path.exists():
        require(path.is_dir() and not any(path.iterdir()), "--out", "a new or empty folder", path)
    if ending == ".mp4" and importlib.util.find_spec("av") is None:
        raise ImportError("--out: writing .mp4 needs the package av: pip install 'aapt_fast[video]'")


class VideoWriter:
    """Context manager that writes a video; the target appears only if the block ends without an error.

    Raises ValueError for another suffix, OSError if the target's folder cannot be written, ImportError for .mp4
    without the `av` package.
    """

    def __init__(self, path: Path, *, fps: int = 24, scale: int = 1) -> None:
        check_video_target(path, scale)
        ending = path.suffix.lower()
        self.path = path
        self._partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{ending}")
        self._scale = scale
        kinds: dict[str, type[_Mp4 | _Gif | _Folder]] = {".mp4": _Mp4, ".gif": _Gif, "": _Folder}
        self._sink = kinds[ending](self._partial, fps)

    def write(self, frames: np.ndarray) -> None:
        """Append video frames uint8 [n, H, W, 3]."""
        for frame in frames:
            image = Image.fromarray(np.ascontiguousarray(frame))
            if self._scale > 1:
                size = (image.width * self._scale, image.height * self._scale)
                image = image.resize(size, Image.Resampling.BICUBIC)
            self._sink.write(image)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sink.close(finish=kind is None)
            if kind is None:
                if self.path.is_dir():
                    self.path.rmdir()
                os.replace(self._partial, self.path)
        finally:
            if self._partial.is_dir():
                shutil.rmtree(self._partial)
            self._partial.unlink(missing_ok=True)


class _Mp4:
    """H.264 through PyAV; 4:4:4-free and even-sized, so that every player takes it."""

    def __init__(self, path: Path, fps: int) -> None:
        import av

        self._av = av
        self._path, self._fps = path, fps
        self._container: Any = None
        self._stream: Any = None

    def write(self, image: Image.Image) -> None:
        if self._container is None:
            self._container = self._av.open(str(self._path), "w")
            self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "16"})
            self._stream.width, self._stream.height = image.width // 2 * 2, image.height // 2 * 2
            self._stream.pix_fmt = "yuv420p"
        for packet in self._stream.encode(self._av.VideoFrame.from_image(image)):
            self._container.mux(packet)

    def close(self, finish: bool) -> None:
        if self._container is None:
            return
        if finish:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()


class _Gif:
    def __init__(self, path: Path, fps: int) -> None:
        self._path, self._fps = path, fps
        self._images: list[Image.Image] = []

    def write(self, image: Image.Image) -> None:
        self._images.append(image)

    def close(self, finish: bool) -> None:
        if finish and self._images:
            first, rest = self._images[0], self._images[1:]
            first.save(self._path, save_all=True, append_images=rest, duration=round(1000 / self._fps), loop=0)


class _Folder:
    def __init__(self, path: Path, fps: int) -> None:
        self._path, self._count = path, 0
        path.mkdir()

    def write(self, image: Image.Image) -> None:
        image.save(self._path / f"{self._count:06d}.png")
        self._count += 1

    def close(self, finish: bool) -> None:
        pass
