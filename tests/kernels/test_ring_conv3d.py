# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from aapt_fast.ops import norm_silu, pack_weight, reference, ring_conv3d
from aapt_fast.ops.kernels import stream_of, use_kernels, view
from aapt_fast.ops.ring_conv3d import most_normed, to_uint8
from aapt_fast.testing.cases import surrounded
from aapt_fast.testing.compare import assert_within_twice_torch

KERNEL = "ring_conv3d/portable"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SCHEDULES = pytest.mark.parametrize("schedule", range(3), ids=lambda seed: f"schedule {seed}")


@dataclass(frozen=True)
class Layer:
    """A layer of a decoder, on two frames a step."""

    kernel: tuple[int, int, int]
    rows: int  # of the weight
    mode: str = "same"
    frames_per_frame: int = 1
    channels: int = 48  # two slabs of 32, the second one half full
    size: tuple[int, int] = (9, 17)  # a tile is 8 or 16 rows by 16 columns
    batch: int = 1
    frames: int = 2

    @property
    def space(self) -> int:
        return 2 if self.mode in ("upsample", "shuffle") else 1

    @property
    def outputs(self) -> int:
        """O'"""
        return self.rows // (self.frames_per_frame * (4 if self.mode == "shuffle" else 1))


LAYERS = {
    "to RGB": Layer((3, 3, 3), 3),
    "16 columns": Layer((1, 3, 3), 16),
    "64 columns": Layer((3, 3, 3), 56, channels=16, size=(17, 17)),
    "96 columns, twice": Layer((1, 3, 3), 184),
    "128 columns": Layer((3, 3, 3), 120, channels=32, size=(9, 5)),
    "3x1x1": Layer((3, 1, 1), 24),
    "1x1x1": Layer((1, 1, 1), 136),
    "upsample": Layer((1, 3, 3), 24, "upsample"),
    "upsample, 5 columns": Layer((1, 3, 3), 5, "upsample", channels=16),
    "double time": Layer((3, 1, 1), 48, "double_time", 2),
    "shuffle": Layer((1, 1, 1), 32, "shuffle"),
    "shuffle into two frames": Layer((1, 1, 1), 192, "shuffle", 2),
    "shuffle, 3 channels": Layer((1, 1, 1), 12, "shuffle"),
}
NAMES = pytest.mark.parametrize("name", LAYERS)
Arguments = dict[str, Any]


def number(value: int, device: torch.device) -> Tensor:
    return torch.tensor([value], dtype=torch.int32, device=device)


def inputs(target, layer: Layer, dtype: torch.dtype, start: int | None = 1, out_start: int | None = 1) -> Arguments:
    """Arguments of the op. Slots that must not be read, and all of `out`, are NaN."""
    device = target.device
    height, width = layer.size
    seen = layer.frames + layer.kernel[0] - 1
    ring = torch.full((layer.batch, seen + 1, height, width, layer.channels), torch.nan, device=device)
    slots = [((start or 0) + i) % (seen + 1) for i in range(seen)]
    ring[:, slots] = torch.randn(layer.batch, seen, height, width, layer.channels, device=device)
    written = layer.frames * layer.frames_per_frame
    result = (layer.batch, written, layer.space * height, layer.space * width, layer.outputs)
    out = torch.full((result[0], written + 1, *result[2:]), torch.nan, device=device, dtype=dtype)
    weight = torch.randn(layer.rows, layer.channels, *layer.kernel, device=device)
    weight *= (layer.channels * weight[0, 0].numel()) ** -0.5
    return {
        "ring": surrounded(ring.to(dtype)),
        "start": None if start is None else number(start, device),
        "weight": surrounded(pack_weight(weight.to(dtype), layer.mode)),
        "bias": surrounded(torch.randn(layer.rows, device=device).to(dtype)),
        "residual": surrounded(torch.randn(result, device=device).to(dtype)),
        "out": surrounded(out),
        "out_start": None if out_start is None else number(out_start, device),
        "frames": layer.frames,
        "mode": layer.mode,
        "gamma": None,
        "normed": None,
        "normed_start": None,
        "eps": 1e-12,
    }


def fresh(arguments: Arguments) -> Arguments:
    """The same arguments with an `out` of NaN of their own."""
    return {**arguments, "out": surrounded(torch.full_like(arguments["out"], torch.nan))}


