# SPDX-License-Identifier: Apache-2.0
"""How well person models follow their controls, against the exact truth.

    aapt-fast evaluate mini-person --out runs/evaluation
    aapt-fast evaluate --row "one step=mini-person:1" --row "four steps=mini-person:4" --out runs/comparison

Drift curves, distance of the joints, Frechet distance, dynamic degree, mirror test and latency. Every number of a model
comes with baselines: repeating the first frame (no model at all), the codec on the truth (the best that the latent
space allows) and, where it says something, the true frames. In company, where one truth is not the only one, also: is
the video one of the possible futures or their average (`training/several_futures.py`)?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from aapt_fast.errors import require
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import VideoVAE
from aapt_fast.training.data import ClipSetConfig, film, to_float
from aapt_fast.training.metrics import frame_change, psnr, sharpness, ssim
from aapt_fast.training.pose_network import PoseReader, joint_distance
from aapt_fast.training.report import (
    BASELINES,
    CODEC,
    STILL,
    TRUTH,
    Measurements,
    Report,
    make_report,
    mirrored,
    write_report,
)
from aapt_fast.training.rollout import decode_as_stream, generate_video
from aapt_fast.training.several_futures import measure_futures
from aapt_fast.training.sheet import save_sheet
from aapt_fast.training.step_latency import step_latency
from aapt_fast.worlds.company import Company
from aapt_fast.worlds.skeleton import draw_skeleton, mirror

GALLERY, COMPANY_GALLERY = 16, 64  # persons and rooms that the models know
HELD_OUT = ClipSetConfig("held-out", clips=16, frames=361, identities=GALLERY, seed=4)
HELD_OUT_SETS = {
    "gallery": HELD_OUT,
    "strangers": ClipSetConfig("held-out-unseen", clips=16, frames=121, seed=9),
    "company": dataclasses.replace(HELD_OUT, name="company-held-out", identities=COMPANY_GALLERY, company=Company()),
}
MIRROR_FROM, MIRROR_TO = 12, 120  # the video frames at which the mirror test looks
SHEET_FRAMES = (0, 4, 12, 24, 40, 60, 80, 120, 160, 200, 240, 300, 360)


@dataclass(frozen=True)
class Row:
    """What is evaluated under which name: a model with `nfe` evaluations per step."""

    name: str
    model: StreamModel
    nfe: int = 1


@dataclass(frozen=True)
class Truth:
    """One held-out clip: video [3, T, H, W] in -1..1 and points [T, 19, 3], and the same person moving mirrored.

    The mirrored ones end after MIRROR_TO video frames.
    """

    video: Tensor
    points: Tensor
    mirrored_video: Tensor
    mirrored_points: Tensor


def make_truth(config: ClipSetConfig, clip: int) -> Truth:
    """Render held-out clip number `clip` and its mirrored motion in the same, unmirrored room."""
    angles = config.motion(clip)
    video, points = film(config, clip, angles)
    turned = torch.cat([angles[:1], mirror(angles[1 : 1 + MIRROR_TO])])
    mirrored_video, mirrored_points = film(config, clip, turned)
    return Truth(to_float(video), points, to_float(mirrored_video), mirrored_points)


@torch.inference_mode()
def evaluate_person(
    rows: Sequence[Row], pose: PoseReader, out: Path | None = None, config: ClipSetConfig = HELD_OUT, group: int = 4
) -> Report:
    """Measure all `rows` on the same held-out clips, which are rendered once, `group` clips at a time.

    `pose` reads the joints, at the size of the clips. Writes the report's files and a contact sheet into `out`.
    Raises ValueError for a model that is not driven by poses of this world or has another size, for names that are
    not distinct, and for clips that are too short for the mirror test.
    """
    _check(rows, pose, config)
    codecs = _distinct_codecs(rows)
    measured = Measurements(nfe={row.name: row.nfe for row in rows})
    sheet: list[Tensor] = []
    for start in tqdm(range(0, config.clips, group), desc="evaluate"):
        clips = range(start, min(start + group, config.clips))
        truths = [make_truth(config, clip) for clip in clips]
        seeds = torch.tensor([1000 + clip for clip in clips])
        truth, points, mirrored_truth, mirrored_points = (
            torch.stack([getattr(each, name) for each in truths])
            for name in ("video", "points", "mirrored_video", "mirrored_points")
        )
        if start == 0:
            for row in rows:
                measured.latency[row.name] = step_latency(row.model, truth[0, :, 0], points[0], row.nfe)
        videos, mirrored_videos = [], []
        for row in rows:
            videos.append(generate_video(row.model, truth[:, :, :1], points, seeds, row.nfe))
            _measure(measured, pose, row.name, videos[-1], truth, points)
            mirrored_videos.append(generate_video(row.model, truth[:, :, :1], mirrored_points, seeds, row.nfe))
            joints, _ = pose.see(mirrored_videos[-1])
            measured.add_curve(mirrored(row.name), "joints", joint_distance(joints, mirrored_points, config.size))
            measured.add_followed(row.name, _right_side(mirrored_videos[-1], mirrored_truth, truth))
        for name, vae in codecs.items():
            _measure(measured, pose, name, _codec(vae, truth), truth, points)
        _measure(measured, pose, STILL, truth[:, :, :1].expand_as(truth), truth, points)
        if config.company is not None:
            measure_futures(measured, {row.name: (row.model, row.nfe) for row in rows}, config, clips)
        measured.add_curve(TRUTH, "change", frame_change(truth))
        _see(measured, pose, TRUTH, truth, points)
        _see(measured, pose, mirrored(TRUTH), mirrored_truth, mirrored_points)
        if start == 0:
            sheet = _sheet_rows(points, truth, videos)
            sheet += _sheet_rows(mirrored_points, mirrored_truth, mirrored_videos, clips=2)
    report = make_report(measured, _describe(pose))
    if out is not None:
        write_report(out, report, measured)
        save_sheet(out / "drift.png", sheet)
    return report


def _check(rows: Sequence[Row], pose: PoseReader, config: ClipSetConfig) -> None:
    names = [row.name for row in rows]
    reserved = [each for name in (*names, *BASELINES) for each in (name, mirrored(name), f"{CODEC} of {name}")]
    require(bool(rows), "rows", "at least one", "none")
    distinct = len(set(reserved)) == len(reserved) and all(names)
    require(distinct, "rows", f"distinct names other than {', '.join(BASELINES)}", ", ".join(names))
    for row in rows:
        control = row.model.control
        require(control is not None and control.kind == "pose", "model", "a model with pose control", control)
        size = (config.size, config.size)
        require(row.model.video_size == size, "model", f"video of {size} pixels", row.model.video_size)
        require(row.nfe >= 1, "nfe", "at least 1 evaluation per step", row.nfe)
    require(pose.config.size == config.size, "pose", f"a network for {config.size} pixels", pose.config.size)
    enough = config.frames > MIRROR_FROM
    require(enough, "frames", f"more than {MIRROR_FROM} video frames, for the mirror test", config.frames)


def _measure(measured: Measurements, pose: PoseReader, name: str, video: Tensor, truth: Tensor, points: Tensor) -> None:
    for metric in (psnr, ssim, sharpness):
        measured.add_curve(name, metric.__name__, metric(video, truth))
    measured.add_curve(name, "change", frame_change(video))
    _see(measured, pose, name, video, points)


def _see(measured: Measurements, pose: PoseReader, name: str, video: Tensor, points: Tensor) -> None:
    """What the pose network makes of the video, next to the joints that were asked for."""
    joints, features = pose.see(video)
    measured.add_curve(name, "joints", joint_distance(joints, points, video.shape[-1]))
    measured.add_features(name, features)


def _describe(pose: PoseReader) -> str:
    config = pose.config
    return (
        f"The network has {pose.parameters} weights and errs by {pose.error:.2f} pixels of {config.size} on "
        f"{config.held_out * config.frames} true frames of {config.held_out} strangers that it was not trained on."
    )


def _distinct_codecs(rows: Sequence[Row]) -> dict[str, VideoVAE]:
    """The codecs of the rows by name, each once: `codec` if there is one, else `codec of` the first row with it."""
    found: list[Row] = []
    for row in rows:
        if not any(_same_weights(row.model.vae, other.model.vae) for other in found):
            found.append(row)
    return {CODEC if len(found) == 1 else f"{CODEC} of {row.name}": row.model.vae for row in found}


def _same_weights(a: VideoVAE, b: VideoVAE) -> bool:
    ours, theirs = list(a.parameters()), list(b.parameters())
    return len(ours) == len(theirs) and all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def _codec(vae: VideoVAE, truth: Tensor) -> Tensor:
    return torch.cat([decode_as_stream(vae, vae.encode(video)) for video in truth.split(1)])


def _right_side(video: Tensor, mirrored_truth: Tensor, truth: Tensor) -> Tensor:
    """Per clip [B]: is the video, where the two truths differ, closer to the mirrored motion that was asked for?"""
    span = slice(MIRROR_FROM, 1 + MIRROR_TO)
    video, mirrored_truth, truth = (each[:, :, span] for each in (video, mirrored_truth, truth))
    differs = ((mirrored_truth - truth).abs().amax(1, keepdim=True) > 0.2).float()
    asked = ((video - mirrored_truth).square() * differs).sum((1, 2, 3, 4))
    other = ((video - truth).square() * differs).sum((1, 2, 3, 4))
    return asked < other


def _sheet_rows(points: Tensor, truth: Tensor, videos: Sequence[Tensor], clips: int = 4) -> list[Tensor]:
    """Skeleton, truth and a generated video per row at growing distance from the start, for some clips."""
    picks = torch.tensor([frame for frame in SHEET_FRAMES if frame < truth.shape[2]])
    sheet = []
    for clip in range(min(clips, len(truth))):
        sheet.append(draw_skeleton(points[clip, picks], truth.shape[-1]) * 2 - 1)
        sheet += [video[clip][:, picks].transpose(0, 1) for video in (truth, *videos)]
    return sheet
