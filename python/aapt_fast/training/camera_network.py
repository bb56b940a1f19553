# SPDX-License-Identifier: Apache-2.0
"""The control reader of the rooms world: a small network that reads off two video frames how the camera moved.

It is trained here, on true frames of houses that no other set shows, and kept in a file whose name is made from its
configuration. Motions that it sees in generated frames tell how well the camera followed; the Frechet distance is taken
of its features.
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
from aapt_fast.training.pose_network import Residual, convolution, disturbed
from aapt_fast.training.rows import Rows
from aapt_fast.training.schedule import warm_cosine
from aapt_fast.worlds.rooms.camera import Camera, motions, read_maps, turn_angles
from aapt_fast.worlds.rooms.house import make_house
from aapt_fast.worlds.rooms.policy import first_pose, guided_poses
from aapt_fast.worlds.rooms.renderer import Renderer
from aapt_fast.worlds.rooms.walker import Walker
from aapt_fast.worlds.rooms.world import RoomsWorld
from aapt_fast.worlds.world import clip_seed

FORMAT = "aapt_fast-camera-1"  # of the file; a change of the training in code needs another number
APART = 2  # video frames between the two that the network sees
UNITS = (0.04, 0.02, 0.06, 0.05, 0.02, 0.01)  # right, up, forwards (metres), yaw, pitch, roll: what varies by about 1
DEPTH = 2.0  # metres at which an error of the motion is turned into pixels


@dataclass(frozen=True)
class CameraNetworkConfig:
    """Settings of the network and of its training; every clip shows a house of its own."""

    size: int = 192  # pixels of a video frame, a multiple of 32
    widths: tuple[int, int, int] = (48, 64, 96)  # channels at 1/4, 1/8 and 1/16 of the size
    clips: int = 320
    held_out: int = 32  # houses on which the finished network is measured
    pairs: int = 24  # of each clip, `stride` video frames apart
    stride: int = 6
    steps: int = 1500
    batch: int = 32
    rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.size > 0 and self.size % 32 == 0, "size", "a positive multiple of 32", self.size)
        for name in ("clips", "held_out", "pairs", "stride", "steps", "batch"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))


class CameraNetwork(nn.Module):
    """Two video frames -> the motion of the camera from the first to the second, in `UNITS`."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.layers = nn.Sequential(
            convolution(96, quarter),
            Residual(quarter),
            convolution(quarter, eighth, 2),
            Residual(eighth),
            convolution(eighth, sixteenth, 2),
            Residual(sixteenth),
            convolution(sixteenth, sixteenth, 2),
        )
        self.last = nn.Linear(4 * sixteenth, 64)
        self.motion = nn.Linear(64, 6)

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs [N, 2, 3, S, S] in -1..1 -> motion [N, 6] in `UNITS`, and features [N, 64]."""
        require_shape("pairs", pairs, "N", 2, 3, "S", pairs.shape[-2])
        require(pairs.shape[-1] % 32 == 0, "pairs", "a size that is a multiple of 32", pairs.shape[-1])
        x = F.pixel_unshuffle(pairs.flatten(1, 2), 4).contiguous(memory_format=torch.channels_last)
        features = F.relu(self.last(F.adaptive_avg_pool2d(self.layers(x), 2).flatten(1)))
        return self.motion(features), features


def asked_motions(controls: Tensor, camera: Camera | None = None) -> Tensor:
    """Motion [N, 6] in `UNITS` over the video frames of control maps [N, K, 6, h, w], K frames one after the other."""
    moved, turned = read_maps(controls.flatten(0, 1), camera)
    moved, turned = moved.unflatten(0, controls.shape[:2]), turned.unflatten(0, controls.shape[:2])
    place, rotation = moved[:, 0], turned[:, 0]
    for step in range(1, controls.shape[1]):
        place = place + (rotation @ moved[:, step, :, None])[..., 0]
        rotation = rotation @ turned[:, step]
    return torch.cat([place, turn_angles(rotation)], dim=1) / torch.tensor(UNITS, device=place.device)


def motion_distance(seen: Tensor, asked: Tensor, size: int, camera: Camera | None = None) -> Tensor:
    """Mean distance [N] in pixels between where two motions [N, 6] in `UNITS` put what is `DEPTH` metres away."""
    camera, units = camera or Camera(), torch.tensor(UNITS, device=seen.device)
    points = camera.rays(6).flatten(1).T.to(seen.device)
    points = points / points[:, 2:] * DEPTH
    places = []
    for motion in (seen * units, asked * units):
        x, y, z = (points - motion[:, None, :3]).unbind(-1)
        yaw, pitch, roll = (angle[:, None] for angle in motion[:, 3:].unbind(1))
        x, y = x - z * yaw, y - z * pitch  # for small turns
        x, y = x - y * roll, y + x * roll
        places.append(torch.stack([x, y], dim=-1) / z[..., None].clamp_min(0.2) / camera.half / 2 * size)
    return (places[0] - places[1]).norm(dim=-1).mean(1)


@dataclass(frozen=True)
class CameraReader:
    """A trained network with its mean `error` in pixels on true frames of held-out houses.

    `still` is that of the answer that no camera ever moves.
    """

    network: CameraNetwork
    config: CameraNetworkConfig
    error: float
    still: float

    @property
    def size(self) -> int:
        """Height and width in pixels of the video frames."""
        return self.config.size

    @torch.inference_mode()
    def see(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Motion [N, 6] in `UNITS` and features float32 [N, 64] of pairs [N, 2, 3, S, S] in -1..1."""
        seen, features = zip(*(self.network(part) for part in pairs.split(64)), strict=True)
        return torch.cat(seen), torch.cat(features).float()

    def read(self, video: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
        """Errors [B, T] in pixels of video [B, 3, T, S, S] and control maps [B, T, 6, h, w]; features [B, T, 64].

        The first `APART` video frames follow nothing: their error is 0, their features are those of a still camera.
        """
        require_shape("video", video, "B", 3, "T", self.size, self.size)
        frames = video.transpose(1, 2)
        earlier = torch.cat([frames[:, :1].expand(-1, APART, -1, -1, -1), frames[:, :-APART]], dim=1)[
            :, : len(frames[0])
        ]
        seen, features = self.see(torch.stack([earlier, frames], dim=2).flatten(0, 1))
        steps = torch.stack([controls[:, :-1], controls[:, 1:]], dim=2)[:, 1:]
        asked = asked_motions(steps.flatten(0, 1)) if steps.shape[1] else seen[:0]
        error = seen.new_zeros(video.shape[0], video.shape[2])
        moving = seen.unflatten(0, error.shape)[:, APART:].flatten(0, 1)
        error[:, APART:] = motion_distance(moving, asked, self.size).unflatten(0, (len(error), -1)) if len(asked) else 0
        return error, features.unflatten(0, error.shape)

    def notes(self) -> dict[str, str]:
        """Remarks for the report; see `ControlReader`."""
        config, weights = self.config, sum(parameter.numel() for parameter in self.network.parameters())
        return {
            "control": f"Mean distance in pixels by which the motion over {APART} video frames, as the camera network "
            f"sees it, displaces what is {DEPTH:g} m away from where the control puts it. The network has {weights} "
            f"weights and errs by {self.error:.2f} pixels of {config.size} on {config.held_out * config.pairs} pairs "
            f"of true frames of {config.held_out} houses that it was not trained on, where the camera moves by "
            f"{self.still:.2f}.",
            "frechet": "The features are 64 of the camera network, which looks for motion more than for things.",
        }


def camera_reader(config: CameraNetworkConfig, folder: Path) -> CameraReader:
    """The network of `config` from its file in `folder`; trained and put there if there is none."""
    path = camera_path(config, folder)
    if not path.exists():
        say(f"train the camera network, which reads motions for the report, once: it is kept in {path}")
        folder.mkdir(parents=True, exist_ok=True)
        trained = train_camera_network(config, folder)
        content = {"error": trained.error, "still": trained.still, "network": trained.network.state_dict()}
        save_finite(path, content)
        for rendered in folder.glob(f"{path.stem}-*"):
            rendered.unlink()
    then = "the network is trained again"
    kept, network = load_finite(path, then), CameraNetwork(config.widths)
    load_module(network, kept["network"], path, then)
    return CameraReader(network.eval().requires_grad_(False), config, kept["error"], kept["still"])


def describe_camera_kept(config: CameraNetworkConfig, folder: Path) -> str:
    """Describe in words what `camera_reader` finds in `folder`."""
    path = camera_path(config, folder)
    if path.exists():
        return f"the camera network is kept in {path}"
    sets = ((config.clips, 7), (config.held_out, 8))
    there = sum(_pair_rows(config, clips, seed, folder).there for clips, seed in sets)
    total = config.clips + config.held_out
    return f"{there} of {total} clips for the camera network are rendered and kept in {folder}"


def camera_path(config: CameraNetworkConfig, folder: Path) -> Path:
    """The file of this configuration's network in `folder`."""
    content = json.dumps([FORMAT, dataclasses.asdict(config)], sort_keys=True)
    return folder / f"camera-{hashlib.sha256(content.encode()).hexdigest()[:16]}.pt"


@torch.inference_mode(False)
def train_camera_network(config: CameraNetworkConfig, folder: Path) -> CameraReader:
    """Train from nothing and measure on held-out houses; the same seed gives the same network on one machine.

    Rendered pairs are kept in `folder`. Raises ValueError if the frames do not fit into the memory, FloatingPointError
    for a gradient that is not finite.
    """
    require_memory("clips, pairs and size", 6 * config.clips * config.pairs * config.size**2)
    frames, moved = render_pairs(config, config.clips, 7, folder)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = CameraNetwork(config.widths).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=0.01)
    with progress(config.steps, "train the camera network", "step") as bar:
        for step in range(config.steps):
            for group in optimiser.param_groups:
                group["lr"] = config.rate * warm_cosine(step, config.steps)
            picks = torch.randint(len(frames), (config.batch,), generator=generator)
            pairs = disturbed(frames[picks].flatten(0, 1), generator).unflatten(0, (-1, 2))
            F.smooth_l1_loss(network(pairs)[0], moved[picks], beta=0.3).backward()
            descend(network, optimiser)
            bar.update()
    network.eval().requires_grad_(False)
    reader = CameraReader(network, config, float("nan"), float("nan"))
    frames, moved = render_pairs(config, config.held_out, 8, folder)
    seen = torch.cat([reader.see(part.float() / 127.5 - 1)[0] for part in frames.split(64)])
    error = float(motion_distance(seen, moved, config.size).mean())
    still = float(motion_distance(torch.zeros_like(moved), moved, config.size).mean())
    return dataclasses.replace(reader, error=error, still=still)


