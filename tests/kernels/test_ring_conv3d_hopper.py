# SPDX-License-Identifier: Apache-2.0
"""ring_conv3d/sm90: every tile, and what its copies, products and stores have to get right at the edges."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from aapt_fast.ops import norm_silu, pack_weight, reference, ring_conv3d
from aapt_fast.ops.conv_tile import TILES as SHAPES
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.ops.ring_conv3d import most_normed, to_uint8
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

HOPPER = "ring_conv3d/sm90"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SCHEDULES = pytest.mark.parametrize("schedule", range(4), ids=lambda seed: f"schedule {seed}")
TILES = pytest.mark.parametrize("tile", SHAPES, ids=lambda tile: f"p{tile[0]}-o{tile[1]}")
MODES = {
    "3x3x3": ("same", (3, 3, 3), 1),
    "1x3x3": ("same", (1, 3, 3), 1),
    "3x1x1": ("same", (3, 1, 1), 1),
    "1x1x1": ("same", (1, 1, 1), 1),
    "upsample": ("upsample", (1, 3, 3), 1),
    "double_time": ("double_time", (3, 1, 1), 2),
    "shuffle": ("shuffle", (1, 1, 1), 1),
    "shuffle, two frames": ("shuffle", (1, 1, 1), 2),
}


@dataclass(frozen=True)
class Layer:
    """A layer of MODES on a ring where frames that it does not see, and all of `out`, are NaN."""

    name: str = "1x3x3"
    channels: int = 64
    out_channels: int = 24
    height: int = 9
    width: int = 18
    frames: int = 1
    batch: int = 1
    start: int = 1
    out_start: int = 1
    dtype: torch.dtype = torch.bfloat16
    extras: bool = True  # bias and residual

    def arguments(self, device: torch.device) -> dict[str, Tensor | int | str | None]:
        """Random arguments of the op, the same ones for every start."""
        generator = torch.Generator().manual_seed(self.channels)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype).to(device)

        mode, kernel, per_frame = MODES[self.name]
        space = 2 if mode in ("upsample", "shuffle") else 1
        outputs = self.out_channels * per_frame * (4 if mode == "shuffle" else 1)
        seen, written = self.frames + kernel[0] - 1, self.frames * per_frame
        ring = torch.full((self.batch, seen + 1, self.height, self.width, self.channels), torch.nan)
        ring = ring.to(self.dtype).to(device)
        ring[:, [(self.start + n) % (seen + 1) for n in range(seen)]] = random(
            self.batch, seen, self.height, self.width, self.channels
        )
        weight = random(outputs, self.channels, *kernel) * (self.channels * kernel[0] * kernel[1] * kernel[2]) ** -0.5
        size = (self.height * space, self.width * space, self.out_channels)
        out = torch.full((self.batch, written + 1, *size), torch.nan).to(self.dtype).to(device)
        return {
            "ring": ring,
            "start": torch.tensor([self.start], dtype=torch.int32, device=device),
            "weight": pack_weight(weight, mode),
            "bias": random(outputs) if self.extras else None,
            "residual": random(self.batch, written, *size) if self.extras else None,
            "out": out,
            "out_start": torch.tensor([self.out_start], dtype=torch.int32, device=device),
            "frames": self.frames,
            "mode": mode,
        }


def layer_norm(layer: Layer, device: torch.device) -> dict[str, Any]:
    """Arguments for the norm of a layer's result, into a ring of NaN with a slot more than `out`."""
    out: Any = layer.arguments(device)["out"]
    generator = torch.Generator().manual_seed(layer.out_channels)
    return {
        "gamma": torch.randn(layer.out_channels, generator=generator).to(device),
        "normed": torch.full((out.shape[0], out.shape[1] + 1, *out.shape[2:]), torch.nan).to(out),
        "normed_start": torch.tensor([2], dtype=torch.int32, device=device),
        "eps": 1e-3,
    }


Run = Callable[..., Tensor]


