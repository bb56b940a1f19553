# SPDX-License-Identifier: Apache-2.0
"""Evaluation: how closely models of a world follow their controls, against the exact truth.

    aapt-fast evaluate mini-person --out runs/evaluation
    aapt-fast evaluate --row "one step=mini-person:1" --row "four steps=mini-person:4" --out runs/comparison

Drift curves, dynamic degree, latency and, where the world has controls, a mirror test; with a `ControlReader` also the
error of the controls and a Frechet distance. Baselines stand beside every number of a model: the first frame repeated
(no model at all), the codec on the truth (the best that the latent space allows) and, where it says something, the true
frames. Where chance has a part there are many truths; training/several_futures.py compares a video with the possible
futures and with their average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.limits import require_memory
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import VideoVAE
from aapt_fast.progress import progress, say
from aapt_fast.streaming.controls import entry_shape
from aapt_fast.training.data import ClipSetConfig, make_clip, stack_clips, to_float
from aapt_fast.training.files import fingerprint, load_whole, save_whole
from aapt_fast.training.metrics import frame_change, psnr, sharpness, ssim
from aapt_fast.training.own_folder import MEASURED
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
from aapt_fast.worlds.world import World

MIRROR_FROM, MIRROR_TO = 12, 120  # the video frames at which the mirror test looks
SHEET_FRAMES = (0, 4, 12, 24, 40, 60, 80, 120, 160, 200, 240, 300, 360)


class ControlReader(Protocol):
    """A network that reads controls off video frames of one size."""

    @property
    def size(self) -> int:
        """Height and width in pixels of the video frames."""

    def read(self, video: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
        """Error [B, T] of video [B, 3, T, size, size] against its controls [B, T, ...], and features [B, T, D]."""

    def notes(self) -> dict[str, str]:
        """Remarks for the report's tables `control`, with the unit of the error, and `frechet`, with the features."""


@dataclass(frozen=True)
class Row:
    """A model with `nfe` evaluations per step, and its name in the report."""

    name: str
    model: StreamModel
    nfe: int = 1


@dataclass(frozen=True)
class Group:
    """Some held-out clips: video float32 [B, 3, T, H, W] in -1..1, controls [B, T, ...], and both mirrored, if any.

    Mirrored clips end after MIRROR_TO video frames.
    """

    video: Tensor
    controls: Tensor
    mirrored: tuple[Tensor, Tensor] | None  # video, controls


def make_group(config: ClipSetConfig, clips: Sequence[int]) -> Group:
    """Render held-out clips, and what the same scenes show under mirrored controls."""
    frames = min(config.frames, 1 + MIRROR_TO)
    found = [config.world.mirrored(config.seed, clip, frames, config.size) for clip in clips]
    mirrored_clips = [each for each in found if each is not None]
    return Group(
        *stack_clips([make_clip(config, clip) for clip in clips]),
        stack_clips(mirrored_clips) if mirrored_clips else None,
    )