def run(target, arguments: Arguments, schedule: int = 0) -> Tensor:
    """The op by its kernel into a fresh `out` [B, S', H', W', O']."""
    arguments = fresh(arguments)
    with target.kernels(KERNEL, schedule=schedule):
        ring_conv3d(**arguments)
    return arguments["out"]


def assert_right(out: Tensor, arguments: Arguments) -> None:
    """Every slot: the written ones within twice torch's own error of the reference in float32, the others NaN."""
    plain = fresh(arguments)
    with use_kernels("none"):
        ring_conv3d(**plain)
    oracle = {name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in plain.items()}
    oracle["out"] = torch.full_like(oracle["out"], torch.nan)
    reference.ring_conv3d(*oracle.values())
    written = oracle["out"].isfinite()
    assert torch.equal(out.isfinite(), written) and written.any()
    assert_within_twice_torch(out[written], oracle["out"][written], plain["out"][written])


@DTYPES
@SCHEDULES
@NAMES
def test_equals_reference(name, schedule, dtype, target):
    arguments = inputs(target, LAYERS[name], dtype)
    assert_right(run(target, arguments, schedule), arguments)


@pytest.mark.parametrize("size", [(1, 1), (2, 33), (8, 16), (17, 3)], ids=str)
@pytest.mark.parametrize("name", ["to RGB", "64 columns", "96 columns, twice", "3x1x1", "upsample", "shuffle"])
def test_sizes(name, size, target):
    layer = replace(LAYERS[name], size=size, channels=16)
    arguments = inputs(target, layer, torch.bfloat16)
    assert_right(run(target, arguments, schedule=size[1]), arguments)


@pytest.mark.parametrize("channels", [16, 32, 80, 96])
@pytest.mark.parametrize("name", ["16 columns", "3x1x1", "1x1x1", "upsample"])
def test_channels(name, channels, target):
    arguments = inputs(target, replace(LAYERS[name], channels=channels, size=(5, 4)), torch.bfloat16)
    assert_right(run(target, arguments, schedule=channels), arguments)


@pytest.mark.parametrize("given", ["bias", "residual", "neither"])
@pytest.mark.parametrize("name", ["to RGB", "128 columns", "double time"])
def test_bias_and_residual_may_be_missing(name, given, target):
    arguments = inputs(target, LAYERS[name], torch.float16)
    for argument in ("bias", "residual"):
        if argument != given:
            arguments[argument] = None
    assert_right(run(target, arguments, schedule=1), arguments)


@pytest.mark.parametrize("name", ["16 columns", "double time", "upsample", "shuffle into two frames"])
def test_rows_of_a_batch_and_frames_of_a_step_stay_apart(name, target):
    layer = replace(LAYERS[name], batch=3, frames=3, size=(3, 4))
    arguments = inputs(target, layer, torch.bfloat16)
    assert_right(run(target, arguments, schedule=2), arguments)


@pytest.mark.parametrize("name", ["3x1x1", "double time", "to RGB"])
def test_the_same_bits_in_every_phase_of_the_rings(name, target):
    layer = replace(LAYERS[name], size=(5, 6))
    first = inputs(target, layer, torch.bfloat16, None, None)
    seen, written = layer.frames + layer.kernel[0] - 1, layer.frames * layer.frames_per_frame
    expected = run(target, first)[:, :written]
    slots, out_slots = seen + 1, written + 1
    for phase in range(max(slots, out_slots)):
        start, out_start = phase + 2 * slots, phase + 5 * out_slots  # counted modulo the slots
        arguments = {
            **first,
            "ring": surrounded(first["ring"].roll(phase, 1)),
            "start": number(start, target.device),
            "out_start": number(out_start, target.device),
        }
        found = run(target, arguments, schedule=phase)
        order = [(phase + t) % out_slots for t in range(written)]
        assert torch.equal(found[:, order], expected)
        assert found[:, (phase + written) % out_slots].isnan().all()


@NAMES
def test_writes_nothing_else(name, target):
    arguments = inputs(target, LAYERS[name], torch.float16)
    shape = arguments["out"].shape
    memory = torch.full((arguments["out"].numel() + 64,), torch.nan, device=target.device).half()
    arguments["out"] = memory[32:-32].view(shape)
    with target.kernels():
        given = {argument: view(x) if isinstance(x, Tensor) else x for argument, x in arguments.items()}
        target.module.ring_conv3d_portable(**given, stream=stream_of(target.device))
    assert memory.isfinite().sum() == arguments["out"][:, :-1].numel()
    assert_right(arguments["out"], arguments)


