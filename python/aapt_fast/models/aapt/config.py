# SPDX-License-Identifier: Apache-2.0
"""Configurations of the generator and its control: plain dataclasses, checked when made, read from JSON."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aapt_fast.errors import require
from aapt_fast.ops.window import WindowRule


@dataclass(frozen=True)
class ControlConfig:
    """The control of a step: one entry per video frame.

    kind `maps`: entries are tensors [channels, h, w] at latent resolution.
    kind `pose`: entries are image points [joints, 3] (x, y as fractions of the frame, depth in metres past the stage);
    every limb, a pair of joints, becomes five channels.
    """

    kind: str
    channels: int = 0
    joints: int = 0
    limbs: tuple[tuple[int, int], ...] = ()
    entries: int = 4
    with_previous: bool = False  # the previous step's control is concatenated: it describes the recycled frame

    def __post_init__(self) -> None:
        require(self.kind in ("maps", "pose"), "control.kind", "maps or pose", self.kind)
        require(self.entries > 0, "control.entries", "at least 1", self.entries)
        if self.kind == "pose":
            require(len(self.limbs) > 0, "control.limbs", "at least one pair of joints", self.limbs)
            fits = all(0 <= joint < self.joints for limb in self.limbs for joint in limb)
            require(fits, "control.limbs", f"joints below {self.joints}", self.limbs)
        else:
            require(self.channels > 0, "control.channels", "at least 1", self.channels)

    @property
    def entry_channels(self) -> int:
        """Channels of one entry as maps at latent resolution."""
        return 5 * len(self.limbs) if self.kind == "pose" else self.channels

    @property
    def step_channels(self) -> int:
        """Channels of the control tensor of one step [B, step_channels, h, w]."""
        return self.entry_channels * self.entries * (2 if self.with_previous else 1)


@dataclass(frozen=True)
class TimeGrid:
    """Levels of a step in n evaluations, as training/discretize.py learns them.

    `solver` are the levels 1 = t_0 > t_1 > ... > t_n = 0 between which Euler steps lead, `network` those that the
    network is told, one per evaluation. Raises ValueError for levels that do not descend so, or do not fit each other.
    """

    solver: tuple[float, ...]
    network: tuple[float, ...]

    def __post_init__(self) -> None:
        ends = len(self.solver) >= 2 and self.solver[0] == 1 and self.solver[-1] == 0
        require(ends and _descend(self.solver), "grid.solver", "levels that descend from 1 to 0", self.solver)
        require(len(self.network) == self.evaluations, "grid.network", f"{self.evaluations} levels", self.network)
        inside = self.network[-1] > 0 and self.network[0] <= 1
        require(inside and _descend(self.network), "grid.network", "levels in 0..1 that descend", self.network)

    @property
    def evaluations(self) -> int:
        """Network evaluations per step."""
        return len(self.solver) - 1


def _descend(levels: tuple[float, ...]) -> bool:
    return all(before > after for before, after in itertools.pairwise(levels))


@dataclass(frozen=True)
class GeneratorConfig:
    """The block-causal MMDiT of AAPT (section 2) and its small relatives.

    `grid` is the latent height and width of training; other sizes stretch the spatial positions onto it. `window`
    counts past frames besides the sink. `prediction`: `velocity` (eps - x0, the paper's) or `frame` (x0 with a learned
    skip from the noised and the recycled frame). `head_width` > 0 adds a convolutional head, `control_width` > 0 a
    convolutional stem for controls.

    With `autoregressive` False it is a plain bidirectional video diffusion model of the same blocks and keys: no
    recycled frame, no control, and every frame attends to the whole clip, so `window` is 0.
    `aapt_fast.models.aapt.convert.to_autoregressive` makes the other kind of it.
    """

    width: int
    heads: int
    layers: int
    grid: tuple[int, int]
    window: int
    latent_channels: int = 16
    patch: int = 2
    mlp_ratio: int = 4
    text_width: int = 0
    control: ControlConfig | None = None
    control_width: int = 0
    head_width: int = 0
    head_blocks: int = 2
    prediction: str = "velocity"
    shift: float = 24.0
    rope_theta: float = 10000.0
    temporal_interval: float = 1.0
    autoregressive: bool = True
    grids: tuple[TimeGrid, ...] = ()
    """Learned levels, for one number of evaluations each; for all others the levels are uniform, then shifted."""

    def __post_init__(self) -> None:
        require(self.layers >= 1, "layers", "at least 1", self.layers)
        require(self.heads >= 1, "heads", "at least 1", self.heads)
        require(self.width % self.heads == 0, "width", f"a multiple of heads = {self.heads}", self.width)
        require(self.head_dim % 2 == 0, "width / heads", "an even head dimension", self.head_dim)
        require(self.prediction in ("velocity", "frame"), "prediction", "velocity or frame", self.prediction)
        if self.autoregressive:
            require(self.window >= 1, "window", "at least 1 past frame", self.window)
        else:
            require(self.window == 0, "window", "0: a bidirectional model sees the whole clip", self.window)
            require(self.control is None, "control", "None: a bidirectional model has no control", self.control)
        counts = [grid.evaluations for grid in self.grids]
        require(len(set(counts)) == len(counts), "grids", "one for each number of evaluations", counts)
        for name, length in zip(("grid height", "grid width"), self.grid, strict=True):
            require(length % self.patch == 0, name, f"a multiple of patch = {self.patch}", length)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GeneratorConfig:
        """The configuration that `dataclasses.asdict` and JSON made `data` of.

        Raises TypeError for unknown fields, ValueError for bad values. Older files have `folded_t`: null stands for
        what every generator is now; a number, for weights of one timestep, is refused.
        """
        fields = dict(data)
        folded = fields.pop("folded_t", None)
        require(folded is None, "folded_t", "null: weights with a timestep folded into them are not supported", folded)
        if fields.get("control") is not None:
            control = dict(fields["control"])
            control["limbs"] = tuple(tuple(limb) for limb in control.get("limbs", ()))
            fields["control"] = ControlConfig(**control)
        grids = tuple(TimeGrid(tuple(grid["solver"]), tuple(grid["network"])) for grid in fields.get("grids", ()))
        return cls(**{**fields, "grid": tuple(fields["grid"]), "grids": grids})

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def eps(self) -> float:
        """Epsilon of the RMSNorm of queries and keys."""
        return 1e-6

    @property
    def window_rule(self) -> WindowRule:
        """Frames that a step sees: frame 1, at a saturated distance, and `window` frames before the new one."""
        return WindowRule(window=self.window, sink=1, sink_position="saturated")

    @property
    def tokens(self) -> int:
        """Tokens per frame at the native grid."""
        return (self.grid[0] // self.patch) * (self.grid[1] // self.patch)
