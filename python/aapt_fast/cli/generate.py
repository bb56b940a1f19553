# SPDX-License-Identifier: Apache-2.0
"""Stream a video from a first image and a motion, one latent frame at a time."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from aapt_fast.cli.busy import competition, processes
from aapt_fast.cli.checks import video_frames
from aapt_fast.cli.choices import FRAMES_PER_STEP
from aapt_fast.cli.contact_sheet import ContactSheet
from aapt_fast.cli.device import usable_device
from aapt_fast.cli.first_picture import fit_and_say, read_first_picture, world_of
from aapt_fast.cli.pose_file import read_poses
from aapt_fast.cli.signals import HeldSignals
from aapt_fast.distributed import launch
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.distributed.shared_session import SharedSession
from aapt_fast.media.video_target import require_room
from aapt_fast.media.video_writer import VideoWriter
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.models.files.placement import fast_dtype
from aapt_fast.models.likeness import gallery_errors, number_in_gallery, unlike_gallery
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.ops import observe_ops
from aapt_fast.progress import progress, say, without_messages
from aapt_fast.streaming.session import StreamSession
from aapt_fast.worlds.script import read_script
from aapt_fast.worlds.track_player import TrackPlayer
from aapt_fast.worlds.world import FPS, MEDLEY, FirstFrame, Player

NOTHING_KEPT = "nothing was kept: no video frame was finished"
UNKNOWN_POSE = (
    "--image: the pose in a picture from elsewhere is unknown, so the first second may show a second, faint "
    "body; a gallery number avoids that, or --controls that begin in the pose of the picture"
)
REAL_TIME = FPS  # video frames per second

STARTED = time.perf_counter()  # after the imports, which take about a second more
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(arguments: argparse.Namespace) -> None:
    if arguments.gpus > 1 and not launch.started_by_torchrun():
        launch.run(arguments.gpus, ["-m", "aapt_fast", *arguments.argv])
        return
    report: dict[str, object] | None = None
    try:
        with HeldSignals() as signals:
            try:
                with signals.let_in():
                    stream = _open_stream(arguments)
                    if stream.follower is not None:
                        stream.follower.follow()
                        launch.end()
                        return
            except KeyboardInterrupt:
                say(NOTHING_KEPT)
                raise
            report = _write(stream, arguments, signals)
        launch.end()
        print(json.dumps(report))
    except KeyboardInterrupt:
        if report is not None:  # the signal came after the last step
            say(f"all {report['frames']} video frames are in {report['out']}")
        raise


@dataclass
class _Stream:
    """All that a video needs, checked and loaded."""

    model: StreamModel
    session: StreamSession
    player: Player | TrackPlayer
    steps: int
    sheet: ContactSheet | None

    @property
    def follower(self) -> SharedSession | None:
        """The session of a rank that does what rank 0 does; None in rank 0, and without ranks."""
        session = self.session
        return session if isinstance(session, SharedSession) and session.transport.rank > 0 else None


class _Shown:
    """A player whose controls and truth are kept until the video frames that they belong to are there."""

    def __init__(self, player: Player | TrackPlayer, size: int, keeps: bool) -> None:
        self._player, self._size, self._keeps = player, size, keeps
        self.shown: deque[tuple[Tensor, Tensor | None]] = deque()  # per step, the oldest first

    def next(self, frames: int) -> Tensor:
        """Controls [frames, J, 3] of the next video frames."""
        controls = self._player.next(frames)
        if self._keeps:
            self.shown.append((controls, self._player.truth(self._size)))
        return controls


def _open_stream(arguments: argparse.Namespace) -> _Stream:
    """Check what only torch, the model and its world can tell; then load the model and open the session."""
    world = world_of(arguments.model)
    script = MEDLEY if arguments.motion is None else arguments.motion
    device, transport = usable_device(arguments.device), None
    if arguments.gpus > 1:
        transport, device = launch.start(device.type)
        arguments.quiet = arguments.quiet or transport.rank > 0
    dtype = fast_dtype(device) if arguments.dtype == "auto" else DTYPES[arguments.dtype]
    poses = None if arguments.controls is None else torch.from_numpy(read_poses(arguments.controls))
    frames = video_frames(arguments.frames, read_script(script, world.actions, "--motion"), poses)
    if transport is None:
        model = StreamModel.from_pretrained(arguments.model, device=device, dtype=dtype)
    else:
        model = shard(arguments.model, transport, arguments.parallel, device=device, dtype=dtype)
    with without_messages(arguments.quiet):
        start = read_first_picture(arguments.image, arguments.model)
        if start.pose is None:
            start = FirstFrame(fit_and_say(start.image, model.video_size))
            _advise(start, model, arguments)
    steps = -(-frames // FRAMES_PER_STEP)
    require_room(arguments.out, FRAMES_PER_STEP * steps, model.video_size, arguments.scale)
    player: Player | TrackPlayer = world.player(start, script, arguments.seed)
    if poses is not None:
        if odd := world.odd_controls(poses):
            if not arguments.quiet:
                say(f"--controls: {odd}")
            warnings.filterwarnings("ignore", message="control: ")  # the session's, about the same poses
        player = TrackPlayer(poses)
    sheet = None if arguments.sheet is None else ContactSheet(arguments.sheet, world)
    sampler = EulerSampler(arguments.nfe)
    if transport is None:
        session = StreamSession(model, start, seed=arguments.seed, sampler=sampler)
    else:
        session = SharedSession(model, start, seed=arguments.seed, sampler=sampler, transport=transport)
    return _Stream(model, session, player, steps, sheet)


def _write(stream: _Stream, arguments: argparse.Namespace, signals: HeldSignals) -> dict[str, object]:
    """Stream the video into its file; returns the report. After a signal or an error the frames so far are kept."""
    writer = VideoWriter(arguments.out, fps=int(FPS), scale=arguments.scale)
    first_frame_s, steps_s = 0.0, 0.0
    begun = time.perf_counter()
    try:
        with (
            stream.session as session,
            writer,
            observe_ops() as calls,
            progress(stream.steps, "stream", "step", quiet=arguments.quiet) as bar,
        ):
            source = _Shown(stream.player, stream.model.video_size[0], stream.sheet is not None)
            videos = session.frames(
                source, stream.steps, ahead=stream.model.device.type == "cpu" and arguments.gpus == 1
            )
            for _ in range(stream.steps):
                with signals.let_in():
                    step_begun = time.perf_counter()
                    video = next(videos).cpu()
                steps_s += time.perf_counter() - step_begun
                first_frame_s = first_frame_s or time.perf_counter() - STARTED
                writer.write(video)
                if stream.sheet is not None:
                    stream.sheet.add(video, *source.shown.popleft())
                bar.update()
            step_ms = session.latency.step_ms
    except BaseException:
        _say_kept(writer, stream.sheet)
        raise
    fps = writer.frames / (time.perf_counter() - begun)
    step_fps = writer.frames / steps_s
    if round(fps) < REAL_TIME and not arguments.quiet:
        say(f"{fps:.1f} video frames per second, real time is {REAL_TIME:.0f}: {_why_slow(stream.model, step_fps)}")
    if writer.kept != writer.path:
        say(f"--out: another program has made {writer.path} meanwhile; the video is in {writer.kept}")
    report = _report(arguments, stream.model, writer, (fps, step_fps), step_ms, first_frame_s, calls.what_ran())
    try:
        return report if stream.sheet is None else report | stream.sheet.write()
    except OSError:
        _say_kept(writer, None)
        raise


def _say_kept(writer: VideoWriter, sheet: ContactSheet | None) -> None:
    """Say on stderr what there is of a video that has stopped; writes its sheet as well."""
    if writer.kept is None:
        say(NOTHING_KEPT)
        return
    say(f"{writer.frames} video frames are in {writer.kept}")
    if sheet is not None:
        try:
            say(f"the sheet of them is {sheet.write_unfinished()}")
        except OSError as error:  # a full disk: the first error is the one to report
            say(f"no sheet was written: {error}")


def _advise(first: FirstFrame, model: StreamModel, arguments: argparse.Namespace) -> None:
    """Say on stderr what a user's own picture does to this model and its first frames."""
    gallery = load_gallery(arguments.model)
    number = number_in_gallery(first.image, gallery)
    if number is not None:
        say(f"--image: a copy of number {number} in the gallery; with --image {number} the motion begins in its pose")
        return
    if odd := unlike_gallery(first.image, model, gallery_errors(model, gallery)):
        say(f"--image: {odd}")
    if arguments.controls is None:
        say(UNKNOWN_POSE)
    if arguments.model == "mini-person":
        say("--image: mini-person keeps the looks of its 16 persons only; for others there is --model mini-anyone")