def test_rows_that_start_anywhere_are_written_element_by_element(target):
    layer = replace(LAYERS["16 columns"], size=(3, 4))
    arguments = inputs(target, layer, torch.bfloat16)
    expected = run(target, arguments)
    memory = torch.full((arguments["out"].numel() + 3,), torch.nan, device=target.device).bfloat16()
    shifted = {**arguments, "out": memory[3:].view(arguments["out"].shape)}
    with target.kernels(KERNEL):
        ring_conv3d(**shifted)
    assert torch.equal(shifted["out"].nan_to_num(), expected.nan_to_num()) and memory[:3].isnan().all()


# ---- the norm of a pixel in the same pass, and colours ----

NORMED = {
    "16 columns": LAYERS["16 columns"],
    "64 columns": LAYERS["64 columns"],
    "96 columns": Layer((1, 3, 3), 88, channels=16, size=(9, 5)),
    "128 columns": LAYERS["128 columns"],
    "3x1x1": LAYERS["3x1x1"],
    "upsample": LAYERS["upsample"],
}


def with_norm(target, arguments: Arguments, gamma_dtype: torch.dtype, eps: float = 1e-3) -> Arguments:
    """The same arguments with a norm, into a ring of two slots more than frames, which are NaN."""
    out, device = arguments["out"], target.device
    shape = (out.shape[0], out.shape[1] + 1, *out.shape[2:])
    return {
        **arguments,
        "gamma": surrounded(torch.randn(out.shape[4], device=device).to(gamma_dtype)),
        "normed": surrounded(torch.full(shape, torch.nan, device=device, dtype=out.dtype)),
        "normed_start": number(shape[1] - 1, device),
        "eps": eps,
    }


def run_with_norm(target, arguments: Arguments, schedule: int = 0) -> Arguments:
    """The arguments with fresh results, after the op has written them."""
    arguments = {**arguments, "normed": surrounded(torch.full_like(arguments["normed"], torch.nan))}
    arguments = arguments if arguments["out"] is None else fresh(arguments)
    with target.kernels(KERNEL, schedule=schedule):
        ring_conv3d(**arguments)
    return arguments


def assert_norm_of(out: Tensor, arguments: Arguments) -> None:
    """Frame t of `normed`, from its slot on, is the norm of frame t in slot t + 1 of `out`; other slots are NaN."""
    normed, start, eps = (arguments[name] for name in ("normed", "normed_start", "eps"))
    frames = torch.stack([out[:, (1 + t) % out.shape[1]] for t in range(out.shape[1] - 1)], 1)
    oracle, plain = (torch.full_like(normed, torch.nan, dtype=dtype) for dtype in (torch.float32, normed.dtype))
    reference.norm_silu(frames.float(), arguments["gamma"].float(), None, 0, eps, oracle, start)
    with use_kernels("none"):
        norm_silu(frames, arguments["gamma"], None, 0, eps, plain, start)
    assert torch.equal(normed.isnan(), oracle.isnan()) and normed.isfinite().any()
    assert_within_twice_torch(*(x.nan_to_num() for x in (normed, oracle, plain)))


@DTYPES
@SCHEDULES
@pytest.mark.parametrize("gamma_dtype", [torch.float32, None], ids=["float32 gamma", "gamma"])
@pytest.mark.parametrize("name", NORMED)
def test_norm_of_the_result(name, gamma_dtype, schedule, dtype, target):
    arguments = inputs(target, NORMED[name], dtype)
    out = run(target, arguments, schedule)
    arguments = with_norm(target, arguments, gamma_dtype or dtype)
    both = run_with_norm(target, arguments, schedule)
    assert torch.equal(both["out"].nan_to_num(), out.nan_to_num())
    assert_norm_of(out, both)
    alone = run_with_norm(target, {**arguments, "out": None, "out_start": None}, schedule)
    assert torch.equal(alone["normed"].nan_to_num(), both["normed"].nan_to_num())


