# SPDX-License-Identifier: Apache-2.0
"""Conversion of a user's control (poses or maps, one entry per video frame) to the control tensor of a step.

A pose becomes limb maps at latent resolution: around each limb a Gaussian weight w, and w times the offset to the
nearest point of the limb, the place along it and its depth. Five smooth channels per limb say where it is to a
fraction of a latent cell, and in front of what, without drawing anything at video resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy
import torch
from torch import Tensor

from aapt_fast.errors import require, require_shape
from aapt_fast.models.aapt.config import ControlConfig
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.fractions import require_fractions
from aapt_fast.worlds.control_values import FARTHEST, read_numbers, require_values

SPREAD = 9 / 96  # of the Gaussian around a limb, as a fraction of the frame
OFFSET_UNIT = 6 / 96  # offsets are given in this unit
DEPTH_GAIN = 3.0  # per metre


class ControlSource(Protocol):
    """Player of `aapt_fast.worlds`, or an object of your own with this method: a tracker, a game, a keyboard."""

    def next(self, frames: int) -> object:
        """Controls [frames, J, 3] or [frames, C, h, w] of the next video frames, as `StreamSession.step` takes them.

        Raises StopIteration at the end of the video, as `__next__` of an iterator does.
        """


def controls_of(source: ControlSource | Iterable[object] | None, model: StreamModel) -> Iterator[object]:
    """Controls of one step after the other, [entries, J, 3] or [entries, C, h, w] each; None, without end, for None.

    A tensor or an array holds those of n steps, [n, entries, J, 3] or [n, entries, C, h, w]. Raises ValueError for one
    of another shape, TypeError for a source of another kind.
    """
    config = model.control
    if source is None:
        return itertools.repeat(None)
    expected = "a player with a method next(frames), or an iterable of controls"
    if isinstance(source, type):
        raise TypeError(f"source: expected {expected}, got the class {source.__name__} instead of an object of it")
    take = getattr(source, "next", None)
    if callable(take):
        entries = 1 if config is None else config.entries
        return _played(take, entries)
    if isinstance(source, str) or not isinstance(source, Iterable):
        raise TypeError(f"source: expected {expected}, got {type(source).__name__}")
    if config is not None and isinstance(source, Tensor | numpy.ndarray):
        _require_steps(source, config, model.grid)
    return iter(source)


def _played(take: Callable[[int], object], entries: int) -> Iterator[object]:
    """Controls of one step after the other from the `next` of a player, until it raises StopIteration."""
    while True:
        try:
            control = take(entries)
        except StopIteration:
            return
        yield control


def _require_steps(source: Tensor | numpy.ndarray, config: ControlConfig, grid: tuple[int, int]) -> None:
    """Raise ValueError unless `source` has the controls of n steps, [n, entries, J, 3] or [n, entries, C, h, w]."""
    entry, shape = entry_shape(config, grid), list(source.shape)
    one = [config.entries, *entry]
    expected = f"[n, {', '.join(map(str, one))}], the controls of n steps of {config.entries} video frames"
    cut = f"source.split({config.entries})" if isinstance(source, Tensor) else f"source.reshape({[-1, *one]})"
    got = f"{shape}; {cut} makes steps of video frames" if shape[1:] == list(entry) else shape
    require(shape[1:] == one, "source", expected, got)


def limb_maps(points: Tensor, limbs: tuple[tuple[int, int], ...], grid: tuple[int, int]) -> Tensor:
    """Points [..., J, 3] (x, y as fractions of the frame, depth in metres) -> maps [..., 5 L, h, w].

    Channels are ordered by quantity, then limb: weight, w dx, w dy, w along, w depth.
    """
    height, width = grid
    y = (torch.arange(height, dtype=torch.float32, device=points.device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=points.device) + 0.5) / width
    joints = points.unbind(-2)  # a list of indices would be a copy from the host
    start, end = (torch.stack([joints[ends[i]] for ends in limbs], -2) for i in range(2))
    along = end - start
    from_x = x - start[..., 0, None]  # [..., L, w]
    from_y = y - start[..., 1, None]  # [..., L, h]
    along_x, along_y = along[..., 0, None, None], along[..., 1, None, None]
    length2 = along[..., :2].square().sum(-1).clamp_min(1e-7)[..., None, None]
    place = (from_x[..., None, :] * along_x + from_y[..., :, None] * along_y) / length2
    place = place.clamp(0, 1)
    dx, dy = from_x[..., None, :] - place * along_x, from_y[..., :, None] - place * along_y
    weight = torch.exp(-(dx.square() + dy.square()) / (2 * SPREAD**2))
    depth = DEPTH_GAIN * (start[..., 2, None, None] + place * along[..., 2, None, None])
    maps = torch.stack([torch.ones_like(place), dx / OFFSET_UNIT, dy / OFFSET_UNIT, place, depth], dim=-4)
    return (maps * weight.unsqueeze(-4)).flatten(-4, -3)


def model_values(control: object, model: StreamModel) -> Tensor | None:
    """A step's control for `model` -> float32 [entries, J, 3] or [entries, C, h, w] where it lies, maybe no copy.

    None for a model without control, for which anything but None raises ValueError; else as `step_values`, and
    TypeError for None.
    """
    config = model.control
    if config is None:
        require(control is None, "control", "None: this model has no control", type(control).__name__)
        return None
    if control is None:
        entry = entry_shape(config, model.grid)
        named = "x, y and depth of each joint" if config.kind == "pose" else "maps at latent resolution"
        maker = 'model.world.player(first, "walk").next' if config.kind == "pose" else "a player of the model's world"
        one = f"{maker}({config.entries})" if config.kind == "pose" else maker
        raise TypeError(f"control: expected {[config.entries, *entry]} ({named}), as {one} makes it, got None")
    return step_values(control, config, model.grid, dtype=model.dtype)


def image_entries(control: object, model: StreamModel) -> Tensor | None:
    """The control of the image, one entry [J, 3] or [C, h, w], as the previous control of step 1; zeros for None.

    None for a model whose steps take no previous control, for which anything but None raises ValueError; else as
    `step_entries`.
    """
    config = model.control
    if config is None or not config.with_previous:
        expected = "None: this model's steps take no previous control"
        require(control is None, "image_control", expected, type(control).__name__)
        return None
    if control is None:
        channels = config.entries * config.entry_channels
        return torch.zeros(channels, *model.grid, dtype=torch.float32, device=model.device)
    values = read_numbers(control, "image_control")
    require_shape("image_control", values, *entry_shape(config, model.grid))
    entries = step_entries(values, config, model.grid, "image_control", model.dtype)
    return entries.to(model.device, copy=True)


def step_entries(
    control: object,
    config: ControlConfig,
    grid: tuple[int, int],
    argument: str = "control",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One step's control as maps [entries * entry_channels, h, w]. Takes and raises what `step_values` does."""
    return entry_maps(step_values(control, config, grid, argument, dtype), config, grid).flatten(0, 1)