def _report(
    arguments: argparse.Namespace,
    model: StreamModel,
    writer: VideoWriter,
    fps: tuple[float, float],
    step_ms: dict[str, float | None],
    first_frame_s: float,
    what_ran: dict[str, str],
) -> dict[str, object]:
    """Make the report; `fps` has the video frames per second of the whole command, and those of the steps alone."""
    return {
        "model": model.name,
        "frames": writer.frames,
        "fps": round(fps[0], 1),
        "step_fps": round(fps[1], 1),
        "first_frame_s": round(first_frame_s, 3),
        "step_ms": {name: round(value or 0.0, 2) for name, value in step_ms.items()},
        "nfe": arguments.nfe,
        "device": str(model.device),
        "dtype": str(model.generator.weight.dtype).removeprefix("torch."),
        "what_ran": what_ran,
        "out": str(writer.kept),
    }


def _why_slow(model: StreamModel, step_fps: float) -> str:
    """Name the likely reason why a video is slower than real time; the load is an average, and may not show it yet."""
    if round(step_fps) >= REAL_TIME:
        return f"the steps alone make {step_fps:.1f}, writing the video takes the rest; a smaller --scale is faster"
    if model.device.type == "cpu" and fast_dtype(model.device) is torch.float32 and model.dtype is not torch.float32:
        name = str(model.dtype).removeprefix("torch.")
        return f"this CPU has no instructions for {name} and emulates it; --dtype float32 is faster"
    others = competition(processes()) if model.device.type == "cpu" else None
    return others or f"this {model.device.type} is too slow for {model.name}, or has other work"
