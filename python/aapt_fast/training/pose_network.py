# SPDX-License-Identifier: Apache-2.0
"""The control reader of the person world: a small network that reads the joints off a single video frame.

It is trained here, on true frames of strangers, in two or three minutes on two quiet CPU cores, and kept in a file
whose name is made from its configuration. The joints that it sees in generated frames tell how well the pose was
followed; the Frechet distance is taken of its features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.errors import require, require_shape
from aapt_fast.limits import require_memory
from aapt_fast.progress import progress, say
from aapt_fast.training.files import load_finite, load_module, save_finite
from aapt_fast.training.optimiser import descend
from aapt_fast.training.rows import Rows
from aapt_fast.training.schedule import warm_cosine
from aapt_fast.worlds.person.identity import make_identity
from aapt_fast.worlds.person.players import random_motion
from aapt_fast.worlds.person.renderer import render
from aapt_fast.worlds.person.skeleton import JOINTS, forward_kinematics, pose_points
from aapt_fast.worlds.person.world import PersonWorld
from aapt_fast.worlds.world import clip_seed

FORMAT = "aapt_fast-pose-1"  # of the file; a change of the training in code needs another number


@dataclass(frozen=True)
class PoseNetworkConfig:
    """Settings of the network and of its training; every clip shows a person and a room of its own."""

    size: int = 96  # pixels of a video frame, a multiple of 16
    widths: tuple[int, int, int] = (24, 48, 80)  # channels at 1/2, 1/4 and 1/8 of the size (and 1/16)
    clips: int = 480
    held_out: int = 48  # strangers on which the finished network is measured
    frames: int = 12  # of each clip, `stride` video frames apart
    stride: int = 8
    steps: int = 700
    batch: int = 32
    rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.size > 0 and self.size % 16 == 0, "size", "a positive multiple of 16", self.size)
        for name in ("clips", "held_out", "frames", "stride", "steps", "batch"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))


class PoseNetwork(nn.Module):
    """Video frames -> joints: a heat map per joint at a quarter of the size, whose centre of mass is the answer."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.stem = convolution(12, half)
        self.quarter = nn.Sequential(convolution(half, quarter, 2), Residual(quarter))
        self.eighth = nn.Sequential(convolution(quarter, eighth, 2), Residual(eighth))
        self.sixteenth = nn.Sequential(convolution(eighth, eighth, 2), Residual(eighth), Residual(eighth))
        self.join = convolution(quarter + 2 * eighth, quarter, kernel=1)
        self.last = convolution(quarter, 64)
        self.heat = nn.Conv2d(64, len(JOINTS), 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [N, 3, S, S] in -1..1 -> heat [N, 19, S / 4, S / 4], logits, and features [N, 64]."""
        require_shape("frames", frames, "N", 3, "S", frames.shape[-2])
        require(frames.shape[-1] % 16 == 0, "frames", "a size that is a multiple of 16", frames.shape[-1])
        x = F.pixel_unshuffle(frames, 2).contiguous(memory_format=torch.channels_last)
        quarter = self.quarter(self.stem(x))
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        coarse = [F.interpolate(each, size=quarter.shape[-2:]) for each in (eighth, sixteenth)]
        last = self.last(self.join(torch.cat([quarter, *coarse], dim=1)))
        return self.heat(last), last.mean((2, 3))


def convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside the identity; maps [N, width, h, w] to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def centre_of_mass(heat: Tensor) -> Tensor:
    """Mean x, y [N, J, 2] of the softmax of heat [N, J, h, w], as fractions of the frame."""
    height, width = heat.shape[-2:]
    share = heat.float().flatten(2).softmax(-1).unflatten(-1, (height, width))
    x = (torch.arange(width, device=heat.device) + 0.5) / width
    y = (torch.arange(height, device=heat.device) + 0.5) / height
    return torch.stack([(share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)], dim=-1)


def joint_distance(seen: Tensor, asked: Tensor, size: int) -> Tensor:
    """Mean distance [...] in pixels between joints [..., 19, 2 or more], x and y as fractions of `size` pixels."""
    return (seen[..., :2] - asked[..., :2]).square().sum(-1).sqrt().mean(-1) * size


@dataclass(frozen=True)
class PoseReader:
    """A trained network and `error`, its mean joint distance in pixels on true frames of held-out strangers."""

    network: PoseNetwork
    config: PoseNetworkConfig
    error: float

    @torch.inference_mode()
    def see(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Video [B, 3, T, S, S] in -1..1 -> joints [B, T, 19, 2] as fractions, features float32 [B, T, 64].

        Raises ValueError for another size than that of the training.
        """
        size = self.config.size
        require_shape("video", video, "B", 3, "T", size, size)
        frames = video.transpose(1, 2).flatten(0, 1)
        heats, features = zip(*(self.network(part) for part in frames.split(128)), strict=True)
        shape = (video.shape[0], video.shape[2])
        return centre_of_mass(torch.cat(heats)).unflatten(0, shape), torch.cat(features).float().unflatten(0, shape)

    @property
    def size(self) -> int:
        """Height and width in pixels of the video frames."""
        return self.config.size

    def read(self, video: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
        """Joint distances [B, T] in pixels of video [B, 3, T, S, S] and points [B, T, 19, 3]; features [B, T, 64]."""
        joints, features = self.see(video)
        return joint_distance(joints, controls, self.size), features

    def notes(self) -> dict[str, str]:
        """Remarks for the report; see `ControlReader`."""
        config, weights = self.config, sum(parameter.numel() for parameter in self.network.parameters())
        return {
            "control": "Mean distance in pixels between the joints that the pose network sees and those of the "
            f"control. The network has {weights} weights and errs by {self.error:.2f} pixels of {config.size} on "
            f"{config.held_out * config.frames} true frames of {config.held_out} strangers that it was not trained on.",
            "frechet": "The features are 64 of the pose network, which looks for the body more than for the room.",
        }


def pose_reader(config: PoseNetworkConfig, folder: Path) -> PoseReader:
    """The network of `config` from its file in `folder`; trained and put there if there is none."""
    path = reader_path(config, folder)
    if not path.exists():
        say("train the pose network, which reads joints for the report: two or three minutes of two quiet CPU cores,")
        say(f"once, as it is kept in {path}")
        folder.mkdir(parents=True, exist_ok=True)
        trained = train_pose_network(config, folder)
        save_finite(path, {"error": trained.error, "network": trained.network.state_dict()})
        for rendered in folder.glob(f"{path.stem}-*"):
            rendered.unlink()
    then = "the network is trained again"
    kept, network = load_finite(path, then), PoseNetwork(config.widths)
    load_module(network, kept["network"], path, then)
    return PoseReader(network.eval().requires_grad_(False), config, kept["error"])


def describe_kept(config: PoseNetworkConfig, folder: Path) -> str:
    """Describe in words what `pose_reader` finds in `folder`: the network, or clips that were rendered for it."""
    path = reader_path(config, folder)
    if path.exists():
        return f"the pose network is kept in {path}"
    clips = config.clips + config.held_out
    there = _frame_rows(config, config.clips, 7, folder).there + _frame_rows(config, config.held_out, 8, folder).there
    return f"{there} of {clips} clips for the pose network are rendered and kept in {folder}"


def reader_path(config: PoseNetworkConfig, folder: Path) -> Path:
    """The file of this configuration's network in `folder`."""
    content = json.dumps([FORMAT, dataclasses.asdict(config)], sort_keys=True)
    return folder / f"pose-{hashlib.sha256(content.encode()).hexdigest()[:16]}.pt"


@torch.inference_mode(False)
def train_pose_network(config: PoseNetworkConfig, folder: Path) -> PoseReader:
    """Train from nothing and measure on held-out strangers; the same seed gives the same network on one machine.

    Rendered clips are kept in `folder`. Raises ValueError if the frames do not fit into the memory, FloatingPointError
    for a gradient that is not finite.
    """
    require_memory("clips, frames and size", 3 * config.clips * config.frames * config.size**2)
    frames, points = render_frames(config, config.clips, 7, folder)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = PoseNetwork(config.widths).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=0.01)
    with progress(config.steps, "train the pose network", "step") as bar:
        for step in range(config.steps):
            for group in optimiser.param_groups:
                group["lr"] = config.rate * warm_cosine(step, config.steps)
            picks = torch.randint(len(frames), (config.batch,), generator=generator)
            _loss(network(disturbed(frames[picks], generator))[0], points[picks]).backward()
            descend(network, optimiser)
            bar.update()
    network.eval().requires_grad_(False)
    reader = PoseReader(network, config, float("nan"))
    frames, points = render_frames(config, config.held_out, 8, folder)
    joints, _ = reader.see((frames.float() / 127.5 - 1).transpose(0, 1)[None])
    return dataclasses.replace(reader, error=float(joint_distance(joints[0], points, config.size).mean()))


def render_frames(config: PoseNetworkConfig, clips: int, seed: int, folder: Path) -> tuple[Tensor, Tensor]:
    """True frames uint8 [N, 3, S, S] and joints [N, 19, 2] as fractions of the frame, of strangers in random motions.

    `seed` names the set of clips, as in `ClipSetConfig`; the evaluation and the training of models use other ones.
    Clips are kept in `folder`, and only the missing ones are rendered.
    """
    rows = _frame_rows(config, clips, seed, folder)
    if not rows.complete:
        missing = rows.begin()
        with progress(clips, "render for the pose network", "clip", done=clips - len(missing)) as bar:
            for clip in missing:
                angles = random_motion(config.frames * config.stride, clip_seed(seed, clip))[:: config.stride]
                identity = make_identity(PersonWorld().scene(seed, clip))
                shown = (render(forward_kinematics(angles), identity, config.size) * 255 + 0.5).byte()
                rows.write(clip, frames=shown.numpy(), points=pose_points(angles)[..., :2].numpy())
                bar.update()
        rows.finish()
    frames, points = (torch.from_numpy(np.load(rows.path(f"{key}.npy"))) for key in rows.arrays)
    return frames.flatten(0, 1), points.flatten(0, 1)


def _frame_rows(config: PoseNetworkConfig, clips: int, seed: int, folder: Path) -> Rows:
    """The files of a set of clips in `folder`."""
    frame, joints = (config.frames, 3, config.size, config.size), (config.frames, len(JOINTS), 2)
    card = {"seed": seed, **dataclasses.asdict(config)}
    name = f"{reader_path(config, folder).stem}-{seed}"
    return Rows(folder, name, card, clips, {"frames": ("uint8", frame), "points": ("float32", joints)})


def disturbed(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames uint8 [N, 3, S, S] -> -1..1, half of them blurred, with a little noise: as videos of a model may be."""
    video = frames.float() / 127.5 - 1
    blurred = F.avg_pool2d(F.pad(video, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(len(frames), 1, 1, 1, generator=generator).mul(2).sub(1).clamp_min(0)
    amount = 0.1 * torch.rand(len(frames), 1, 1, 1, generator=generator)
    return video.lerp(blurred, share) + amount * torch.randn(video.shape, generator=generator)


def _loss(heat: Tensor, points: Tensor) -> Tensor:
    """Distance of the centre of mass, in cells, and cross-entropy with a Gaussian at the joint, one cell wide."""
    cells = heat.shape[-1]
    place = torch.arange(cells) + 0.5
    bell = torch.exp(-0.5 * (place - points[..., None].clamp(0, 1) * cells).square())  # [N, J, 2, cells]
    bell = bell / bell.sum(-1, keepdim=True)
    target = bell[:, :, 1, :, None] * bell[:, :, 0, None, :]
    entropy = -(target * heat.flatten(2).log_softmax(-1).view_as(heat)).sum((2, 3)).mean()
    return entropy + (centre_of_mass(heat) - points).abs().sum(-1).mean() * cells
