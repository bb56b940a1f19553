# SPDX-License-Identifier: Apache-2.0
"""The commands as a user types them, on a nano model with random weights."""

from __future__ import annotations

import ctypes
import json
import math
import os
import weakref
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from aapt_fast.cli import checks, doctor, main
from aapt_fast.cli import generate as generating
from aapt_fast.cli.doctor_text import in_one_line
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops._load import extension
from aapt_fast.ops.kernels import KERNELS, use_kernels
from aapt_fast.streaming.frames import FrameIterator
from aapt_fast.worlds.person import players
from aapt_fast.worlds.person.skeleton import pose_points


def generate(model: Path, out: Path, *arguments: str) -> int:
    return main(["generate", "--model", str(model), "--frames", "8", "--scale", "1", "--out", str(out), *arguments])


def test_generate_reports_what_it_did(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert generate(model, tmp_path / "x.gif", "--motion", "walk:4,wave", "--sheet", str(sheet)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        report["frames"] == 8
        and report["nfe"] == 1
        and report["dtype"] in ("float32", "bfloat16")
        and report["device"] == "cpu"
    )
    assert (
        set(report["step_ms"]) == {"p50", "p95", "p99"}
        and report["step_fps"] >= report["fps"] > 0
        and report["first_frame_s"] > 0
    )
    assert "paged_attention" in report["what_ran"] and report["model"] == "nano"
    with Image.open(sheet) as picture:
        assert picture.size == (2 * 8 * 32, 2 * 3 * 32)  # skeleton, truth, video


def test_frames_round_up_to_steps_and_seeds_reproduce(model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert generate(model, tmp_path / name, "--frames", "5", "--motion", "dance", "--seed", seed) == 0
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / name).iterdir())] for name in "abc")
    assert len(a) == 8 and a == b and a != c


@pytest.mark.parametrize(("motion", "frames"), [("walk:5, wave:4", 12), ("dance:8", 8), ("walk:5,wave", 20)])
def test_a_script_says_how_long_the_video_is(
    model: Path, tmp_path: Path, motion: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "GENERATED_FRAMES", 20)  # of a script without an end
    arguments = ["generate", "--model", str(model), "--scale", "1", "--out", str(tmp_path / "x")]
    assert main([*arguments, "--motion", motion]) == 0
    assert len(list((tmp_path / "x").iterdir())) == frames


def test_controls_from_a_file_and_a_picture(model: Path, tmp_path: Path) -> None:
    points = torch.rand(6, 19, 3)
    np.save(tmp_path / "poses.npy", points.numpy())
    (tmp_path / "poses.json").write_text(json.dumps(points.tolist()))
    picture = str(model.with_name("00.png"))
    for kind in ("npy", "json"):
        controls = str(tmp_path / f"poses.{kind}")
        assert generate(model, tmp_path / kind, "--image", picture, "--controls", controls, "--nfe", "2") == 0
    a, b = ([p.read_bytes() for p in sorted((tmp_path / kind).iterdir())] for kind in ("npy", "json"))
    assert a == b


def test_controls_say_how_long_the_video_is(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "poses.npy", torch.rand(9, 19, 3).numpy())
    arguments = ["generate", "--model", str(model), "--scale", "1", "--out", str(tmp_path / "x")]
    assert main([*arguments, "--controls", str(tmp_path / "poses.npy")]) == 0
    assert len(list((tmp_path / "x").iterdir())) == 12