@torch.inference_mode()
def evaluate(
    rows: Sequence[Row],
    config: ClipSetConfig,
    reader: ControlReader | None = None,
    out: Path | None = None,
    group: int = 4,
) -> Report:
    """Measure all `rows` on the held-out clips of `config`, which are rendered once, `group` clips at a time.

    Without a `reader` the report has no error of the controls and no Frechet distance. Writes the report's files and a
    contact sheet into `out`; a stopped evaluation resumes there. Raises ValueError for a model that is not driven by
    the controls of this world or has another size, for names that are not distinct, for clips that are too short for
    the mirror test, and for numbers that do not fit into the memory.
    """
    require_measurable(rows, config, group)
    if reader is not None:
        require(reader.size == config.size, "reader", f"a network for {config.size} pixels", reader.size)
    codecs = _distinct_codecs(rows)
    kept = None if out is None else _Kept(out / MEASURED, rows, config, reader, group)
    measured, sheet, done = kept.load() if kept else (Measurements(), [], 0)
    if not done:
        measured.nfe, measured.latency = {row.name: row.nfe for row in rows}, _latencies(rows, config)
    bar = progress(config.clips * len(rows), f"evaluate on {config.name}", "video", done=done * len(rows))
    for start in range(done, config.clips, group):
        clips = range(start, min(start + group, config.clips))
        truth = make_group(config, clips)
        image, seeds = truth.video[:, :, :1], torch.tensor([1000 + clip for clip in clips])
        videos = {}
        for row in rows:
            videos[row.name] = generate_video(row.model, image, truth.controls, seeds, row.nfe)
            bar.update(len(clips))
        baselines = {name: _codec(vae, truth.video) for name, vae in codecs.items()}
        baselines[STILL] = image.expand_as(truth.video)
        for name, video in (videos | baselines).items():
            for metric in (psnr, ssim, sharpness):
                measured.add_curve(name, metric.__name__, metric(video, truth.video))
            measured.add_curve(name, "change", frame_change(video))
            _read(measured, reader, name, video, truth.controls)
        measured.add_curve(TRUTH, "change", frame_change(truth.video))
        _read(measured, reader, TRUTH, truth.video, truth.controls)
        mirrored_videos = _measure_mirrored(measured, reader, rows, truth, seeds)
        if config.world.has_chance:
            measure_futures(measured, {row.name: (row.model, row.nfe) for row in rows}, config, clips)
        if start == 0:
            sheet = _sheet_rows(config.world, truth.controls, [truth.video, *videos.values()], clips=4)
            if truth.mirrored is not None:
                video, controls = truth.mirrored
                sheet += _sheet_rows(config.world, controls, [video, *mirrored_videos], clips=2)
        if kept is not None:
            kept.save(measured, sheet, clips.stop)
    bar.close()
    report = make_report(measured, {} if reader is None else reader.notes())
    if out is not None:
        write_report(out, report, measured)
        save_sheet(out / "drift.png", sheet)
    if kept is not None:
        kept.path.unlink()
    return report


