# SPDX-License-Identifier: Apache-2.0
"""`AAPTPipeline`: the models of this package behind the calls of diffusers' pipelines. diffusers is not needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from PIL import Image
from torch import Tensor

from aapt_fast.errors import require, require_integer, require_shape, require_type
from aapt_fast.media.first_picture import as_picture, fit_picture, picture_size
from aapt_fast.models.aapt.sampling import EulerSampler
from aapt_fast.models.files.gallery import Gallery, read_gallery
from aapt_fast.models.files.model_file import load_gallery
from aapt_fast.models.stream_model import ImageLike, StreamModel
from aapt_fast.streaming.controls import ControlSource, step_values
from aapt_fast.streaming.session import StreamSession
from aapt_fast.worlds.control_values import read_numbers
from aapt_fast.worlds.script import read_script
from aapt_fast.worlds.track_player import TrackPlayer
from aapt_fast.worlds.world import MEDLEY, FirstFrame

FRAMES = 96
"""Video frames of a call that says no number, four seconds."""
OUTPUT_TYPES = ("pil", "np", "pt")
FILE, INDEX = "model.safetensors", "gallery.json"
FINISHED = 0
"""Timestep that callbacks get: at the end of a step its frames have no noise left."""

StepCallback = Callable[["AAPTPipeline", int, int, dict[str, Any]], Any]


class PipelineOutput(NamedTuple):
    """Result of a call of `AAPTPipeline`."""

    frames: Any
    """The one video, with a first dimension as diffusers has it: "pil" [[PIL image, ...]], "np" float32 [1, T, H, W, 3]
    in 0..1, "pt" float32 [1, T, 3, H, W] in 0..1, on the device of the model."""


class AAPTPipeline:
    """Whole videos of a model of this package, by calls as diffusers' pipelines take them.

        pipe = AAPTPipeline.from_pretrained("mini-person")
        video = pipe(motion="walk:48,wave", num_frames=96, generator=torch.Generator().manual_seed(0)).frames[0]

    A call is a `StreamSession` from its start to its end, and gives the same frames, bit for bit. For control while it
    runs, use the session itself. The class does not inherit from `diffusers.DiffusionPipeline`: its models are no
    `ModelMixin`, so that the methods of that class for devices, offloading, adapters and the hub would fail. One thread
    at a time may call a pipeline; any number of pipelines and sessions may share its model.

    Args:
        model: a model that poses control.
        gallery: first frames, of which number 0 is the default image of a call.

    Raises:
        TypeError: an argument of another type.
        ValueError: a model without control by poses, such as a Wan transformer.
    """

    def __init__(self, model: StreamModel, gallery: Sequence[FirstFrame] = ()) -> None:
        require_type("model", model, StreamModel)
        posed = model.control is not None and model.control.kind == "pose"
        got = f"{model.name or type(model.generator).__name__}; StreamSession streams it"
        require(posed, "model", "a model that poses control, as mini-person", got)
        self.model, self.gallery = model, list(gallery)
        self._files: Gallery | None = None
        self._interrupt = False

    def __repr__(self) -> str:
        return f"AAPTPipeline({self.model!r}, first frames in the gallery: {len(self.gallery)})"

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        torch_dtype: torch.dtype | str = torch.float32,
    ) -> AAPTPipeline:
        """Load a bundled model by name (`mini-person`, `mini-anyone`), or a file or folder of `save_pretrained`.

        Nothing is downloaded. Raises as `StreamModel.from_pretrained`.
        """
        model = StreamModel.from_pretrained(path, device=device, dtype=torch_dtype)
        pipe = cls(model, load_gallery(path))
        pipe._files = read_gallery(path)
        return pipe

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str = torch.float16) -> None:
        """Write the model to `folder`/model.safetensors, weights in `dtype`, and its gallery beside it.

        The gallery is that of the path that `from_pretrained` has read; a pipeline that was made of a model has none.
        Raises as `StreamModel.save_pretrained`, and OSError where the folder cannot be made.
        """
        require_type("folder", folder, str, Path)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder / FILE, dtype)
        if self._files is not None and self._files.index.parent.resolve() != folder.resolve():
            for name in (*(entry["image"] for entry in self._files.entries), INDEX):
                shutil.copyfile(self._files.index.with_name(name), folder / name)

    def __call__(
        self,
        image: FirstFrame | ImageLike | None = None,
        motion: str | None = None,
        *,
        pose: object = None,
        num_frames: int | None = None,
        num_inference_steps: int = 1,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> PipelineOutput:
        """Make one video.

        Args:
            image: the picture before the first video frame: a `FirstFrame` (`pipe.gallery[3]`), or a picture: a PIL
                image, uint8 [H, W, 3], or float [3, H, W] in -1..1. One of another size than the model's is cropped and
                scaled. None for number 0 of the gallery.
            motion: script of motions, such as "walk:48,wave:72", or "medley", the default.
            pose: in place of `motion`, the pose of every video frame, [T, J, 3]: x and y as fractions of width and
                height from the upper left, and the depth in metres. The last one is held.
            num_frames: video frames; None for T with `pose`, else 96. The model makes four at a time; those that are
                too many are cut off.
            num_inference_steps: network evaluations per step.
            generator: its `initial_seed()` is the seed of the video, of noise and of a medley. Its state is not used
                and stays, so the same generator gives the same video again. None draws a seed from torch's own.
            output_type: "pil", "np" or "pt", as in `PipelineOutput`.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, {"frames": frames})`, step
                from 0 on, timestep 0, frames uint8 [4, H, W, 3]. `pipe._interrupt = True` in it ends the video there;
                what it returns is not used.

        Raises:
            TypeError, ValueError: an argument of another type, shape or range; before the first step.
        """
        require(output_type in OUTPUT_TYPES, "output_type", " | ".join(OUTPUT_TYPES), output_type)
        first, seed = self._first(image), _seed_of(generator)
        sampler = EulerSampler(num_inference_steps)
        source, frames = self._source(first, motion, pose, num_frames, seed)
        entries = _entries(self.model)
        video: list[Tensor] = []
        self._interrupt = False
        with StreamSession(self.model, first, seed=seed, sampler=sampler) as session:
            for step, piece in enumerate(session.frames(source, -(-frames // entries))):
                video.append(piece)
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step, FINISHED, {"frames": piece})
                if self._interrupt:
                    break
        return PipelineOutput(_output(torch.cat(video)[:frames], output_type))

    def _first(self, image: FirstFrame | ImageLike | None) -> FirstFrame:
        """The first frame of a call, in the size of the model."""
        if image is None:
            require(len(self.gallery) > 0, "image", "a picture: this model has no gallery", None)
            return self.gallery[0]
        first = image if isinstance(image, FirstFrame) else FirstFrame(image)
        height, width = self.model.video_size
        if picture_size(as_picture(first.image)) == (height, width):
            return first
        require(first.control is None, "image", f"{width} x {height} pixels of a FirstFrame with a control", first)
        return FirstFrame(fit_picture(first.image, width, height))

    def _source(
        self, first: FirstFrame, motion: str | None, pose: object, num_frames: int | None, seed: int
    ) -> tuple[ControlSource, int]:
        """The player of a call, and the number of its video frames."""
        if num_frames is not None:
            require_integer("num_frames", num_frames)
            require(num_frames >= 1, "num_frames", "at least 1 video frame", num_frames)
        if pose is None:
            script, world = MEDLEY if motion is None else motion, self.model.world
            read_script(script, world.actions, "motion")
            return world.player(first, script, seed), FRAMES if num_frames is None else int(num_frames)
        require(motion is None, "motion", "None beside pose", motion)
        poses = self._checked(pose)
        return TrackPlayer(poses), len(poses) if num_frames is None else int(num_frames)

    def _checked(self, pose: object) -> Tensor:
        """A track of poses as float32 [T, J, 3]; raises TypeError or ValueError if a step would refuse it."""
        config, entries = self.model.control, _entries(self.model)
        assert config is not None
        poses = read_numbers(pose, "pose")
        require_shape("pose", poses, "T", config.joints, 3)
        require(len(poses) > 0, "pose", "at least one video frame", list(poses.shape))
        player = TrackPlayer(poses.float())
        for _ in range(0, len(poses), entries):
            step_values(player.next(entries), config, self.model.grid, "pose", self.model.dtype)
        return poses.float()


def _entries(model: StreamModel) -> int:
    """Video frames of a step."""
    assert model.control is not None
    return model.control.entries


def _seed_of(generator: torch.Generator | None) -> int:
    """The seed of a generator as a signed number, -1 for `manual_seed(-1)`; a drawn one without a generator."""
    if generator is None:
        return int(torch.randint(2**63 - 1, ()))
    require_type("generator", generator, torch.Generator)
    seed = generator.initial_seed() % 2**64
    return seed - 2**64 if seed >= 2**63 else seed


def _output(video: Tensor, output_type: str) -> Any:
    """Video uint8 [T, H, W, 3] -> `PipelineOutput.frames`."""
    if output_type == "pil":
        return [[Image.fromarray(picture) for picture in video.cpu().numpy()]]
    if output_type == "np":
        return video.cpu().numpy().astype(numpy.float32)[None] / 255
    return video.permute(0, 3, 1, 2)[None].float() / 255
