# SPDX-License-Identifier: Apache-2.0
"""`ring_conv3d` against `causal_conv3d` and torch's own operators on whole clips."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.ops import causal_conv3d, norm_silu, pack_weight, reference, ring_conv3d
from aapt_fast.ops.ring_conv3d import convolve_phases, most_normed, to_uint8
from aapt_fast.testing.cases import DEVICES, every_second
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

BATCH, HEIGHT, WIDTH, CHANNELS = 2, 5, 4, 3
KERNELS = [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)]
# mode -> kernel size, and rows of the weight for two output channels
MODES = {
    "same": ((3, 3, 3), 2),
    "upsample": ((1, 3, 3), 2),
    "double_time": ((3, 1, 1), 4),
    "shuffle": ((1, 1, 1), 8),
    "shuffle, two frames": ((1, 1, 1), 16),
}


def number(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int32)


def layer(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, str]:
    """Weight [O, C, kt, kh, kw], bias [O] and mode of a layer of MODES."""
    size, rows = MODES[name]
    scale = (CHANNELS * size[0] * size[1] * size[2]) ** -0.5
    return (torch.randn(rows, CHANNELS, *size) * scale).to(dtype), torch.randn(rows).to(dtype), name.split(",")[0]


def whole_clip(clip: Tensor, weight: Tensor, bias: Tensor | None, mode: str) -> Tensor:
    """The layer on a clip [B, T, H, W, C] with zeros before it, by torch's own operators."""
    video = clip.permute(0, 4, 1, 2, 3)
    if mode == "upsample":
        video = F.interpolate(video, scale_factor=(1, 2, 2), mode="nearest")
    y = causal_conv3d(video, weight, bias)
    batch, columns, length, height, width = y.shape
    if mode == "double_time":
        y = y.view(batch, 2, columns // 2, length, height, width).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
    if mode == "shuffle":
        y = y.view(batch, 2, 2, columns // 8, 2, length, height, width)  # row, column, frame, channel
        y = y.permute(0, 4, 5, 3, 6, 1, 7, 2).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return y.permute(0, 2, 3, 4, 1)


class Stream:
    """A layer between two rings, one step after the other, from any slots on."""

    def __init__(self, weight: Tensor, bias: Tensor | None, mode: str, step: int, spare: int = 1, phase: int = 0):
        self.weight, self.bias, self.mode, self.step = pack_weight(weight, mode), bias, mode, step
        self.past = weight.shape[2] - 1
        self.ring = torch.zeros(BATCH, step + self.past + spare, HEIGHT, WIDTH, CHANNELS, dtype=weight.dtype)
        self.start = number(phase % self.ring.shape[1])

    def take(self, clip: Tensor, residual: Tensor | None = None) -> Tensor:
        """Frames [B, T, H, W, C] -> [B, T', H', W', O'] of one step."""
        slots = self.ring.shape[1]
        for t in range(self.step):
            self.ring[:, (int(self.start) + self.past + t) % slots] = clip[:, t]
        written = self.step * (2 if self.mode == "double_time" else self.weight.shape[2] // 8 or 1)
        space = 2 if self.mode in ("upsample", "shuffle") else 1
        out = torch.full((BATCH, written + 1, space * HEIGHT, space * WIDTH, 2), torch.nan, dtype=self.ring.dtype)
        first = number((int(self.start) + 1) % (written + 1))
        ring_conv3d(self.ring, self.start, self.weight, self.bias, residual, out, first, self.step, mode=self.mode)
        self.start = (self.start + self.step) % slots
        order = [(int(first) + t) % (written + 1) for t in range(written)]
        assert out[:, (int(first) + written) % (written + 1)].isnan().all()  # the slot that no frame belongs to
        return out[:, order]


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("name", MODES)
def test_steps_of_a_stream_equal_the_whole_clip_in_every_phase_of_the_ring(name, step):
    weight, bias, mode = layer(name)
    clip = torch.randn(BATCH, 6, HEIGHT, WIDTH, CHANNELS)
    expected = whole_clip(clip, weight, bias, mode)
    for phase in range(step + weight.shape[2]):
        stream = Stream(weight, bias, mode, step, phase=phase)
        pieces = [stream.take(piece) for piece in clip.split(step, dim=1)]
        assert_near(torch.cat(pieces, 1), expected, 1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_kernel_size_equals_a_causal_convolution(kernel):
    weight, bias = torch.randn(5, CHANNELS, *kernel), torch.randn(5)
    past = kernel[0] - 1
    ring = torch.randn(BATCH, 3 + past, HEIGHT, WIDTH, CHANNELS)
    out = torch.empty(BATCH, 3, HEIGHT, WIDTH, 5)
    ring_conv3d(ring, None, pack_weight(weight), bias, None, out, None, 3)
    frames = ring.permute(0, 4, 1, 2, 3)
    expected = causal_conv3d(frames[:, :, past:], weight, bias, frames[:, :, :past] if past else None)
    assert_near(out, expected.permute(0, 2, 3, 4, 1), 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("extras", ["bias and residual", "neither"])
@pytest.mark.parametrize("name", MODES)
def test_equals_the_reference(name, extras, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    weight, bias, mode = layer(name)
    space, per_frame = 2 if mode in ("upsample", "shuffle") else 1, {"double_time": 2, "shuffle, two frames": 2}
    written = 2 * per_frame.get(name, per_frame.get(mode, 1))
    ring = torch.randn(BATCH, 5, HEIGHT, WIDTH, CHANNELS)
    residual = torch.randn(BATCH, written, space * HEIGHT, space * WIDTH, 2)
    found = torch.full((BATCH, 5, *residual.shape[2:]), torch.nan)
    given = [ring, number(4), pack_weight(weight, mode), bias, residual, found, number(3)]
    if extras == "neither":
        given[3] = given[4] = None
    given = [x if x is None else x.to(device) for x in given]
    expected = given[5].clone()
    ring_conv3d(*given, 2, mode)
    reference.ring_conv3d(*given[:5], expected, given[6], 2, mode)
    assert_near(given[5], expected, 1e-5)  # the pattern of NaN included: no other slot was touched


def test_frames_that_are_not_seen_may_be_anything():
    weight, bias, mode = layer("same")
    ring = torch.full((BATCH, 7, HEIGHT, WIDTH, CHANNELS), torch.nan)
    ring[:, [5, 6, 0, 1]] = torch.randn(BATCH, 4, HEIGHT, WIDTH, CHANNELS)
    out = torch.full((BATCH, 2, HEIGHT, WIDTH, 2), torch.nan)
    ring_conv3d(ring, number(5), pack_weight(weight), bias, None, out, None, 2, mode)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", MODES)
def test_starts_count_modulo_the_slots(name):
    weight, bias, mode = layer(name)
    ring = torch.randn(BATCH, 3, HEIGHT, WIDTH, CHANNELS)
    space = 2 if mode in ("upsample", "shuffle") else 1
    outs = [torch.zeros(BATCH, 3, space * HEIGHT, space * WIDTH, 2) for _ in range(2)]
    for out, starts in zip(outs, ((2, 1), (2 + 3 * 1000, 1 + 3 * 7)), strict=True):
        ring_conv3d(ring, number(starts[0]), pack_weight(weight, mode), bias, None, out, number(starts[1]), 1, mode)
    assert torch.equal(*outs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODES)
def test_half_precision_is_within_twice_torch(name, dtype):
    weight, bias, mode = layer(name, dtype)
    clip = torch.randn(BATCH, 2, HEIGHT, WIDTH, CHANNELS).to(dtype)
    found = Stream(weight, bias, mode, 2).take(clip)
    assert found.dtype == dtype
    oracle = whole_clip(clip.double(), weight.double(), bias.double(), mode)
    packed = pack_weight(weight, mode).double()  # the taps of a phase are summed before they are rounded
    if mode == "upsample":
        oracle = convolve_phases(clip.double().flatten(0, 1), packed, bias.double()).unflatten(0, (BATCH, 2))
    assert_within_twice_torch(found, oracle, whole_clip(clip, weight, bias, mode))


def test_rows_bring_the_channels_of_another_shuffle_into_order():
    """Channels ordered (channel, frame, row, column), as a pixel shuffle has them, instead of (row, column, frame)."""
    weight, bias = torch.randn(16, CHANNELS, 1, 1, 1), torch.randn(16)
    rows = torch.arange(16).view(2, 2, 2, 2).permute(2, 3, 1, 0).flatten()
    ring = torch.randn(BATCH, 2, HEIGHT, WIDTH, CHANNELS)
    out = torch.empty(BATCH, 4, 2 * HEIGHT, 2 * WIDTH, 2)
    ring_conv3d(ring, None, pack_weight(weight, "shuffle", rows), bias[rows], None, out, None, 2, "shuffle")
    y = F.conv3d(ring.permute(0, 4, 1, 2, 3), weight, bias).view(BATCH, 2, 2, 2, 2, 2, HEIGHT, WIDTH)
    expected = y.permute(0, 5, 2, 6, 3, 7, 4, 1).reshape(out.shape)
    assert_near(out, expected, 1e-5)


def test_rows_may_leave_frames_out():
    weight, _, mode = layer("shuffle, two frames")
    second = [row for row in range(16) if row // 2 % 2 == 1]
    ring = torch.randn(BATCH, 2, HEIGHT, WIDTH, CHANNELS)
    both, one = (torch.empty(BATCH, frames, 2 * HEIGHT, 2 * WIDTH, 2) for frames in (4, 2))
    ring_conv3d(ring, None, pack_weight(weight, mode), None, None, both, None, 2, mode)
    ring_conv3d(ring, None, pack_weight(weight, mode, second), None, None, one, None, 2, mode)
    assert_near(one, both[:, 1::2], 1e-6)


@pytest.mark.parametrize("name", MODES)
def test_channels_are_padded_with_zeros(name):
    weight, _, mode = layer(name)
    packed = pack_weight(weight, mode, channels=16)
    assert packed.shape[3] == 16 and not packed[..., CHANNELS:].any()
    assert_near(packed[..., :CHANNELS], pack_weight(weight, mode), 1e-6)


def test_a_weight_of_two_dimensions_is_one_with_a_single_frame():
    weight, _, _ = layer("upsample")
    assert torch.equal(pack_weight(weight[:, :, 0], "upsample"), pack_weight(weight, "upsample"))
    assert torch.equal(pack_weight(weight[:, :, 0]), pack_weight(weight))


def test_opcheck():
    weight, bias, mode = layer("same")
    ring, out = torch.randn(BATCH, 4, HEIGHT, WIDTH, CHANNELS), torch.zeros(BATCH, 3, HEIGHT, WIDTH, 2)
    normed = torch.zeros(BATCH, 2, HEIGHT, WIDTH, 2)
    for norm in ((None, None, None, 0.0), (torch.ones(2), normed, number(1), 1e-12)):
        for given in (out, None) if norm[0] is not None else (out,):
            arguments = (ring, number(3), pack_weight(weight), bias, None, given, number(2), 2, mode, *norm)
            torch.library.opcheck(torch.ops.aapt.ring_conv3d.default, arguments)


def test_compile_keeps_the_mutation():
    weight, bias, mode = layer("double_time")
    ring, packed = torch.randn(BATCH, 3, HEIGHT, WIDTH, CHANNELS), pack_weight(weight, mode)

    def doubled(out: Tensor) -> Tensor:
        ring_conv3d(2 * ring, number(1), packed, bias, None, out, None, 1, mode)
        return out + 1

    outs = [torch.zeros(BATCH, 2, HEIGHT, WIDTH, 2) for _ in range(2)]
    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert_near(compiled(outs[0]), doubled(outs[1]), 1e-6)
    assert_near(*outs, 1e-6)


# ---- what a convolution does with its result ----


def convolved(name: str, dtype: torch.dtype = torch.float32, **more: object) -> dict[str, object]:
    """Arguments of a layer of MODES on two frames, with a residual; `out` and `normed` have a slot to spare."""
    weight, bias, mode = layer(name, dtype)
    space = 2 if mode == "upsample" else 1
    size = (space * HEIGHT, space * WIDTH, 2)
    return {
        "ring": torch.randn(BATCH, 5, HEIGHT, WIDTH, CHANNELS).to(dtype),
        "start": number(4),
        "weight": pack_weight(weight, mode),
        "bias": bias,
        "residual": torch.randn(BATCH, 2, *size).to(dtype),
        "out": torch.full((BATCH, 3, *size), torch.nan, dtype=dtype),
        "out_start": number(2),
        "frames": 2,
        "mode": mode,
        **more,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["same", "upsample"])
def test_the_norm_is_norm_silu_of_the_result(name, dtype):
    arguments = convolved(name, dtype)
    out, gamma = arguments["out"], torch.randn(2)
    normed = torch.full((BATCH, 4, *out.shape[2:]), torch.nan, dtype=dtype)
    alone, expected = normed.clone(), normed.clone()
    ring_conv3d(**arguments, gamma=gamma, normed=normed, normed_start=number(3), eps=1e-3)
    norm_silu(out[:, [2, 0]].contiguous(), gamma, None, 0, 1e-3, expected, number(3))
    assert_near(normed, expected, 1e-6)
    ring_conv3d(
        **{**arguments, "out": None, "out_start": None}, gamma=gamma, normed=alone, normed_start=number(3), eps=1e-3
    )
    assert torch.equal(alone.nan_to_num(), normed.nan_to_num())
    oracle, plain = torch.full_like(normed, torch.nan), torch.full_like(out, torch.nan)
    reference.ring_conv3d(*{**arguments, "out": plain}.values(), gamma, oracle, number(3), 1e-3)
    assert_near(normed, oracle, 1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("name", MODES)
def test_colours_are_those_of_the_rounded_result(name):
    weight, bias, mode = layer(name, torch.bfloat16)
    space, written = 2 if mode in ("upsample", "shuffle") else 1, {"double_time": 4, "shuffle, two frames": 4}
    ring = torch.randn(BATCH, 5, HEIGHT, WIDTH, CHANNELS).bfloat16()
    wide = torch.empty(BATCH, written.get(name, 2), space * HEIGHT, space * WIDTH, 2, dtype=torch.bfloat16)
    colours = torch.empty_like(wide, dtype=torch.uint8)
    for out in (wide, colours):
        ring_conv3d(ring, number(4), pack_weight(weight, mode), bias, None, out, None, 2, mode)
    assert torch.equal(colours, to_uint8(wide)) and wide.abs().max() > 1
    oracle = torch.empty_like(colours)
    reference.ring_conv3d(ring.float(), number(4), pack_weight(weight, mode).float(), bias, None, oracle, None, 2, mode)
    assert (oracle.int() - colours.int()).abs().max() <= 2  # bfloat16 has 256 numbers between 1 and 2


def test_colours_of_single_numbers():
    given = torch.tensor([-1, 1, 0, -torch.inf, 7, torch.nan, 2 / 127.5 - 1])
    assert to_uint8(given).tolist() == [0, 255, 128, 0, 255, 0, 2]  # halves to even


def test_without_a_kernel_there_is_no_limit_to_the_channels_of_a_norm():
    assert most_normed(torch.device("cpu")) is None


def good() -> dict[str, object]:
    weight, bias, _ = layer("same")
    return {
        "ring": torch.randn(BATCH, 4, HEIGHT, WIDTH, CHANNELS),
        "start": number(0),
        "weight": pack_weight(weight),
        "bias": bias,
        "residual": torch.zeros(BATCH, 2, HEIGHT, WIDTH, 2),
        "out": torch.zeros(BATCH, 2, HEIGHT, WIDTH, 2),
        "out_start": number(0),
        "frames": 2,
        "mode": "same",
    }


def test_gradients_are_refused():
    arguments = good()
    arguments["ring"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"ring_conv3d has no backward: .* \(training uses causal_conv3d\)"):
        ring_conv3d(**arguments)
    with torch.no_grad():
        ring_conv3d(**arguments)


BAD_INPUTS = {
    "mode": ({"mode": "half"}, "mode: expected same or upsample or double_time or shuffle, got 'half'"),
    "no frames": ({"frames": 0}, "frames: expected at least 1, got 0"),
    "too few slots": ({"frames": 3}, "ring: expected at least 5 slots, got 4"),
    "ring dimensions": (
        {"ring": torch.ones(2, 4, 5, 4)},
        r"ring: expected shape \[B, S, H, W, 3\], got \[2, 4, 5, 4\]",
    ),
    "ring dtype": ({"ring": torch.ones(2, 4, 5, 4, 3).int()}, "ring: expected torch.float32 or .*, got torch.int32"),
    "ring strides": (
        {"ring": every_second(torch.ones(2, 4, 5, 4, 3))},
        "ring: expected a contiguous tensor, got strides",
    ),
    "start dtype": ({"start": torch.tensor([0])}, r"start: expected torch\.int32, got torch\.int64"),
    "start shape": ({"start": torch.tensor(0).int()}, r"start: expected shape \[1\], got \[\]"),
    "weight phases": (
        {"weight": torch.ones(4, 4, 2, 3)},
        r"weight: expected shape \[1, taps, O, C\], got \[4, 4, 2, 3\]",
    ),
    "weight taps": ({"weight": torch.ones(1, 8, 2, 3)}, "weight: expected 27 or 9 or 3 or 1 taps for 'same', got 8"),
    "weight dtype": ({"weight": torch.ones(1, 9, 2, 3).half()}, r"weight: expected torch\.float32, got torch\.float16"),
    "weight device": (
        {"weight": torch.ones(1, 9, 2, 3, device="meta")},
        "weight: expected a tensor on cpu, got one on meta",
    ),
    "weight strides": (
        {"weight": torch.ones(1, 9, 3, 2).transpose(2, 3)},
        "weight: expected a contiguous tensor, got strides",
    ),
    "bias": ({"bias": torch.ones(3)}, r"bias: expected shape \[2\], got \[3\]"),
    "residual": ({"residual": torch.ones(2, 3, 5, 4, 2)}, r"residual: expected shape \[2, 2, 5, 4, 2\], got"),
    "residual strides": (
        {"residual": torch.ones(2, 2, 5, 2, 4).transpose(3, 4)},
        "residual: expected a contiguous tensor, got strides",
    ),
    "out size": ({"out": torch.ones(2, 2, 5, 5, 2)}, r"out: expected shape \[2, S', 5, 4, O'\], got \[2, 2, 5, 5, 2\]"),
    "out channels": ({"out": torch.ones(2, 2, 5, 4, 1)}, "out: expected 2 channels, as the weight has 2 rows, got 1"),
    "out slots": ({"out": torch.ones(2, 1, 5, 4, 2)}, "out: expected at least 2 slots, got 1"),
    "out dtype": ({"out": torch.ones(2, 2, 5, 4, 2).half()}, r"out: expected torch.float32 or torch.uint8, got torch"),
    "no result": ({"out": None}, "out: expected a tensor, as normed is None, got None"),
    "normed size": (
        {"gamma": torch.ones(2), "normed": torch.ones(2, 2, 5, 5, 2)},
        r"normed: expected shape \[2, S', 5, 4, O'\], got \[2, 2, 5, 5, 2\]",
    ),
    "normed slots": (
        {"gamma": torch.ones(2), "normed": torch.ones(2, 1, 5, 4, 2), "out": None},
        "normed: expected at least 2 slots, got 1",
    ),
    "normed dtype": (
        {"gamma": torch.ones(2), "normed": torch.ones(2, 2, 5, 4, 2).half()},
        r"normed: expected torch\.float32, got torch\.float16",
    ),
    "normed_start": (
        {"gamma": torch.ones(2), "normed": torch.ones(2, 2, 5, 4, 2), "normed_start": torch.ones(1)},
        r"normed_start: expected torch\.int32, got torch\.float32",
    ),
    "no gamma": ({"normed": torch.ones(2, 2, 5, 4, 2)}, "gamma: expected a tensor, as there is normed, got None"),
    "gamma alone": ({"gamma": torch.ones(2)}, "gamma: expected None, as normed is None, got a tensor"),
    "gamma shape": (
        {"gamma": torch.ones(3), "normed": torch.ones(2, 2, 5, 4, 2)},
        r"gamma: expected shape \[2\], got \[3\]",
    ),
    "a norm beside colours": (
        {"gamma": torch.ones(2), "normed": torch.ones(2, 2, 5, 4, 2), "out": torch.ones(2, 2, 5, 4, 2).byte()},
        r"out: expected None or torch.float32 beside normed, got torch\.uint8",
    ),
    "out_start": ({"out_start": torch.ones(2).int()}, r"out_start: expected shape \[1\], got \[2\]"),
}


def test_a_norm_is_for_whole_pixels():
    weight, bias, mode = layer("double_time")
    normed = torch.ones(BATCH, 4, HEIGHT, WIDTH, 2)
    given = (torch.ones(BATCH, 4, HEIGHT, WIDTH, CHANNELS), None, pack_weight(weight, mode), bias, None, None, None, 2)
    with pytest.raises(ValueError, match="normed: expected None for 'double_time', got a tensor"):
        ring_conv3d(*given, mode, torch.ones(2), normed)


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(change, message):
    ring_conv3d(**good())
    with pytest.raises(ValueError, match=message):
        ring_conv3d(**{**good(), **change})


BAD_WEIGHTS = {
    "mode": ((torch.ones(2, 3, 3, 3, 3), "half"), "mode: expected same or"),
    "dimensions": ((torch.ones(2, 3, 3), "same"), r"weight: expected shape \[O, C, kt, kh, kw\], got \[2, 3, 3\]"),
    "size": (
        (torch.ones(2, 3, 3, 3, 3), "upsample"),
        r"weight: expected a kernel of size \(1, 3, 3\) for mode 'upsample'",
    ),
    "width": ((torch.ones(2, 3, 3, 5, 5), "same"), r"weight: expected .* for mode 'same', got \(3, 5, 5\)"),
    "channels": ((torch.ones(2, 3, 1, 1, 1), "same", None, 2), "channels: expected at least 3, got 2"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_that_cannot_be_packed(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack_weight(*arguments)
