# SPDX-License-Identifier: Apache-2.0
"""Stream a video from a first image and a motion, one latent frame at a time."""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor
from tqdm import trange

from aapt_fast.cli.contact_sheet import ContactSheet, check_sheet_target
from aapt_fast.cli.device import fast_dtype, usable_device
from aapt_fast.cli.first_picture import fit_picture, read_first_picture, world_of
from aapt_fast.cli.motion_script import read_script, script_frames
from aapt_fast.cli.options import GENERATED_FRAMES
from aapt_fast.cli.pose_file import FilePlayer, read_poses
from aapt_fast.cli.video_writer import VideoWriter, check_video_target
from aapt_fast.errors import require
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import observe_ops
from aapt_fast.streaming.session import StreamSession
from aapt_fast.worlds.world import FPS, MEDLEY, FirstFrame

FRAMES_PER_STEP = 4

STARTED = time.perf_counter()  # after the imports, which take about a second more
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(arguments: argparse.Namespace) -> None:
    both = arguments.motion is not None and arguments.controls is not None
    require(not both, "--controls", "either --motion or --controls", "both")
    world = world_of(arguments.model)
    script = read_script(MEDLEY if arguments.motion is None else arguments.motion, world)
    frames = (script_frames(script) or GENERATED_FRAMES) if arguments.frames is None else arguments.frames
    require(frames >= 1, "--frames", "at least 1", frames)
    require(frames < 2**31, "--frames", "less than 2^31", frames)
    require(-(2**63) <= arguments.seed < 2**63, "--seed", "a signed 64-bit integer", arguments.seed)
    require(arguments.nfe >= 1, "--nfe", "at least 1 evaluation per step", arguments.nfe)
    if arguments.sheet:
        check_sheet_target(arguments.sheet)
    check_video_target(arguments.out, arguments.scale)
    device = usable_device(arguments.device)
    dtype = fast_dtype(device) if arguments.dtype == "auto" else DTYPES[arguments.dtype]
    start = read_first_picture(arguments.image, arguments.model)
    poses = None if arguments.controls is None else read_poses(arguments.controls)
    if poses is not None and arguments.frames is None:
        frames = len(poses)
    model = StreamModel.from_pretrained(arguments.model, device=device, dtype=dtype)
    if start.pose is None:
        start = FirstFrame(fit_picture(start.image, model.video_size))
    steps = -(-frames // FRAMES_PER_STEP)
    player = world.play(script, arguments.seed, start)
    if poses is not None:
        _check_joints(poses, model)
        player = FilePlayer(poses, player.first_control)
    sheet = None if arguments.sheet is None else ContactSheet(arguments.sheet, FRAMES_PER_STEP * steps, world)

    first_frame_s, streaming_s = 0.0, 0.0
    sampler = EulerSampler(arguments.nfe)
    session = StreamSession(
        model, start.image, image_control=player.first_control, seed=arguments.seed, sampler=sampler
    )
    with (
        session,
        VideoWriter(arguments.out, fps=int(FPS), scale=arguments.scale) as writer,
        observe_ops() as calls,
    ):
        for _ in trange(steps, desc="stream", unit="step", disable=arguments.quiet):
            controls = player.next(FRAMES_PER_STEP)
            begun = time.perf_counter()
            video = session.step(controls).cpu()
            streaming_s += time.perf_counter() - begun
            first_frame_s = first_frame_s or time.perf_counter() - STARTED
            writer.write(video.numpy())
            if sheet is not None:
                sheet.add(video, controls, player.truth(video.shape[1]))
        step_ms = session.latency.step_ms
    made = FRAMES_PER_STEP * steps
    fps = made / streaming_s
    report = _report(arguments, model.name, device, dtype, made, fps, step_ms, first_frame_s, calls.what_ran())
    if sheet is not None:
        report |= sheet.write()
    print(json.dumps(report))


def _report(
    arguments: argparse.Namespace,
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    frames: int,
    fps: float,
    step_ms: dict[str, float | None],
    first_frame_s: float,
    what_ran: dict[str, str],
) -> dict[str, object]:
    return {
        "model": model,
        "frames": frames,
        "fps": round(fps, 1),
        "first_frame_s": round(first_frame_s, 3),
        "step_ms": {name: round(value or 0.0, 2) for name, value in step_ms.items()},
        "nfe": arguments.nfe,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "what_ran": what_ran,
        "out": str(arguments.out),
    }


def _check_joints(poses: Tensor, model: StreamModel) -> None:
    """Raise ValueError unless the model takes such poses [frames, joints, 3]."""
    control = model.control
    takes_poses = control is not None and control.kind == "pose"
    require(takes_poses, "--controls", "left out: no poses drive this model", f"{len(poses)} poses")
    assert control is not None
    expected = f"shape [frames, {control.joints}, 3]"
    require(poses.shape[1] == control.joints, "--controls", expected, list(poses.shape))