def test_norm_of_pixels_of_zeros(target):
    """As in the first frames of a video: there is nothing to divide by."""
    arguments = inputs(target, replace(NORMED["16 columns"], size=(2, 3)), torch.bfloat16)
    arguments["ring"].zero_()
    arguments = {**arguments, "bias": None, "residual": None}
    normed = run_with_norm(target, with_norm(target, arguments, torch.float32, eps=1e-12))["normed"]
    assert normed.nan_to_num().eq(0).all() and normed.isfinite().any()


def test_the_norm_writes_nothing_else(target):
    arguments = with_norm(target, inputs(target, NORMED["96 columns"], torch.float16), torch.float16)
    memory = torch.full((arguments["normed"].numel() + 64,), torch.nan, device=target.device).half()
    arguments["normed"] = memory[32:-32].view(arguments["normed"].shape)
    with target.kernels(KERNEL):
        ring_conv3d(**arguments)
    assert memory.isfinite().sum() == arguments["normed"][:, :-2].numel()


@pytest.mark.parametrize("name", ["to RGB", "1x1x1", "upsample, 5 columns", "double time", "shuffle, 3 channels"])
@DTYPES
def test_colours(name, dtype, target):
    """Those of the rounded result, to the bit; NaN is 0. Other slots stay as they were."""
    arguments = inputs(target, replace(LAYERS[name], size=(9, 5)), dtype)
    arguments["residual"][0, 0, 0, 0, 0] = torch.nan
    out = run(target, arguments)
    colours = torch.full_like(out, 77, dtype=torch.uint8)
    with target.kernels(KERNEL):
        ring_conv3d(**{**arguments, "out": colours})
    expected = to_uint8(out)
    written = torch.zeros(out.shape[1], dtype=torch.bool)
    written[[(1 + t) % out.shape[1] for t in range(out.shape[1] - 1)]] = True
    assert out.nan_to_num().abs().max() > 1 and out[:, written].isnan().sum() == 1
    assert torch.equal(colours[:, written], expected[:, written]) and (colours[:, ~written] == 77).all()


UNSUPPORTED = {
    "float32": (
        lambda x: {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in x.items()},
        "ring: expected bfloat16 or float16 for this kernel, got float32",
    ),
    "channels": (
        lambda x: {**x, "ring": x["ring"][..., :24].contiguous(), "weight": x["weight"][..., :24].contiguous()},
        "ring: expected a multiple of 16 channels for this kernel, got 24",
    ),
    "a ring that starts anywhere": (
        lambda x: {**x, "ring": torch.zeros(x["ring"].numel() + 1).bfloat16()[1:].view(x["ring"].shape)},
        "ring: expected rows of adjacent elements that start at multiples of 16 bytes, got strides",
    ),
}


def test_a_norm_of_more_channels_than_a_block_has_is_refused(target):
    layer = replace(LAYERS["1x1x1"], size=(1, 2))
    arguments = with_norm(target, inputs(target, layer, torch.bfloat16), torch.float32)
    with target.kernels(KERNEL), pytest.raises(ValueError, match=r"normed: expected at most 128 channels .*, got 136"):
        assert most_normed(target.device) == 128
        ring_conv3d(**arguments)
    narrow = with_norm(target, inputs(target, replace(layer, rows=12), torch.bfloat16), torch.float32)
    with target.kernels(KERNEL), pytest.raises(ValueError, match=r"normed: expected a multiple of 8 .* got 12"):
        ring_conv3d(**narrow)


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported(change, message, target):
    """A kernel chosen by name names what it does not do; otherwise the composition runs."""
    arguments = change(inputs(target, replace(LAYERS["to RGB"], size=(3, 4)), torch.bfloat16))
    arguments = {name: x.to(target.device) if isinstance(x, Tensor) else x for name, x in arguments.items()}
    with target.kernels(KERNEL), pytest.raises(target.module.Unsupported, match=message):
        ring_conv3d(**arguments)
    ring_conv3d(**arguments)
    assert arguments["out"].isfinite().any()