def step_values(
    control: object,
    config: ControlConfig,
    grid: tuple[int, int],
    argument: str = "control",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One step's control, checked: float32 [entries, J, 3] or [entries, C, h, w].

    `control` is a tensor, an array or lists of numbers with one entry per video frame, or a single entry that is held
    for all of them: [entries, J, 3] or [J, 3] for poses, [entries, C, h, w] or [C, h, w] for maps. A joint of a pose is
    (x, y, depth): x and y are fractions of the width and height of the frame, 0..1 inside of it, from the upper left;
    depth is in metres. Raises TypeError for something else, ValueError for another shape, a value that is not finite, a
    number of a pose beyond `FARTHEST` or one of a map that `dtype`, in which the generator computes, cannot hold, and
    poses of which more than half of x and y lie outside of -1..2: those are pixels. Errors name `argument`.
    """
    values, entry = read_numbers(control, argument), entry_shape(config, grid)
    if values.ndim == len(entry):
        require_shape(argument, values, *entry)
        values = values.expand(config.entries, *values.shape)
    _require_entries(argument, values, config.entries, entry, isinstance(control, Tensor))
    values = values.float()
    require_values(argument, values, FARTHEST if config.kind == "pose" else torch.finfo(dtype).max)
    if config.kind == "pose":
        require_fractions(argument, values[..., :2])
    return values


def _require_entries(argument: str, values: Tensor, entries: int, entry: tuple[int, ...], is_tensor: bool) -> None:
    """Raise ValueError unless these are the `entries` entries of a step, saying what fewer or more of them need."""
    shape, wanted = list(values.shape), [entries, *entry]
    advice = ""
    if shape[1:] == list(entry) and 0 < len(values) < entries:  # the last piece of a track
        missing = [entries - len(values), *[1] * len(entry)]
        held = f"{argument}[-1:]"
        repeated = f"{held}.repeat({missing})" if is_tensor else f"numpy.tile({held}, {missing})"
        advice = f"; {'torch.cat' if is_tensor else 'numpy.concatenate'}([{argument}, {repeated}]) holds the last one"
    elif shape[1:] == list(entry) and len(values) > entries:
        advice = f"; take several steps, of {entries} entries each"
    expected = f"shape {wanted}, an entry for each video frame of a step, or {wanted[1:]}, one for all of them"
    require(shape == wanted, argument, expected, f"{shape}{advice}")


def entry_shape(config: ControlConfig, grid: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the control of one video frame: (J, 3) for poses, (C, h, w) for maps."""
    return (config.joints, 3) if config.kind == "pose" else (config.channels, *grid)


def entry_maps(values: Tensor, config: ControlConfig, grid: tuple[int, int]) -> Tensor:
    """Entries [..., J, 3] or [..., C, h, w] -> maps [..., entry_channels, h, w]."""
    return limb_maps(values, config.limbs, grid) if config.kind == "pose" else values


def clip_controls(controls: Tensor, config: ControlConfig, grid: tuple[int, int]) -> Tensor:
    """Controls of whole clips [B, 1 + 4 n, J, 3] or [B, 1 + 4 n, C, h, w] -> [B, step_channels, n, h, w] of steps 1..n.

    Poses as in `step_entries`. Raises ValueError for another shape.
    """
    require_shape("controls", controls, "B", "1 + 4 n", *entry_shape(config, grid))
    frames = controls.shape[1]
    require(frames % config.entries == 1, "controls", f"1 + {config.entries} n video frames", frames)
    first = controls[:, :1].repeat_interleave(config.entries - 1, 1)  # the image stands in for its whole block
    blocks = torch.cat([first, controls], dim=1).unflatten(1, (-1, config.entries))
    maps = entry_maps(blocks, config, grid).flatten(2, 3)  # [B, n + 1, channels, h, w]
    steps = torch.cat([maps[:, 1:], maps[:, :-1]], dim=2) if config.with_previous else maps[:, 1:]
    return steps.transpose(1, 2)
