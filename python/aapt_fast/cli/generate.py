# SPDX-License-Identifier: Apache-2.0
"""Stream a video from a first image and a motion, one latent frame at a time."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from aapt_fast.cli.contact_sheet import check_sheet_target, write_sheet
from aapt_fast.cli.device import usable_device
from aapt_fast.cli.first_picture import Start, fit_picture, read_first_picture
from aapt_fast.cli.motion_script import LENGTH, MEDLEY, NAMES, Part, ScriptPlayer, read_script, script_frames
from aapt_fast.cli.pose_file import read_poses
from aapt_fast.cli.video_writer import VideoWriter, check_video_target
from aapt_fast.errors import require
from aapt_fast.models.checkpoint import load_model
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import implementations
from aapt_fast.streaming.session import StreamSession
from aapt_fast.training.metrics import psnr
from aapt_fast.worlds.motions import FPS, random_motion
from aapt_fast.worlds.person import make_identity, render
from aapt_fast.worlds.skeleton import Camera, draw_skeleton, forward_kinematics

FRAMES = 240  # where neither --frames nor a script says how many
FIRST_STEP = 4  # video frames in which the person stays as in the picture, so that the model takes all of it over

STARTED = time.perf_counter()  # after the imports, which take about a second more
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini-person", help="a bundled model or a file (default: mini-person)")
    parser.add_argument(
        "--image",
        default="0",
        help="number in the model's gallery, or a picture file; another size is cropped to the middle and resized",
    )
    parser.add_argument(
        "--motion",
        help=f"{NAMES} | {MEDLEY} (the default), or a script like walk:48,wave:72 (video frames each, {LENGTH} where "
        "none are given); the last motion goes on if --frames asks for more",
    )
    parser.add_argument(
        "--controls",
        type=Path,
        help="instead of --motion: .npy or .json with a float array [frames, joints, 3]: x and y as fractions 0..1 of "
        "width and height, then the depth in metres (0 at the stage's middle, more is farther away); joints in the "
        "order of aapt_fast.worlds.skeleton.JOINTS. The first frame should be near the pose of the picture; the last "
        "is held if --frames asks for more",
    )
    parser.add_argument(
        "--frames",
        type=int,
        help="video frames to make, rounded up to whole steps of 4 (default: the sum of a script in which every motion "
        f"has a length, otherwise {FRAMES})",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nfe", type=int, default=1, help="network evaluations per step")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu | cuda | cuda:1 ... (default: a GPU where there is one)",
    )
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="auto: bfloat16 where it is fast")
    parser.add_argument("--out", type=Path, required=True, help="x.mp4, x.gif or a folder")
    parser.add_argument("--scale", type=int, default=4, help="enlarge what is written by this factor")
    parser.add_argument(
        "--sheet", type=Path, help="picture (.png, .jpg, .webp): skeleton, truth where known, and video"
    )


def run(arguments: argparse.Namespace) -> None:
    both = arguments.motion is not None and arguments.controls is not None
    require(not both, "--controls", "either --motion or --controls", "both")
    script = read_script(MEDLEY if arguments.motion is None else arguments.motion)
    frames = (script_frames(script) or FRAMES) if arguments.frames is None else arguments.frames
    require(frames >= 1, "--frames", "at least 1", frames)
    if arguments.sheet:
        check_sheet_target(arguments.sheet)
    check_video_target(arguments.out, arguments.scale)
    device = usable_device(arguments.device)
    if arguments.dtype == "auto":
        arguments.dtype = _fast_dtype(device)
    start = read_first_picture(arguments.image, arguments.model)
    poses = None if arguments.controls is None else read_poses(arguments.controls)
    model = load_model(arguments.model, device=device, dtype=DTYPES[arguments.dtype])
    if poses is not None:
        _check_joints(poses, model)
    image = start.image if start.pose is not None else fit_picture(start.image, model.video_size)
    steps = -(-frames // 4)
    angles = None if poses is not None else _angles(script, 4 * steps, arguments.seed, start)
    points = _points(angles) if poses is None else _held(poses, 4 * steps)

    first_frame_s, streaming_s, pictures = 0.0, 0.0, []
    image_control = None if start.pose is None else _points(start.pose[None])[0]
    with (
        StreamSession(model, image, image_control=image_control, seed=arguments.seed, nfe=arguments.nfe) as session,
        VideoWriter(arguments.out, fps=int(FPS), scale=arguments.scale) as writer,
    ):
        for control in tqdm(points.split(4), desc="stream", unit="step"):
            begun = time.perf_counter()
            frames = session.step(control).cpu()
            streaming_s += time.perf_counter() - begun
            first_frame_s = first_frame_s or time.perf_counter() - STARTED
            writer.write(frames.numpy())
            pictures.append(frames)
        step_ms = session.latency.step_ms
    video = torch.cat(pictures)
    fps = len(video) / streaming_s
    report = _report(arguments, model.name, len(video), fps, step_ms, first_frame_s)
    if arguments.sheet:
        report |= _write_sheet(arguments.sheet, video, points, angles, start)
    print(json.dumps(report))


def _fast_dtype(device: torch.device) -> str:
    """bfloat16 where the device computes in it: GPUs, and CPUs with AVX-512 bf16 instructions."""
    return "bfloat16" if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() else "float32"


def _report(
    arguments: argparse.Namespace,
    model: str,
    frames: int,
    fps: float,
    step_ms: dict[str, float | None],
    first_frame_s: float,
) -> dict[str, object]:
    device = torch.device(arguments.device).type
    return {
        "model": model,
        "frames": frames,
        "fps": round(fps, 1),
        "first_frame_s": round(first_frame_s, 3),
        "step_ms": {name: round(value or 0.0, 2) for name, value in step_ms.items()},
        "nfe": arguments.nfe,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "what_ran": {name: by_device[device] for name, by_device in implementations().items()},
        "out": str(arguments.out),
    }


def _angles(script: tuple[Part, ...], frames: int, seed: int, start: Start) -> Tensor:
    """Pose angles [frames, 17] of a named motion, a medley or a script."""
    if script[0].name == MEDLEY:
        return random_motion(frames, seed, start.pose, hold=FIRST_STEP)
    return ScriptPlayer(script, seed, start.pose, hold=FIRST_STEP).next(frames)


def _points(angles: Tensor) -> Tensor:
    """Image points [n, 19, 3] of pose angles [n, 17]."""
    return Camera().project(forward_kinematics(angles))


def _held(poses: Tensor, frames: int) -> Tensor:
    """The first `frames` of `poses`, the last of which is held if there are fewer."""
    points = poses[:frames]
    return torch.cat([points, points[-1:].expand(frames - len(points), -1, -1)])


def _check_joints(poses: Tensor, model: StreamModel) -> None:
    """Raise ValueError unless the model takes such poses [frames, joints, 3]."""
    control = model.control
    takes_poses = control is not None and control.kind == "pose"
    require(takes_poses, "--controls", "left out: no poses drive this model", f"{len(poses)} of them")
    assert control is not None
    expected = f"shape [frames, {control.joints}, 3]"
    require(poses.shape[1] == control.joints, "--controls", expected, list(poses.shape))


def _write_sheet(path: Path, video: Tensor, points: Tensor, angles: Tensor | None, start: Start) -> dict[str, object]:
    """Save the contact sheet; with a known person, also the true video and how close the generated one comes."""
    size, picks = video.shape[1], torch.linspace(0, len(video) - 1, 12).long()
    generated = video.permute(3, 0, 1, 2).float() / 127.5 - 1
    rows = [draw_skeleton(points[picks], size) * 2 - 1]
    extra: dict[str, object] = {"sheet": str(path)}
    if start.identity is not None and angles is not None:
        truth = render(forward_kinematics(angles), make_identity(start.identity), size).transpose(0, 1) * 2 - 1
        rows.append(truth[:, picks].transpose(0, 1))
        extra["psnr_to_truth"] = round(float(psnr(generated, truth).mean()), 2)
    rows.append(generated[:, picks].transpose(0, 1))
    write_sheet(path, rows)
    return extra