BAD_ARGUMENTS = {
    "mode": ({"mode": "half"}, "mode: expected same or upsample or double_time or shuffle, got half"),
    "frames": ({"frames": 0}, "frames: expected at least 1, got 0"),
    "slots": ({"frames": 4}, "ring: expected at least 6 slots, got 5"),
    "ring": ({"ring": torch.ones(5, 3, 4, 48)}, r"ring: expected shape \[any, any, any, any, any\], got"),
    "ring strides": (
        {"ring": torch.ones(1, 5, 3, 48, 4).half().transpose(3, 4)},
        "ring: expected a contiguous tensor, got strides",
    ),
    "start": ({"start": torch.ones(2).int()}, r"start: expected shape \[1\], got \[2\]"),
    "start dtype": ({"start": torch.ones(1)}, "start: expected int32, got float32"),
    "weight": ({"weight": torch.ones(4, 27, 3, 48).half()}, r"weight: expected shape \[1, any, any, 48\], got"),
    "taps": ({"weight": torch.ones(1, 4, 3, 48).half()}, "weight: expected 27 or 9 or 3 or 1 taps for same, got 4"),
    "weight dtype": ({"weight": torch.ones(1, 27, 3, 48)}, "weight: expected float16, got float32"),
    "weight strides": (
        {"weight": torch.ones(1, 27, 48, 3).half().transpose(2, 3)},
        "weight: expected a contiguous tensor, got strides",
    ),
    "bias": ({"bias": torch.ones(4).half()}, r"bias: expected shape \[3\], got \[4\]"),
    "bias dtype": ({"bias": torch.ones(3)}, "bias: expected float16, got float32"),
    "residual": ({"residual": torch.ones(1, 3, 3, 4, 3).half()}, r"residual: expected shape \[1, 2, 3, 4, 3\], got"),
    "out": ({"out": torch.ones(1, 3, 3, 5, 3).half()}, r"out: expected shape \[1, any, 3, 4, any\], got"),
    "out channels": (
        {"out": torch.ones(1, 3, 3, 4, 2).half()},
        "out: expected as many channels as same makes of the rows of the weight, got 2",
    ),
    "out slots": ({"out": torch.ones(1, 1, 3, 4, 3).half()}, "out: expected at least 2 slots, got 1"),
    "out dtype": ({"out": torch.ones(1, 3, 3, 4, 3)}, "out: expected float16, got float32"),
    "out start": ({"out_start": torch.ones(1)}, "out_start: expected int32, got float32"),
    "no result": ({"out": None}, "out: expected a tensor, as normed is None, got None"),
    "gamma alone": ({"gamma": torch.ones(3)}, "gamma: expected None, got a tensor"),
    "no gamma": ({"normed": torch.ones(1, 3, 3, 4, 3).half()}, "gamma: expected a tensor, as for normed, got None"),
    "normed": (
        {"normed": torch.ones(1, 2, 3, 5, 3).half(), "gamma": torch.ones(3)},
        r"normed: expected shape \[1, any, 3, 4, 3\], got",
    ),
    "normed dtype": (
        {"normed": torch.ones(1, 2, 3, 4, 3), "gamma": torch.ones(3)},
        "normed: expected float16, got float32",
    ),
    "normed slots": (
        {"normed": torch.ones(1, 1, 3, 4, 3).half(), "gamma": torch.ones(3), "out": None},
        "normed: expected at least 2 slots, got 1",
    ),
    "gamma": (
        {"normed": torch.ones(1, 2, 3, 4, 3).half(), "gamma": torch.ones(4)},
        r"gamma: expected shape \[3\], got \[4\]",
    ),
    "a norm beside colours": (
        {"normed": torch.ones(1, 2, 3, 4, 3).half(), "gamma": torch.ones(3), "out": torch.ones(1, 3, 3, 4, 3).byte()},
        "out: expected None or the dtype of the ring beside normed, got uint8",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(change, message, target):
    """The compiled function checks for itself; the op checks its arguments before."""
    good = inputs(target, replace(LAYERS["to RGB"], size=(3, 4)), torch.float16)
    given = {name: view(x) if isinstance(x, Tensor) else x for name, x in {**good, **change}.items()}
    with pytest.raises(ValueError, match=message):
        target.module.ring_conv3d_portable(**given, stream=(0, 0))


def test_nothing_to_compute(target):
    arguments = inputs(target, replace(LAYERS["to RGB"], size=(0, 4)), torch.bfloat16)
    assert run(target, arguments).shape == (1, 3, 0, 4, 3)


def test_opcheck(target):
    arguments = inputs(target, replace(LAYERS["3x1x1"], size=(1, 2), channels=16), torch.bfloat16)
    arguments["out"].zero_()
    arguments["ring"].nan_to_num_()
    with target.kernels(KERNEL):
        torch.library.opcheck(torch.ops.aapt.ring_conv3d.default, tuple(arguments.values()))