def test_a_picture_of_another_size(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.jpg")
    assert generate(model, tmp_path / "x.gif", "--image", str(tmp_path / "photo.jpg")) == 0
    said = "--image: 64 x 48 cropped to the middle 48 x 48 and resized to 32 x 32"
    lines = capsys.readouterr().err.splitlines()
    assert said in lines and generating.UNKNOWN_POSE in lines


def test_a_copy_of_a_gallery_picture_is_recognised(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model, tmp_path / "x.gif", "--image", str(model.with_name("00.png"))) == 0
    said = capsys.readouterr().err
    assert "--image: a copy of number 0 in the gallery; with --image 0 the motion begins in its pose" in said
    assert generating.UNKNOWN_POSE not in said


def test_a_picture_and_poses_from_elsewhere_are_commented_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.effect_noise((96, 96), 80).save(tmp_path / "noise.png")
    np.save(tmp_path / "poses.npy", np.random.default_rng(0).random((4, 19, 3)))
    command = ["generate", "--frames", "4", "--scale", "1", "--image", str(tmp_path / "noise.png")]
    for model, named in (("mini-person", True), ("mini-anyone", False)):
        out = ["--out", str(tmp_path / model), "--model", model]
        assert main([*command, *out, "--controls", str(tmp_path / "poses.npy")]) == 0
        said = capsys.readouterr().err
        assert f"--image: the picture is unlike those that {model} was trained on" in said
        assert ("for others there is --model mini-anyone" in said) is named
        assert generating.UNKNOWN_POSE not in said
        assert "--controls: 4 of 4 poses have longer bones than a body of this world" in said
    quiet = ["--out", str(tmp_path / "quiet.gif"), "--controls", str(tmp_path / "poses.npy"), "--quiet"]
    assert main([*command, *quiet]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("sheet", [False, True])
def test_neither_motion_nor_video_is_in_memory_as_a_whole(
    model: Path, tmp_path: Path, sheet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    posed: list[int] = []

    def step(videos: FrameIterator) -> torch.Tensor:
        alive.append(sum(each() is not None for each in made))
        video = one_step(videos)
        made.append(weakref.ref(video))
        return video

    def points(angles: torch.Tensor) -> torch.Tensor:
        posed.append(len(angles))
        return pose_points(angles)

    one_step = FrameIterator.__next__
    monkeypatch.setattr(FrameIterator, "__next__", step)
    monkeypatch.setattr(players, "pose_points", points)
    arguments = ["--sheet", str(tmp_path / "x.png")] if sheet else []
    assert generate(model, tmp_path / "x.mp4", "--frames", "80", *arguments) == 0
    assert len(made) == 20 and max(alive) <= 1 and max(posed) == 4


BAD = {
    "motion": (["--motion", "fly"], "| bow | medley, or a script like walk:48,wave:72, got fly"),
    "script": (
        ["--motion", "walk:x"],
        "--motion: expected a number of video frames from 1 to 999999999 after walk:, got x",
    ),
    "comma": (["--motion", "walk:4,"], "--motion: expected a motion before and after every comma, got 'walk:4,'"),
    "no motion": (["--motion", ""], "--motion: expected idle | walk"),
    "frames": (["--frames", "0"], "--frames: expected at least 1, got 0"),
    "endless": (["--frames", str(10**30)], "--frames: expected less than 2^31, got 1000"),
    "nfe": (["--nfe", "0"], "--nfe: expected 1 to 1000 evaluations per step, got 0"),
    "huge nfe": (["--nfe", str(10**9)], "--nfe: expected 1 to 1000 evaluations per step, got 1000000000"),
    "scale": (["--scale", "0"], "--scale: expected at least 1, got 0"),
    "huge scale": (
        ["--scale", str(10**9)],
        "--scale: expected 1 to 2047 for a video of 32 x 32 pixels, got 1000000000",
    ),
    "frames and disk": (
        ["--frames", str(2**31 - 1), "--scale", "100"],
        "--frames: expected a value that fits into the ",
    ),
    "seed": (["--seed", str(2**63)], "--seed: expected a signed 64-bit integer, got 9223372036854775808"),
    "huge seed": (["--seed", str(-(2**70))], "--seed: expected a signed 64-bit integer, got -118"),
    "gallery number": (["--image", "7"], "--image: expected a gallery number 0..0 or a picture file, got 7"),
    "huge number": (["--image", "9" * 5000], "--image: expected a gallery number 0..0 or a picture file, got 999"),
    "negative number": (["--image", "-1"], "--image: expected a gallery number 0..0 or a picture file, got -1"),
    "superscript": (["--image", "²"], "--image: expected a gallery number 0..0 or a picture file, got ²"),
    "empty picture": (["--image", ""], "--image: expected a gallery number 0..0 or a picture file, got an empty text"),
    "missing picture": (["--image", "no.png"], "or a picture file, got no.png, which does not exist"),
    "folder as picture": (["--image", "."], "or a picture file, got the folder ."),
    "half a picture": (["--image", "HALF"], "--image: expected an undamaged, readable picture, got half.png: "),
    "not a picture": (["--image", "TEXT"], "or a picture file, got text.txt, which is no picture"),
    "nan control": (["--controls", "NAN"], "finite numbers of shape [frames, 19, 3], got nan.npy with nan or inf"),
    "control shape": (
        ["--controls", "FLAT"],
        "finite numbers of shape [frames, 19, 3], got flat.npy with shape [4, 3]",
    ),
    "control joints": (["--controls", "FEW"], "--controls: expected shape [frames, 19, 3], got shape [8, 5, 3]"),
    "control file": (["--controls", "TEXT"], "--controls: expected a .npy or .json file"),
    "pixels": (
        ["--controls", "PIXELS"],
        "--controls: expected x and y as fractions of width and height, mostly in 0..1",
    ),
    "pixels late": (
        ["--controls", "LATE"],
        "--controls, from video frame 4 on: expected x and y as fractions of width and height, mostly in 0..1",
    ),
    "no numbers": (
        ["--controls", "EMPTY"],
        "[frames, 19, 3], got empty.npy, which is not written by numpy.save",
    ),
    "two sources": (["--controls", "NAN", "--motion", "walk"], "either --motion or --controls"),
    "suffix": (["--out", "x.avi"], "--out: expected a name ending in .mp4 or .gif"),
    "folder": (["--out", "/no/such/place/x.gif"], "--out: expected a folder that exists, got /no/such/place"),
    "sheet's ending": (
        ["--sheet", "x.txt"],
        "--sheet: expected a name ending in .png, .jpg, .jpeg or .webp, got x.txt",
    ),
    "sheet's folder": (
        ["--sheet", "/no/such/place/x.png"],
        "--sheet: expected a folder that exists, got /no/such/place, which does not exist",
    ),
    "model": (["--model", "nothing"], "--model: expected a bundled model"),
    "no model": (
        ["--model", "text.txt"],
        "text.txt: expected a model of this package, as train's stage export writes it, got text beginning",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(
    model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((64, 64), 50).save("whole.png")
    Path("half.png").write_bytes(Path("whole.png").read_bytes()[:1000])
    Path("text.txt").write_text("words")
    np.save("nan.npy", np.full((8, 19, 3), np.nan, np.float32))
    np.save("flat.npy", np.zeros((4, 3), np.float32))
    np.save("few.npy", np.zeros((8, 5, 3), np.float32))
    np.save("pixels.npy", np.full((8, 19, 3), 300, np.float32))
    np.save("late.npy", np.concatenate([np.full((4, 19, 3), 0.5), np.full((3, 19, 3), 300)]).astype(np.float32))
    Path("empty.npy").touch()
    files = {
        "PIXELS": "pixels.npy",
        "EMPTY": "empty.npy",
        "LATE": "late.npy",
        "HALF": "half.png",
        "TEXT": "text.txt",
        "NAN": "nan.npy",
        "FLAT": "flat.npy",
        "FEW": "few.npy",
    }
    before = sorted(tmp_path.rglob("*"))
    arguments, message = BAD[name]
    assert generate(model, tmp_path / "x.gif", *(files.get(a, a) for a in arguments)) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("aapt-fast generate: ") and message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_no_model_is_not_blamed_on_the_picture(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0")
    assert generate(tmp_path / "passwd", tmp_path / "x.gif") == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "passwd") in said and "--image" not in said


def test_poses_are_checked_before_the_first_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generating, "StreamSession", None)
    np.save(tmp_path / "few.npy", np.zeros((8, 5, 3), np.float32))
    assert generate(model, tmp_path / "x.gif", "--controls", str(tmp_path / "few.npy")) == 2
    assert "expected shape [frames, 19, 3]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--sheet", "x.txt"], ["--out", "/no/such/place/x.gif"]])
def test_what_cannot_be_written_is_known_before_the_model_is_read(
    model: Path, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: object, **options: object) -> None:
        raise AssertionError("no work yet")

    monkeypatch.setattr(StreamModel, "from_pretrained", read)
    assert generate(model, tmp_path / "x.gif", *arguments) == 2


@pytest.mark.parametrize(
    ("load", "why"),
    [(0.1, "this cpu is too slow for nano, or has other work"), (99.0, "other processes compete for the ")],
)
def test_a_stream_behind_real_time_says_why(
    load: float,
    why: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(generating, "REAL_TIME", 1e9)
    assert generate(model, tmp_path / "x.gif") == 0
    assert why in capsys.readouterr().err
    assert generate(model, tmp_path / "quiet.gif", "--quiet") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(generating, "REAL_TIME", 0.0)
    assert generate(model, tmp_path / "fast.gif") == 0
    assert "real time" not in capsys.readouterr().err


def test_a_stream_in_a_dtype_that_the_cpu_emulates_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generating, "REAL_TIME", 1e9)
    monkeypatch.setattr(generating, "fast_dtype", lambda device: torch.float32)
    assert generate(model, tmp_path / "x.gif", "--dtype", "bfloat16") == 0
    assert "this CPU has no instructions for bfloat16 and emulates it" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_any_seed_of_64_bits(model: Path, tmp_path: Path, seed: int) -> None:
    assert generate(model, tmp_path / "x.gif", "--seed", str(seed)) == 0


@pytest.fixture
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor that measures few steps: test_doctor.py is about what it measures."""
    monkeypatch.setattr(doctor, "WARM_UP", 0)
    monkeypatch.setattr(doctor, "TIMED", 1)


@pytest.mark.usefixtures("quick_doctor")
def test_doctor_knows_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"build", "torch", "gpu", "ops", "models"} <= set(report)
    ops = [op.removeprefix("aapt::").split(".")[0] for op in torch._C._dispatch_get_all_op_names() if "aapt::" in op]
    assert set(ops) == set(report["ops"])
    assert main(["doctor"]) == 0
    assert "paged_attention" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_doctor")
def test_doctor_says_which_kernels_are_on_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert tuple(kernels) == tuple(KERNELS) and not any(facts["on"] for facts in kernels.values())
    if not extension().build_info()["cuda"]:
        assert {facts["why"] for facts in kernels.values()} == {"the compiled module was built without CUDA"}
    elif not torch.cuda.is_available():
        assert {facts["why"] for facts in kernels.values()} == {"no GPU here"}


@pytest.fixture
def one_kernel() -> ModuleType:
    """A compiled module with a kernel for `philox_normal`, whose noise is all zeros."""
    module = ModuleType("made_up")
    module.build_info = lambda: {"cuda": False, "emulated": True}  # type: ignore[attr-defined]
    module.philox_normal_portable = lambda seed, step, out, stream: ctypes.memset(  # type: ignore[attr-defined]
        out[0], 0, 4 * math.prod(out[2])
    )
    return module


@pytest.mark.usefixtures("quick_doctor")
@pytest.mark.parametrize("names", ["all", "philox_normal/portable"])
def test_generate_and_doctor_tell_the_same_truth(
    names: str, one_kernel: ModuleType, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with use_kernels(names, extension=one_kernel):
        assert generate(model, tmp_path / "x.gif") == 0
        ran = json.loads(capsys.readouterr().out.splitlines()[-1])["what_ran"]
        assert main(["doctor", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    assert ran["philox_normal"] == "philox_normal/portable" and ran["kv_write"] == "torch composition"
    if not torch.cuda.is_available():
        assert ran == {op: told["ops"][op] for op in ran}
        assert told["kernels"]["philox_normal/portable"] == {"on": True, "why": f"chosen by {names}"}
        assert told["kernels"]["kv_write/portable"]["why"] == "the compiled module does not have it"


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("auto", "off: no GPU has verified it; AAPT_KERNELS=all runs it all the same"),
        ("all", "on: chosen by all"),
        ("none", "off: kernels are switched off"),
    ],
)
def test_doctor_explains_a_kernel_in_a_line(names: str, line: str, one_kernel: ModuleType) -> None:
    with use_kernels(names, extension=one_kernel):
        facts = doctor.examine_kernel(KERNELS["philox_normal/portable"], torch.device("cpu"))
    assert in_one_line(facts) == line


def test_doctor_without_a_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aapt_fast.ops.kernels.extension_or_none", lambda: None)
    facts = doctor.examine_kernel(KERNELS["paged_attention/portable"], torch.device("cpu"))
    assert in_one_line(facts) == "off: the compiled module is missing"