def render_pairs(config: CameraNetworkConfig, clips: int, seed: int, folder: Path) -> tuple[Tensor, Tensor]:
    """Pairs of true frames uint8 [N, 2, 3, S, S], `APART` video frames apart, and motions [N, 6] in `UNITS`.

    `seed` names the set of clips, as in `ClipSetConfig`. Clips are kept in `folder`, and only the missing ones are
    rendered.
    """
    rows = _pair_rows(config, clips, seed, folder)
    if not rows.complete:
        missing = rows.begin()
        with progress(clips, "render for the camera network", "clip", done=clips - len(missing)) as bar:
            for clip in missing:
                rows.write(clip, **_render_clip(config, seed, clip))
                bar.update()
        rows.finish()
    frames, moved = (torch.from_numpy(np.load(rows.path(f"{key}.npy"))) for key in rows.arrays)
    return frames.flatten(0, 1), moved.flatten(0, 1)


def _render_clip(config: CameraNetworkConfig, seed: int, clip: int) -> dict[str, np.ndarray]:
    """The pairs and motions of one guided walk."""
    house, own = make_house(RoomsWorld().scene(seed, clip)), clip_seed(seed, clip)
    poses, doors = guided_poses(Walker(house, first_pose(house, own)), own, config.pairs * config.stride + APART)
    renderer, frames, moved = Renderer(house, config.size), [], []
    for start in range(0, config.pairs * config.stride, config.stride):
        for frame in (start, start + APART):
            frames.append(renderer.render(poses[frame], doors[frame]).image.transpose(2, 0, 1))
        place, turned = motions(poses[[start, start + APART]])
        angles = turn_angles(torch.from_numpy(turned).float())[0].numpy()
        moved.append(np.concatenate([place[0], angles]) / np.array(UNITS))
    shape = (config.pairs, 2, 3, config.size, config.size)
    return {"frames": np.array(frames).reshape(shape), "moved": np.array(moved, np.float32)}


def _pair_rows(config: CameraNetworkConfig, clips: int, seed: int, folder: Path) -> Rows:
    """The files of a set of clips in `folder`."""
    frame = (config.pairs, 2, 3, config.size, config.size)
    card = {"seed": seed, **dataclasses.asdict(config)}
    name = f"{camera_path(config, folder).stem}-{seed}"
    return Rows(folder, name, card, clips, {"frames": ("uint8", frame), "moved": ("float32", (config.pairs, 6))})
