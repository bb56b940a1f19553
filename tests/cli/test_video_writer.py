# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from aapt_fast.cli.video_writer import VideoWriter, check_video_target

FRAMES = np.stack([np.full((16, 24, 3), value, np.uint8) for value in (0, 60, 120, 180, 240)])


def test_mp4(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "x.mp4", fps=24, scale=2) as writer:
        writer.write(FRAMES[:2])
        writer.write(FRAMES[2:])
    with av.open(str(tmp_path / "x.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 24
    assert len(decoded) == 5 and decoded[0].shape == (32, 48, 3)
    assert np.abs(np.stack(decoded).astype(int)[:, ::2, ::2] - FRAMES).max() < 12  # lossy


def test_mp4_is_written_as_it_goes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), np.uint8)  # more than the encoder looks ahead
    with VideoWriter(tmp_path / "x.mp4") as writer:
        writer.write(noise)
        (partial,) = tmp_path.iterdir()
        assert partial.stat().st_size > 100_000


def test_gif_and_folder(tmp_path: Path) -> None:
    for name in ("x.gif", "frames"):
        with VideoWriter(tmp_path / name) as writer:
            writer.write(FRAMES)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 5
    written = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in written] == [f"{i:06d}.png" for i in range(5)]
    assert all(np.array_equal(np.asarray(Image.open(p)), f) for p, f in zip(written, FRAMES, strict=True))


@pytest.mark.parametrize("name", ["x.MP4", "x.Gif"])
def test_capitals_do_not_matter(tmp_path: Path, name: str) -> None:
    with VideoWriter(tmp_path / name) as writer:
        writer.write(FRAMES)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with av.open(str(tmp_path / name)) as container:
        assert len(list(container.decode(video=0))) == 5


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "frames"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_nothing(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    with pytest.raises(error), VideoWriter(tmp_path / name) as writer:
        writer.write(FRAMES)
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "frames"])
def test_what_a_killed_process_leaves_is_in_nobodys_way(tmp_path: Path, name: str) -> None:
    body = "import numpy, os, pathlib, sys\nfrom aapt_fast.cli.video_writer import VideoWriter\n"
    body += "VideoWriter(pathlib.Path(sys.argv[1])).write(numpy.zeros((3, 16, 16, 3), numpy.uint8)); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", body, str(tmp_path / name)]).returncode == 9
    with VideoWriter(tmp_path / name) as writer:
        writer.write(FRAMES)
    assert (tmp_path / name).exists()


def test_an_existing_video_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "x.gif"
    target.write_bytes(b"old")
    with VideoWriter(target) as writer:
        writer.write(FRAMES)
        assert target.read_bytes() == b"old"
    assert target.read_bytes()[:3] == b"GIF"


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match=r"--out: expected a name ending in .mp4 or .gif, or a folder, got x.avi"):
        VideoWriter(tmp_path / "x.avi")
    (tmp_path / "full.mp4").mkdir()
    with pytest.raises(ValueError, match="--out: expected a file, got the folder"):
        VideoWriter(tmp_path / "full.mp4")
    with pytest.raises(ValueError, match="--out: expected a new or empty folder"):
        VideoWriter(tmp_path / "full")
    with pytest.raises(OSError, match="--out: expected a writable folder"):
        VideoWriter(tmp_path / "missing" / "x.mp4")
    with pytest.raises(ValueError, match="--scale: expected at least 1, got 0"):
        VideoWriter(tmp_path / "x.mp4", scale=0)


def test_mp4_without_the_package_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"--out: writing .mp4 needs the package av"):
        check_video_target(tmp_path / "x.mp4")
