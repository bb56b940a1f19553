# SPDX-License-Identifier: Apache-2.0
"""Folders of videos as a world: what is read of them, and which faults are found."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aapt_fast.media.video_file import examine_video, read_frames
from aapt_fast.worlds import WORLDS
from aapt_fast.worlds.filmed.folder import look_through
from aapt_fast.worlds.filmed.world import FilmedWorld
from aapt_fast.worlds.world import FirstFrame

av = pytest.importorskip("av")

NEAR = 0.9  # of a frame's number, after compression


def write_video(path: Path, frames: int = 122, fps: int = 24, width: int = 48, height: int = 32) -> Path:
    """A video whose frame n has the shade 2 n of grey, between a black and a white margin."""
    codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 30
        # with little loss beside the rounding of colours
        stream.options = {"libx264": {"crf": "0"}, "libvpx": {"qmin": "0", "qmax": "0"}}.get(codec, {})
        stream.bit_rate = 4_000_000
        for number in range(frames):
            picture = np.full((height, width, 3), 2 * number % 256, np.uint8)
            picture[:8], picture[-8:] = 0, 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def shades(video: Any) -> np.ndarray:
    """Numbers of the frames of a video uint8 [T, H, W, 3], by their shade."""
    return np.asarray(video)[:, 8, 8, 0].astype(float) / 2


# ---- files ----


@pytest.mark.parametrize(("ending", "fps"), [(".mp4", 24), (".mp4", 30), (".mkv", 12), (".webm", 25), (".mov", 60)])
@pytest.mark.parametrize("first", [0, 25])
def test_frames_are_those_on_the_screen_at_24_per_second(ending: str, fps: int, first: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"film{ending}", frames=120, fps=fps)
    facts = examine_video(path)
    assert facts == examine_video(path, decode=True)
    assert (facts.width, facts.height, facts.frames) == (48, 32, 120) and facts.fps == pytest.approx(fps, rel=1e-3)
    video = read_frames(path, first, 10, 24, 16)
    assert video.shape == (10, 16, 16, 3) and video.dtype == np.uint8
    expected = [(first + number) * fps // 24 for number in range(10)]
    assert np.abs(shades(video) - expected).max() < NEAR


def test_a_video_that_ends_too_early_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", frames=20)
    assert len(read_frames(path, 16, 4, 24, 16)) == 4
    with pytest.raises(ValueError, match=r"short.mp4: expected a video with frames 16 to 20 .* shows 4 of them"):
        read_frames(path, 16, 5, 24, 16)


def test_the_middle_of_a_wide_picture_is_kept(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, 32:64] = 255
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert read_frames(tmp_path / "wide.mp4", 0, 4, 24, 32)[:, 4:-4, 4:-4].min() > 200


# ---- the world ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of 2 and 3 clips, one of another size and rate in a folder inside."""
    root = tmp_path_factory.mktemp("films")
    write_video(root / "a.mp4", frames=122)
    write_video(root / "more" / "b.mp4", frames=226, fps=30, width=32, height=64)
    (root / ".hidden.mp4").write_bytes(b"")
    (root / "notes.txt").write_text("not a video")
    return root


def test_films_are_cut_into_clips_and_the_last_are_held_out(folder: Path) -> None:
    world = FilmedWorld.of(folder)
    assert [(film.name, film.clips) for film in world.films] == [("a.mp4", 2), ("more/b.mp4", 2)]
    assert (world.clips, world.evaluated().clips, world.control) == (3, 1, None)
    clip = world.clip(0, 1, 61, 32)
    assert clip.video.shape == (61, 32, 32, 3) and np.abs(shades(clip.video) - np.arange(60, 121)).max() < NEAR
    assert torch.equal(clip.controls, torch.zeros(61, 1, 4, 4))
    assert torch.equal(world.clip(7, 1, 5, 32, future=3).video, clip.video[:5])  # what is filmed is filmed
    held_out = world.evaluated().clip(0, 0, 3, 32)
    assert np.abs(shades(held_out.video) - [75, 76, 77]).max() < NEAR  # frame 60 at 24 per second is frame 75 at 30
    assert world.mirrored(0, 0, 61, 32) is None
    with pytest.raises(ValueError, match=r"clip: expected 0..2, the clips of the folder, got 3"):
        world.clip(0, 3, 5, 32)
    with pytest.raises(ValueError, match="frames: expected at most 61"):
        world.clip(0, 0, 65, 32)


