# SPDX-License-Identifier: Apache-2.0
"""Videos in files look as their frames do, last as long, and are kept when they are cut short."""

from __future__ import annotations

import math
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from aapt_fast.media.mp4 import Mp4File
from aapt_fast.media.video_target import check_video_target, require_room
from aapt_fast.media.video_writer import VideoWriter, save_video

FRAMES = np.stack([np.full((16, 24, 3), value, np.uint8) for value in (0, 60, 120, 180, 240)])


NAMES = ["x.mp4", "x.gif", "frames"]


def frames_of(path: Path) -> list[np.ndarray]:
    """The frames of a video file or folder as a player shows them, uint8 [H, W, 3] each."""
    if path.is_dir():
        return [np.asarray(Image.open(picture)) for picture in sorted(path.iterdir())]
    if path.suffix == ".gif":
        with Image.open(path) as gif:
            return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


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


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128), (16, 16, 16), (200, 150, 50)]


@pytest.mark.parametrize("size", [(64, 96), (720, 1280)])  # players guess by the size where nothing is said
def test_mp4_has_the_colours_of_the_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    with VideoWriter(tmp_path / "x.mp4") as writer:
        for colour in COLOURS:
            writer.write(np.full((1, *size, 3), colour, np.uint8))
    with av.open(str(tmp_path / "x.mp4")) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        decoded = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    assert tags == (1, 1, 1, 1)  # BT.709, and limited range
    for colour, planes in zip(COLOURS, decoded, strict=True):
        assert np.abs(bt709(planes, *size) - colour).max() <= 3