@pytest.fixture
def run(hopper, monkeypatch) -> Run:
    """Run a layer with the kernel: (layer, tile, schedule, clusters, its arguments) -> out [B, S', H', W', O']."""
    op = importlib.import_module("aapt_fast.ops.ring_conv3d")

    def run(
        layer: Layer, tile: tuple[int, int], schedule: int = 0, clusters: int = 2, given: dict[str, Any] | None = None
    ) -> Tensor:
        monkeypatch.setattr(op, "_tile_and_clusters", lambda *_: (tile, clusters))
        arguments = given or layer.arguments(hopper.device)
        with hopper.kernels(HOPPER, schedule=schedule):
            ring_conv3d(**arguments)
        return arguments["out"]

    return run


@pytest.fixture
def check(run, hopper) -> Callable[..., None]:
    """Compare a layer with the reference in float32: slots that are not written included."""

    def check(layer: Layer, tile: tuple[int, int], schedule: int = 0, clusters: int = 2) -> None:
        found = run(layer, tile, schedule, clusters)
        arguments = layer.arguments(hopper.device)
        oracle = {name: x.float() if _is_half(x) else x for name, x in arguments.items()}
        reference.ring_conv3d(*oracle.values())
        with use_kernels("none"):
            ring_conv3d(**arguments)
        assert torch.equal(found.isnan(), oracle["out"].isnan())
        assert_within_twice_torch(*(x.nan_to_num() for x in (found, oracle["out"], arguments["out"])))

    return check