def test_worker_processes_get_the_same_world(folder: Path) -> None:
    world = FilmedWorld.of(folder)
    again = pickle.loads(pickle.dumps(world))
    assert again == world and torch.equal(again.clip(0, 0, 5, 32).video, world.clip(0, 0, 5, 32).video)


def test_settings_tell_films_but_not_where_they_lie(folder: Path, tmp_path: Path) -> None:
    world = FilmedWorld.of(folder)
    write_video(tmp_path / "a.mp4", frames=122)
    write_video(tmp_path / "more" / "b.mp4", frames=226, fps=30, width=32, height=64)
    assert FilmedWorld.of(tmp_path).settings() == world.settings() != world.evaluated().settings()
    write_video(tmp_path / "c.mp4")
    assert FilmedWorld.of(tmp_path).settings() != world.settings()


@pytest.mark.parametrize("shape", [(19, 3), (2, 4, 4)])
def test_controls_belong_to_the_frames_that_are_stored(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=160, fps=30)
    numbers = np.arange(160, dtype=np.float64).reshape(-1, *(1 for _ in shape))
    np.save(tmp_path / "a.npy", np.broadcast_to(numbers, (160, *shape)))
    world = FilmedWorld.of(tmp_path)
    clip = world.clip(0, 0, 61, 32)
    assert world.control == shape and clip.controls.shape == (61, *shape) and clip.controls.dtype == torch.float32
    assert np.abs(clip.controls.flatten(1)[:, 0].numpy() - shades(clip.video)).max() < NEAR
    assert world.draw_controls(clip.controls[:2] / 160, 32).shape == (2, 3, 32, 32)
    first = world.first_frame(0, 0, 32)
    assert first.control is not None and torch.equal(first.control, clip.controls[0])


def test_the_gallery_keeps_the_control_and_a_player_holds_it(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    track = np.random.default_rng(0).random((122, 19, 3), dtype=np.float32)
    np.save(tmp_path / "a.npy", track)
    first = FilmedWorld.of(tmp_path).first_frame(0, 0, 32)
    assert first.pose is not None
    again = WORLDS["filmed"].from_gallery(first.image, first.pose, first.scene)
    player = WORLDS["filmed"].player(again, "still")
    assert torch.equal(player.next(4), torch.from_numpy(track[:1]).expand(4, -1, -1)) and player.truth(32) is None
    with pytest.raises(ValueError, match="still"):
        player.play("walk")
    with pytest.raises(ValueError, match=r"first: expected one of the gallery, or with its control"):
        WORLDS["filmed"].player(FirstFrame(first.image))


# ---- faults ----


def save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path.with_suffix(".npy"), array)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no video": (lambda path: path.write_bytes(b"x" * 1000), "expected a video that can be read"),
    "empty": (lambda path: path.write_bytes(b""), "expected a video that can be read"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:1500]), "expected a video that can be read"),
    "too short": (lambda path: write_video(path, frames=60), "at least 2.54 s, which is a clip, got 2.50 s"),
    "other controls": (save(np.zeros((122, 1, 4, 4))), "expected no controls, as most videos have, got controls of"),
    "controls too short": (save(np.zeros((121, 19, 3))), "expected 122 controls, one for each frame"),
    "controls of another shape": (save(np.zeros((122, 19, 2))), r"expected an array \[T, J, 3\] or \[T, C, h, w\]"),
    "whole numbers": (save(np.zeros((122, 19, 3), np.int64)), "expected floating-point numbers, got int64"),
    "NaN": (save(np.full((122, 19, 3), np.nan)), "expected finite numbers"),
    "pickle": (save(np.array([None])), "expected an array that numpy.save wrote"),
    "controls without a video": (lambda path: np.save(path.with_name("x.npy"), np.zeros(3)), "of the same name beside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_skipped_only_on_request(fault: str, folder: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes((folder / "a.mp4").read_bytes())
    break_it, sentence = FAULTS[fault]
    break_it(tmp_path / "b.mp4")
    found = look_through(tmp_path, decode=True)
    assert len(found.faults) == 1
    with pytest.raises(ValueError, match=rf"[bx]\.(mp4|npy): .*{sentence}.*; `aapt-fast data check"):
        FilmedWorld.of(tmp_path)
    kept = [film.name for film in FilmedWorld.of(tmp_path, skip_faults=True).films]
    assert kept == (["a.mp4", "b.mp4", "c.mp4"] if fault == "controls without a video" else ["a.mp4", "c.mp4"])


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder: expected one with videos \(.avi, .*which has none"):
        look_through(tmp_path)
    with pytest.raises(ValueError, match="folder: expected one that exists"):
        look_through(tmp_path / "nowhere")