def bt709(planes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mean colour of a picture yuv420p [3 / 2 H, W] in limited range, by the numbers of ITU-R BT.709."""
    y = (planes[:height].mean() - 16) / 219
    blue, red = ((half.mean() - 128) / 224 for half in np.split(planes[height:].reshape(-1), 2))
    rgb = (y + 1.5748 * red, y - 0.1873 * blue - 0.4681 * red, y + 1.8556 * blue)
    return np.clip(np.array(rgb), 0, 1) * 255


def test_mp4_begins_with_its_index_and_at_time_0(tmp_path: Path) -> None:
    save_video(tmp_path / "x.mp4", np.repeat(FRAMES, 20, axis=0), fps=24)
    data = (tmp_path / "x.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat") and b"moof" not in data
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        assert float(stream.duration * stream.time_base) == pytest.approx(100 / 24)
    assert times == pytest.approx([number / 24 for number in range(100)], abs=1e-4)


def test_an_odd_mp4_loses_no_pixel(tmp_path: Path) -> None:
    bright_edge = np.zeros((3, 33, 47, 3), np.uint8)
    bright_edge[:, -1], bright_edge[:, :, -1] = 255, 255
    save_video(tmp_path / "x.mp4", bright_edge)
    (frame, *_) = frames_of(tmp_path / "x.mp4")
    assert frame.shape == (34, 48, 3) and frame[-2:].min() > 200 and frame[:, -2:].min() > 200
    assert frame[:30, :44].max() < 60


@pytest.mark.parametrize(
    ("fps", "kept"),
    [
        (23.976, Fraction(2997, 125)),
        (29.97, Fraction(2997, 100)),
        (30000 / 1001, Fraction(30000, 1001)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
        (np.float32(59.94), Fraction(2997, 50)),
        (np.int64(25), Fraction(25)),
        (Fraction(999_999_999, 1_000_000), Fraction(999_999_999, 1_000_000)),
    ],
)
def test_an_mp4_keeps_rates_that_are_no_integers(tmp_path: Path, fps: float | Fraction, kept: Fraction) -> None:
    save_video(tmp_path / "x.mp4", FRAMES, fps=fps)
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == kept
        assert float(stream.duration * stream.time_base) == pytest.approx(5 / kept)


@pytest.mark.parametrize("fps", [24, 30, 25, 7, 50, 23.976, Fraction(30000, 1001)])
def test_a_gif_lasts_as_long_as_the_video(tmp_path: Path, fps: float | Fraction) -> None:
    save_video(tmp_path / "x.gif", np.repeat(FRAMES, 20, axis=0), fps=fps)
    with Image.open(tmp_path / "x.gif") as gif:
        ends = np.cumsum([frame.info["duration"] for frame in ImageSequence.Iterator(gif)])
        assert gif.info["loop"] == 0
    assert np.abs(ends - np.arange(1, 101) * 1000 / float(fps)).max() <= 5.001  # milliseconds; a GIF counts in tens


def test_a_gif_has_the_colours_of_every_frame(tmp_path: Path) -> None:
    """A palette per frame: no frame pays for the colours of another."""
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    video = np.stack([np.stack([rows, columns, np.full_like(rows, blue)], -1) for blue in (0, 128, 255)])
    save_video(tmp_path / "x.gif", video)
    error = np.stack(frames_of(tmp_path / "x.gif")).astype(float) - video
    assert np.square(error).mean() < 255**2 / 10**3  # 30 dB
    assert np.abs(error.mean(axis=(1, 2))).max() < 4


def test_a_gif_is_written_as_it_goes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    with VideoWriter(tmp_path / "x.gif") as writer:
        writer.write(noise)
        (partial,) = tmp_path.iterdir()
        assert partial.stat().st_size > 100_000


def test_a_folder_holds_the_pictures_and_nothing_more(tmp_path: Path) -> None:
    save_video(tmp_path / "frames", FRAMES)
    written = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in written] == [f"{i:06d}.png" for i in range(5)]
    assert all(np.array_equal(np.asarray(Image.open(p)), f) for p, f in zip(written, FRAMES, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_frames_come_whole_in_pieces_as_tensors_or_arrays(tmp_path: Path, name: str) -> None:
    whole = torch.from_numpy(FRAMES.copy())
    for given in (whole, FRAMES, [FRAMES[:2], whole[2:]], (piece for piece in whole.split(1))):
        save_video(tmp_path / name, given)
        assert len(frames_of(tmp_path / name)) == 5
        (tmp_path / name).rename(tmp_path / "before") if name == "frames" else None
        shutil.rmtree(tmp_path / "before", ignore_errors=True)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (FRAMES / 255, ValueError, r"frames: expected uint8 \[n, H, W, 3\], got float64 \[5, 16, 24, 3\]"),
        (
            FRAMES.transpose(0, 3, 1, 2),
            ValueError,
            r"frames: expected uint8 \[n, H, W, 3\], got uint8 \[5, 3, 16, 24\]",
        ),
        (FRAMES[0], ValueError, r"frames: expected uint8 \[n, H, W, 3\], got uint8 \[16, 24, 3\]"),
        ([FRAMES, FRAMES[:, 1:]], ValueError, "frames: expected 24 x 16 pixels as before, got 24 x 15"),
        ([], ValueError, "frames: expected at least one video frame, got none"),
        (
            np.zeros((1, 1, 70000, 3), np.uint8),
            ValueError,
            "frames: expected 1 to 65535 pixels on each side, got 70000 x",
        ),
        (["x.png"], TypeError, "frames: expected Tensor or ndarray, got str"),
    ],
)
def test_bad_frames(tmp_path: Path, frames: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        save_video(tmp_path / "x.gif", frames)


@pytest.mark.parametrize(
    ("name", "fps"),
    [("x.gif", 60), ("x.gif", 59.94), ("x.mp4", 0), ("x.mp4", math.nan), ("x.mp4", math.inf), ("frames", -1)],
)
def test_bad_rates(tmp_path: Path, name: str, fps: float) -> None:
    with pytest.raises(ValueError, match="fps: expected 1 to "):
        save_video(tmp_path / name, FRAMES, fps=fps)
    for wrong in ("24", True, None):
        with pytest.raises(TypeError, match="fps: expected a number or a Fraction, got "):
            save_video(tmp_path / name, FRAMES, fps=wrong)  # type: ignore[arg-type]


def test_a_rate_that_no_clock_of_a_file_can_keep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps: expected a fraction with a denominator of at most 1000000, such as"):
        save_video(tmp_path / "x.mp4", FRAMES, fps=Fraction(24 * 10**9 + 1, 10**9))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.MP4", "x.Gif"])
def test_capitals_do_not_matter(tmp_path: Path, name: str) -> None:
    with VideoWriter(tmp_path / name) as writer:
        writer.write(FRAMES)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with av.open(str(tmp_path / name)) as container:
        assert len(list(container.decode(video=0))) == 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_video_that_is_cut_short_is_kept(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    with pytest.raises(error), VideoWriter(tmp_path / name) as writer:
        writer.write(FRAMES)
        raise error
    assert list(tmp_path.iterdir()) == [tmp_path / name] and writer.kept == tmp_path / name
    assert len(frames_of(writer.kept)) == writer.frames == 5


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_a_video_that_is_cut_short_replaces_nothing(tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"x{ending}"
    save_video(target, FRAMES)
    before = target.read_bytes()
    for number, name in enumerate(("x.stopped", "x.stopped-2", "x.stopped-3"), start=1):
        with pytest.raises(RuntimeError), VideoWriter(target) as writer:
            writer.write(FRAMES[:number])
            raise RuntimeError
        assert writer.kept == tmp_path / f"{name}{ending}" and len(frames_of(writer.kept)) == number
    assert target.read_bytes() == before


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_made_meanwhile_is_not_replaced(tmp_path: Path, name: str, existed: bool) -> None:
    target = tmp_path / name
    if existed and target.suffix:
        save_video(target, FRAMES[:1])
    for number in (2, 3):
        with VideoWriter(target) as writer:
            writer.write(FRAMES[:number])
            shutil.rmtree(target, ignore_errors=True)
            save_video(target, FRAMES)
        assert writer.kept == target.with_stem(f"{target.stem}-{number}")
        assert len(frames_of(target)) == 5 and len(frames_of(writer.kept)) == number
        if not target.suffix:
            break  # a full folder is refused at the start


def test_a_video_under_another_name_is_warned_of(tmp_path: Path) -> None:
    def pieces() -> Iterator[np.ndarray]:
        yield FRAMES
        (tmp_path / "x.gif").write_text("other")

    with pytest.warns(UserWarning, match=r"another program has made .*x.gif meanwhile; the video is in .*x-2.gif"):
        save_video(tmp_path / "x.gif", pieces())
    assert (tmp_path / "x.gif").read_text() == "other"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_of_a_video_without_frames(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / name) as writer:
        raise RuntimeError
    with VideoWriter(tmp_path / name):
        pass
    assert writer.kept is None and list(tmp_path.iterdir()) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Stand in for a full disk: a write beyond `size` bytes of a file is an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("name", "size"), [("x.mp4", 200_000), ("x.gif", 50_000), ("frames", 3000)])
def test_a_full_disk_leaves_the_whole_frames_before(tmp_path: Path, name: str, size: int) -> None:
    noise, writer = np.random.default_rng(0), VideoWriter(tmp_path / name)
    said = f"^{tmp_path / name}: cannot be written: File too large$"
    with files_of_at_most(size), pytest.raises(OSError, match=said), writer:
        for number in range(80):
            brightest = 256 if number > 2 else 1  # the first pictures are small
            writer.write(noise.integers(0, brightest, (1, 64, 64, 3), np.uint8))
    kept = tmp_path / name.replace("x.", "x.stopped.")  # it is not taken for a whole video
    assert list(tmp_path.iterdir()) == [kept] == [writer.kept]
    assert 3 <= len(frames_of(kept)) == writer.frames < 80


def test_without_room_for_an_index_the_whole_fragments_of_an_mp4_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(file: Mp4File) -> int:
        raise OSError

    monkeypatch.setattr(Mp4File, "_put_index_first", no_room)
    noise, writer = np.random.default_rng(0), VideoWriter(tmp_path / "x.mp4")
    with files_of_at_most(500_000), pytest.raises(OSError, match="cannot be written"), writer:
        for _ in range(200):
            writer.write(noise.integers(0, 256, (1, 64, 64, 3), np.uint8))
    assert writer.kept == tmp_path / "x.stopped.mp4"
    assert 0 < len(frames_of(writer.kept)) == writer.frames < 200


def test_an_error_says_what_there_is_of_the_video(tmp_path: Path) -> None:
    def failing(count: int) -> Iterator[np.ndarray]:
        yield from [FRAMES] * count
        raise RuntimeError("no more")

    save_video(tmp_path / "x.gif", FRAMES)
    kept = f"the video is not finished: its first 5 video frames are in {tmp_path / 'x.stopped.gif'}"
    for count, said in ((1, kept), (0, "nothing was kept: no video frame was finished")):
        if hasattr(RuntimeError, "add_note"):
            with pytest.raises(RuntimeError, match="no more") as caught:
                save_video(tmp_path / "x.gif", failing(count))
            assert caught.value.__notes__ == [said]
        else:
            with pytest.warns(UserWarning, match=said), pytest.raises(RuntimeError, match="no more"):
                save_video(tmp_path / "x.gif", failing(count))


def test_what_a_killed_process_leaves_is_in_nobodys_way(tmp_path: Path) -> None:
    body = """if True:
        import numpy, os, pathlib, sys
        from aapt_fast.media.video_writer import VideoWriter
        for name in sys.argv[1:]:
            VideoWriter(pathlib.Path(name)).write(numpy.zeros((3, 16, 16, 3), numpy.uint8))
        os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", body, *NAMES], cwd=tmp_path).returncode == 9
    for name in NAMES:
        save_video(tmp_path / name, FRAMES)
        assert len(frames_of(tmp_path / name)) == 5


def test_an_existing_video_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "x.gif"
    target.write_bytes(b"old")
    with VideoWriter(target) as writer:
        writer.write(FRAMES)
        assert target.read_bytes() == b"old"
    assert target.read_bytes()[:3] == b"GIF"


@pytest.mark.parametrize("name", NAMES)
def test_of_a_link_the_video_behind_it_is_replaced_with_its_permissions(tmp_path: Path, name: str) -> None:
    link, target = tmp_path / name, tmp_path / "elsewhere" / "target"
    target.parent.mkdir()
    link.symlink_to(target)
    if link.suffix:
        target.write_bytes(b"old")
        target.chmod(0o604)
    save_video(link, FRAMES)
    assert link.is_symlink() and len(frames_of(target.rename(target.with_name(name)))) == 5
    assert not link.suffix or target.with_name(name).stat().st_mode & 0o777 == 0o604
    assert len(list(tmp_path.iterdir())) == 2 and len(list(target.parent.iterdir())) == 1


def test_a_name_that_can_be_a_folder_only_makes_no_file(tmp_path: Path) -> None:
    for name in ("x.gif/", "x.gif/."):
        with pytest.raises(ValueError, match=r"^path: expected a file without a slash at its end, or a folder without"):
            save_video(f"{tmp_path}/{name}", FRAMES)
    save_video(f"{tmp_path}/frames/", FRAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(
        ValueError,
        match=r"path: expected a name ending in .mp4 or .gif, or a folder without a dot in its name, got .*/x.avi",
    ):
        VideoWriter(tmp_path / "x.avi")
    (tmp_path / "full.mp4").mkdir()
    with pytest.raises(ValueError, match="path: expected a file, got the folder"):
        VideoWriter(tmp_path / "full.mp4")
    with pytest.raises(ValueError, match="path: expected a new or empty folder"):
        VideoWriter(tmp_path / "full")
    for name in (".mp4", ".GIF"):
        with pytest.raises(
            ValueError, match=rf"path: expected a name before the ending, such as video{name}, got .*{name}"
        ):
            save_video(tmp_path / name, FRAMES)
        assert not (tmp_path / name).exists()
    with pytest.raises(OSError, match=r"path: expected a folder that exists, got .*missing"):
        VideoWriter(tmp_path / "missing" / "x.mp4")
    with pytest.raises(ValueError, match="scale: expected at least 1, got 0"):
        VideoWriter(tmp_path / "x.mp4", scale=0)


def test_arguments_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="path: expected str or PathLike, got ndarray"):
        save_video(FRAMES, str(tmp_path / "x.mp4"))
    with pytest.raises(TypeError, match="frames: expected Tensor or ndarray or Iterable, got NoneType"):
        save_video(tmp_path / "x.mp4", None)
    assert not list(tmp_path.iterdir())


def test_mp4_without_the_package_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"path: writing .mp4 needs the package av"):
        check_video_target(tmp_path / "x.mp4")


def test_room_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aapt_fast.limits.available_memory", lambda: 10**9)
    for name, largest in (("x.mp4", 20), ("x.gif", 42), ("frames", 60)):
        require_room(tmp_path / name, 240, (96, 96), largest)
        with pytest.raises(ValueError, match=r"--scale: expected a value that fits into the 1\.00 GB of memory"):
            require_room(tmp_path / name, 240, (96, 96), largest + 1)
    with pytest.raises(ValueError, match="--scale: expected 1 to 170 for a video of 96 x 64 pixels, got 171"):
        require_room(tmp_path / "x.mp4", 4, (64, 96), 171)
    expected = rf"--frames: expected a value that fits into the .* free on the disk of {re.escape(str(tmp_path))}, got"
    with pytest.raises(ValueError, match=expected):
        require_room(tmp_path / "frames", 10**15, (96, 96), 1)