def _is_half(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@TILES
@SCHEDULES
@DTYPES
@pytest.mark.parametrize("channels", [16, 64, 112], ids=lambda channels: f"C {channels}")
@pytest.mark.parametrize("name", MODES)
def test_equals_reference(name, channels, dtype, schedule, tile, check):
    check(Layer(name, channels, dtype=dtype), tile, schedule)


@TILES
@SCHEDULES
@pytest.mark.parametrize("size", [(1, 1), (8, 16), (7, 33), (17, 15), (33, 2)], ids=str)
def test_sizes(size, schedule, tile, check):
    check(Layer(height=size[0], width=size[1], channels=16), tile, schedule)


@TILES
@SCHEDULES
@pytest.mark.parametrize("outputs", [1, 3, 8, 36, 136, 200], ids=lambda outputs: f"O {outputs}")
def test_numbers_of_outputs(outputs, schedule, tile, check):
    check(Layer("1x1x1", out_channels=outputs), tile, schedule)


@TILES
@SCHEDULES
@pytest.mark.parametrize("clusters", [1, 2, 66])
def test_blocks_that_stay_for_many_tiles(clusters, schedule, tile, check):
    layer = Layer("upsample", 32, height=9, width=20, frames=2, batch=2, extras=False)
    check(layer, tile, schedule, clusters)


@pytest.mark.parametrize("name", ["3x3x3", "double_time"])
def test_every_phase_of_the_ring_gives_the_same_bits(name, run):
    layer = Layer(name, channels=16, frames=2)
    found = []
    for start in range(5):
        out = run(replace(layer, start=start, out_start=start), (128, 128), schedule=start)
        found.append(out.roll(-start, 1))  # the first frame to slot 0
    assert all(torch.equal(found[0].nan_to_num(), other.nan_to_num()) for other in found[1:])
    assert found[0].isnan().any((2, 3, 4)).logical_not().tolist() == [[True] * (out.shape[1] - 1) + [False]]


def test_starts_count_modulo_the_slots(run):
    near, far = (run(Layer(start=start, out_start=start), (256, 128)) for start in (1, 2001))
    assert_near(near, far, 0)


@TILES
def test_every_schedule_gives_the_same_bits(tile, run):
    layer = Layer("1x3x3", channels=32, frames=2)
    first, *others = (run(layer, tile, schedule).nan_to_num() for schedule in range(6))
    assert all(torch.equal(first, other) for other in others)


@TILES
@SCHEDULES
@DTYPES
@pytest.mark.parametrize("name", ["3x3x3", "1x1x1", "upsample"])
@pytest.mark.parametrize("outputs", [8, 56, 0], ids=["O 8", "O 56", "all outputs of a tile"])
def test_norm_of_the_result(outputs, name, dtype, schedule, tile, run, hopper):
    """The result with its norm, and the norm alone."""
    layer = Layer(name, 16, outputs or tile[1], dtype=dtype)
    out = run(layer, tile, schedule)
    arguments = {**layer.arguments(hopper.device), **layer_norm(layer, hopper.device)}
    found = run(layer, tile, schedule, given=arguments)
    assert torch.equal(found.nan_to_num(), out.nan_to_num())
    assert_norm_of(out, arguments)
    alone = {**arguments, "normed": torch.full_like(arguments["normed"], torch.nan), "out": None}
    run(layer, tile, schedule, given=alone)
    assert torch.equal(alone["normed"].nan_to_num(), arguments["normed"].nan_to_num())


def assert_norm_of(out: Tensor, arguments: dict[str, Any]) -> None:
    """`normed` has the norm of the frame in slot 1 of `out`; other slots are NaN."""
    normed, gamma, start, eps = (arguments[name] for name in ("normed", "gamma", "normed_start", "eps"))
    frame = out[:, 1:2].contiguous()
    oracle, plain = (torch.full_like(normed, torch.nan, dtype=dtype) for dtype in (torch.float32, normed.dtype))
    reference.norm_silu(frame.float(), gamma, None, 0, eps, oracle, start)
    with use_kernels("none"):
        norm_silu(frame, gamma, None, 0, eps, plain, start)
    assert torch.equal(normed.isnan(), oracle.isnan()) and normed.isfinite().any()
    assert_within_twice_torch(*(x.nan_to_num() for x in (normed, oracle, plain)))


def test_a_norm_of_more_outputs_than_a_tile_has_is_refused(run, hopper):
    layer = Layer("1x1x1", 16, 72)
    with hopper.kernels(HOPPER):
        assert most_normed(hopper.device) == 192
    arguments = {**layer.arguments(hopper.device), **layer_norm(layer, hopper.device)}
    with pytest.raises(ValueError, match=r"normed: expected at most as many channels as a tile, 64, .* got 72"):
        run(layer, (512, 64), given=arguments)


@pytest.mark.parametrize(("name", "channels"), [("3x3x3", 3), ("1x1x1", 12), ("double_time", 16), ("shuffle", 8)])
def test_colours(name, channels, run, hopper):
    """Those of the rounded result, to the bit."""
    layer = Layer(name, 16, channels)
    out = run(layer, (512, 64))
    colours = torch.full_like(out, 77, dtype=torch.uint8)
    run(layer, (512, 64), given={**layer.arguments(hopper.device), "out": colours})
    written = ~out.isnan().any((0, 2, 3, 4))
    assert written.sum() == out.shape[1] - 1 and out[:, written].abs().max() > 1
    assert torch.equal(colours[:, written], to_uint8(out)[:, written]) and (colours[:, ~written] == 77).all()


def test_a_tensor_that_starts_between_two_vectors(hopper, run):
    """Rows of 8 channels, at an address that is no multiple of 16."""
    arguments = Layer(out_channels=8).arguments(hopper.device)
    out = arguments["out"]
    shifted = torch.full((out.numel() + 1,), torch.nan, dtype=out.dtype, device=out.device)[1:].view(out.shape)
    with hopper.kernels(HOPPER):
        ring_conv3d(**{**arguments, "out": shifted})
    assert_near(shifted, run(Layer(out_channels=8), (512, 64)), 0)


def test_a_shuffle_of_few_channels_is_refused(hopper, run):
    with pytest.raises(ValueError, match="out: expected a multiple of 8 channels for this kernel and mode, got 3"):
        run(Layer("shuffle", out_channels=3), (512, 64))


@pytest.mark.parametrize(
    ("tile", "clusters", "message"),
    [
        ((0, 64), 1, "pixels, outputs: expected 512, 64 or .*, got 0, 64"),
        ((512, 64), 0, "clusters: expected at least 1, got 0"),
    ],
)
def test_wrong_launches_are_refused(tile, clusters, message, run):
    with pytest.raises(ValueError, match=message):
        run(Layer(), tile, clusters=clusters)
