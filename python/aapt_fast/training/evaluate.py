# SPDX-License-Identifier: Apache-2.0
"""How well a person model follows its controls: drift curves against the exact truth, and the mirror test.

    aapt-fast evaluate mini-person --out runs/evaluation

Every number comes with two baselines: repeating the first frame (no model at all) and the codec on the truth (the best
that the latent space allows).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from aapt_fast.errors import require
from aapt_fast.models.config import ControlConfig
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.controls import clip_controls
from aapt_fast.training.data import ClipSetConfig, film, to_float
from aapt_fast.training.metrics import psnr, sharpness, ssim
from aapt_fast.training.rollout import rollout
from aapt_fast.training.sheet import save_sheet
from aapt_fast.worlds.motions import random_motion
from aapt_fast.worlds.skeleton import draw_skeleton, mirror

HELD_OUT = ClipSetConfig("held-out", clips=32, frames=241, identities=16, seed=4)
MARKS = (4, 12, 40, 120, 240)  # video frames of the drift curve


@dataclass(frozen=True)
class Truth:
    """One held-out clip: video [3, T, H, W] in -1..1 and points [T, 19, 3], and the same person moving mirrored."""

    video: Tensor
    points: Tensor
    mirrored_video: Tensor
    mirrored_points: Tensor


def make_truth(config: ClipSetConfig, clip: int) -> Truth:
    """Render held-out clip number `clip` and its mirrored motion in the same, unmirrored room."""
    angles = random_motion(config.frames, config.motion_seed(clip))
    video, points = film(config, clip, angles)
    mirrored_video, mirrored_points = film(config, clip, torch.cat([angles[:1], mirror(angles[1:])]))
    return Truth(to_float(video), points, to_float(mirrored_video), mirrored_points)


@torch.inference_mode()
def evaluate_person(
    model: StreamModel, out: Path | None = None, config: ClipSetConfig = HELD_OUT, nfe: int = 1, group: int = 8
) -> dict[str, list[dict[str, float | str]]]:
    """Tables `drift` and `mirror` over the held-out clips; writes CSV, Markdown and contact sheets into `out`.

    Raises ValueError for a model that is not driven by poses of this world.
    """
    control = model.generator.config.control
    require(control is not None and control.kind == "pose", "model", "a model with pose control", control)
    assert control is not None
    sums: dict[str, list[Tensor]] = {}
    mirror_hits, rows = [], []
    for start in tqdm(range(0, config.clips, group), desc="evaluate"):
        clips = range(start, min(start + group, config.clips))
        truths = [make_truth(config, clip) for clip in clips]
        seeds = torch.tensor([1000 + clip for clip in clips])
        truth = torch.stack([each.video for each in truths])
        points = torch.stack([each.points for each in truths])
        video = _generate(model, control, truth, points, seeds, nfe)
        for name, candidate in (
            ("model", video),
            ("codec", _codec(model, truth)),
            ("still", truth[:, :, :1].expand_as(truth)),
        ):
            for metric in (psnr, ssim, sharpness):
                sums.setdefault(f"{name} {metric.__name__}", []).append(metric(candidate, truth))
        mirrored_truth = torch.stack([each.mirrored_video for each in truths])
        mirrored_points = torch.stack([each.mirrored_points for each in truths])
        mirrored = _generate(model, control, truth, mirrored_points, seeds, nfe)
        mirror_hits.append(_right_side(mirrored, mirrored_truth, truth))
        if start == 0:
            rows = _sheet_rows(points, truth, video) + _sheet_rows(mirrored_points, mirrored_truth, mirrored)[:6]
    curves = {name: torch.cat(values).mean(0) for name, values in sums.items()}
    report = {"drift": _drift_table(curves, config.frames), "mirror": _mirror_table(torch.cat(mirror_hits))}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_sheet(out / "drift.png", rows)
        _write_curves(out / "drift.csv", curves)
        (out / "report.md").write_text(to_markdown(report))
    return report


def _generate(
    model: StreamModel, control: ControlConfig, truth: Tensor, points: Tensor, seeds: Tensor, nfe: int
) -> Tensor:
    """Videos [B, 3, T, H, W] from the first video frame of `truth` and the poses `points` [B, T, 19, 3]."""
    image = model.vae.encode(truth[:, :, :1])
    controls = clip_controls(points, control, (image.shape[-2], image.shape[-1]))
    frames = rollout(model.generator, image, controls, seeds, nfe)
    return _decode(model, torch.cat([image, frames], dim=2))


def _codec(model: StreamModel, truth: Tensor) -> Tensor:
    return torch.cat([_decode(model, model.vae.encode(video)) for video in truth.split(1)])


def _decode(model: StreamModel, latents: Tensor, chunk: int = 8) -> Tensor:
    """Decode in chunks of frames, as a stream, so that memory stays small."""
    stream = model.vae.stream()
    first, rest = latents[:, :, :1], latents[:, :, 1:]
    return torch.cat([stream.decode(part) for part in (first, *rest.split(chunk, dim=2))], dim=2)


def _right_side(video: Tensor, mirrored_truth: Tensor, truth: Tensor) -> Tensor:
    """Per clip [B]: is the video, where the two truths differ, closer to the mirrored motion that was asked for?"""
    video, mirrored_truth, truth = (each[:, :, 12:] for each in (video, mirrored_truth, truth))
    differs = ((mirrored_truth - truth).abs().amax(1, keepdim=True) > 0.2).float()
    asked = ((video - mirrored_truth).square() * differs).sum((1, 2, 3, 4))
    other = ((video - truth).square() * differs).sum((1, 2, 3, 4))
    return asked < other


def _drift_table(curves: dict[str, Tensor], frames: int) -> list[dict[str, float | str]]:
    marks = [mark for mark in MARKS if mark < frames]
    table: list[dict[str, float | str]] = []
    for name, curve in curves.items():
        row: dict[str, float | str] = {"what": name}
        row |= {f"frame {mark}": round(float(curve[mark]), 3) for mark in marks}
        row["mean"] = round(float(curve[1:].mean()), 3)
        table.append(row)
    return table


def _mirror_table(hits: Tensor) -> list[dict[str, float | str]]:
    return [{"what": "mirrored pose followed", "clips": len(hits), "share": round(float(hits.float().mean()), 3)}]


def _sheet_rows(points: Tensor, truth: Tensor, video: Tensor, clips: int = 4) -> list[Tensor]:
    """Skeleton, truth and generated video frames at growing distance from the start, for some clips."""
    frames = truth.shape[2]
    picks = torch.tensor([0, 4, 12, 24, 40, 60, 80, 120, 160, 200, 240])
    picks = picks[picks < frames]
    rows = []
    for clip in range(min(clips, len(truth))):
        skeleton = draw_skeleton(points[clip, picks], truth.shape[-1]) * 2 - 1
        rows += [skeleton, truth[clip][:, picks].transpose(0, 1), video[clip][:, picks].transpose(0, 1)]
    return rows


def _write_curves(path: Path, curves: dict[str, Tensor]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video frame", *curves])
        for frame, values in enumerate(zip(*curves.values(), strict=True)):
            writer.writerow([frame, *(f"{float(value):.4f}" for value in values)])


def to_markdown(report: dict[str, list[dict[str, float | str]]]) -> str:
    """The tables as Markdown."""
    lines = []
    for title, table in report.items():
        columns = list(table[0])
        lines += [f"### {title}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in table]
        lines.append("")
    return "\n".join(lines)