class _Kept:
    """File of the measurements of an evaluation that is not finished, so that a stopped one resumes."""

    def __init__(
        self, path: Path, rows: Sequence[Row], config: ClipSetConfig, reader: ControlReader | None, group: int
    ) -> None:
        names = [(row.name, row.nfe, str(row.model.dtype)) for row in rows]
        card = [config.card(), names, group, reader.notes() if reader else None]
        modules = [module for row in rows for module in (row.model.generator, row.model.vae)]
        self.path, self._card = path, fingerprint(card, *modules)

    def load(self) -> tuple[Measurements, list[Tensor], int]:
        """The measurements so far, the rows [n, 3, H, W] of the sheet, and the number of clips that are measured."""
        content = load_whole(self.path, "the evaluation begins again") if self.path.exists() else {}
        if content.get("card") != self._card:
            return Measurements(), [], 0
        return Measurements(**content["measured"]), content["sheet"], content["done"]

    def save(self, measured: Measurements, sheet: list[Tensor], done: int) -> None:
        """Keep them after `done` clips."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_whole(self.path, {"card": self._card, "measured": vars(measured), "sheet": sheet, "done": done})


def clips_kept(
    rows: Sequence[Row], config: ClipSetConfig, reader: ControlReader | None, out: Path, group: int = 4
) -> int:
    """The number of clips from which on `evaluate`, called with the same arguments, resumes; 0 if it begins anew."""
    return _Kept(out / MEASURED, rows, config, reader, group).load()[2]


def require_measurable(rows: Sequence[Row], config: ClipSetConfig, group: int = 4) -> None:
    """Raise ValueError, before any work, for rows and clips that `evaluate` cannot measure, or not in this memory."""
    names = [row.name for row in rows]
    reserved = [each for name in (*names, *BASELINES) for each in (name, mirrored(name), f"{CODEC} of {name}")]
    require(bool(rows), "rows", "at least one", "none")
    distinct = len(set(reserved)) == len(reserved) and all(names)
    require(distinct, "rows", f"distinct names other than {', '.join(BASELINES)}", ", ".join(names))
    given = tuple(config.world.clip(config.seed, 0, 1, config.size).controls.shape[1:])
    for row in rows:
        size, control = (config.size, config.size), row.model.control
        takes = None if control is None else entry_shape(control, row.model.grid)
        require(takes == given, "model", f"a control of shape {given}, as in world {config.world.name}", takes)
        require(row.model.video_size == size, "model", f"video of {size} pixels", row.model.video_size)
        require(row.nfe >= 1, "nfe", "at least 1 evaluation per step", row.nfe)
    enough = config.frames > MIRROR_FROM
    require(enough, "frames", f"more than {MIRROR_FROM} video frames, for the mirror test", config.frames)
    together = min(group, config.clips)
    require_memory("frames", 12 * together * config.frames * config.size**2 * (len(rows) + 3))  # float32 videos
    require_memory("clips", 20 * config.clips * config.frames * (len(rows) + 3))  # five curves
    for row in rows:
        assert isinstance(row.model.generator, Generator)
        model = row.model.generator.config  # float32 keys and values of one frame take 8 bytes per channel
        require_memory("nfe", 8 * row.nfe * together * model.layers * model.width * model.tokens * (model.window + 1))


def _latencies(rows: Sequence[Row], config: ClipSetConfig) -> dict[str, dict[str, dict[str, float | None]]]:
    """Latency by row; says on stderr how long the steps of the evaluation will take at this speed."""
    clip = config.world.clip(config.seed, 0, min(config.frames, 49), config.size)
    image = to_float(clip.video[:1])[:, 0]
    times = {row.name: step_latency(row.model, image, clip.controls, row.nfe) for row in rows}
    seconds = config.clips * (config.frames // 4) * sum(each["step"]["p50"] or 0 for each in times.values()) / 1000
    say(
        f"evaluate {', '.join(times)} on {config.clips} clips of {config.frames - 1} video frames ({config.name}): the "
        f"steps alone take about {seconds / 60:.1f} min, as just timed"
    )
    return times


def _read(
    measured: Measurements,
    reader: ControlReader | None,
    name: str,
    video: Tensor,
    controls: Tensor,
    keep_features: bool = True,
) -> None:
    """Note the errors of the controls in a video, and its features."""
    if reader is not None:
        error, features = reader.read(video, controls)
        measured.add_curve(name, "control", error)
        if keep_features:
            measured.add_features(name, features)


def _measure_mirrored(
    measured: Measurements, reader: ControlReader | None, rows: Sequence[Row], truth: Group, seeds: Tensor
) -> list[Tensor]:
    """Videos [B, 3, T', H, W] of all rows under mirrored controls, measured; none if nothing is controlled."""
    if truth.mirrored is None:
        return []
    asked, controls = truth.mirrored
    videos = [generate_video(row.model, asked[:, :, :1], controls, seeds, row.nfe) for row in rows]
    for row, video in zip(rows, videos, strict=True):
        _read(measured, reader, mirrored(row.name), video, controls, keep_features=False)
        measured.add_followed(row.name, _right_side(video, asked, truth.video))
    _read(measured, reader, mirrored(TRUTH), asked, controls)
    return videos


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
    """True for each clip [B] whose video is closer to the mirrored truth, where the two truths differ."""
    span = slice(MIRROR_FROM, 1 + MIRROR_TO)
    video, mirrored_truth, truth = (each[:, :, span] for each in (video, mirrored_truth, truth))
    differs = ((mirrored_truth - truth).abs().amax(1, keepdim=True) > 0.2).float()
    asked = ((video - mirrored_truth).square() * differs).sum((1, 2, 3, 4))
    other = ((video - truth).square() * differs).sum((1, 2, 3, 4))
    return asked < other


def _sheet_rows(world: World, controls: Tensor, videos: Sequence[Tensor], clips: int) -> list[Tensor]:
    """Drawn controls, truth and generated videos of some clips, one row each, at growing distance from the start."""
    picks = torch.tensor([frame for frame in SHEET_FRAMES if frame < controls.shape[1]])
    sheet = []
    for clip in range(min(clips, len(controls))):
        sheet.append(world.draw_controls(controls[clip, picks], videos[0].shape[-1]) * 2 - 1)
        sheet += [video[clip][:, picks].transpose(0, 1) for video in videos]
    return sheet
