# SPDX-License-Identifier: Apache-2.0
"""Bugs of the kernels of decoders, as in test_planted_bugs.py: convolutions between rings, and norms into rings."""

from __future__ import annotations

import pytest

from aapt_fast.testing.planting import Bug
from aapt_fast.testing.targets import EMULATED_BUILD

CONV_TESTS = "test_ring_conv3d.py"
# Blocks of 16 and 64 columns, whose taps lie beside the pixel, and blocks for single pixels.
NARROW = {
    "source": "ring_conv3d/instantiations/bf16_narrow.cu",
    "tests": CONV_TESTS,
    "select": "(RGB or upsample) and not torch.float16",
}
POINT = {
    "source": "ring_conv3d/instantiations/bf16_pointwise.cu",
    "tests": CONV_TESTS,
    "select": "(3x1x1 or double or shuffle) and not torch.float16",
}
CONV_CHECKS = {"source": "ring_conv3d/arguments.cpp", "tests": CONV_TESTS, "select": "anywhere"}
PIXEL = {
    "source": "norm_silu/instantiations/bf16.cu",
    "tests": "test_norm_silu.py",
    "select": "channels and not torch.float",
}
GROUPS = {**PIXEL, "select": "group and not torch.float and not channels"}
# Norms in blocks of 96 and 128 columns, of which two warps have half each, and of 16 and 64 columns.
WIDE_NORM = {
    "source": "ring_conv3d/instantiations/bf16_wide.cu",
    "tests": CONV_TESTS,
    "select": "norm_of_the_result and (96 or 128) and not torch.float16",
}
NARROW_NORM = {**NARROW, "select": "norm_of_the_result and (64 or upsample) and not torch.float16"}
COLOURS = {**NARROW, "select": "colours and RGB and not torch.float16"}
CONV, CONFIG, OUTPUT, CONV_STORE = (
    f"ring_conv3d/{name}" for name in ("kernel_portable.cuh", "config.h", "output.cuh", "store_portable.cuh")
)
RMS_SILU = "common/rms_silu.cuh"
CONV_ARGUMENTS = "ring_conv3d/arguments.cpp"
PIXEL_NORM, GROUP_NORM, FRAME = (f"norm_silu/{name}.cuh" for name in ("kernel_portable", "group_norm", "frame"))

BUGS = [
    # ---- stages of ring_conv3d ----
    Bug(
        "no barrier before operands are overwritten",
        CONV,
        "arch::cp_async_wait<Config::kAhead - 1>();\n    arch::sync_threads();",
        "arch::cp_async_wait<Config::kAhead - 1>();",
        **NARROW,
    ),
    Bug("no wait for the operands", CONV, "arch::cp_async_wait<Config::kAhead - 1>();", "", **NARROW),
    Bug(
        "a wait that leaves the operands on their way",
        CONV,
        "cp_async_wait<Config::kAhead - 1>",
        "cp_async_wait<Config::kAhead>",
        **NARROW,
    ),
    Bug("a stage too few for weights", CONFIG, "kWeightStages = kAhead + 1", "kWeightStages = kAhead", **NARROW),
    Bug("one stage for patches with a halo", CONFIG, "kHalo ? 2 : kAhead + 1", "kHalo ? 1 : kAhead + 1", **NARROW),
    Bug(
        "a halo that is not loaded again",
        CONV,
        "if (step.needs_patch()) load_patch",
        "if (step.slab == 0) load_patch",
        **NARROW,
    ),
    Bug(
        "no barrier before the result replaces the operands",
        CONV,
        "arch::sync_threads();  // the operands",
        "// the operands",
        **NARROW,
    ),
    Bug(
        "no barrier between writing and reading the result",
        CONV_STORE,
        "arch::sync_warp();  // the result",
        "// the result",
        **NARROW,
    ),
    # ---- what ring_conv3d reads ----
    Bug("an unguarded border above", CONV, "y >= 0 && y <", "y <", **NARROW),
    Bug(
        "channels of the next pixel",
        CONV,
        " && channel < params.channels;\n    arch::cp_async_16(patch",
        ";\n    arch::cp_async_16(patch",
        **NARROW,
    ),
    Bug(
        "taps across and down change places",
        CONV,
        "tile.warp_row + step.row +",
        "tile.warp_row + step.column +",
        **NARROW,
    ),
    Bug(
        "a tap off by one",
        CONV,
        "tile.phase % 2 - params.kernel_w / 2",
        "tile.phase % 2 - params.kernel_w / 3",
        **NARROW,
    ),
    Bug(
        "the wrong phase of an upsampling",
        CONV,
        "tile.phase / 2 - params.kernel_h",
        "tile.phase % 2 - params.kernel_h",
        **NARROW,
    ),
    Bug("a stale frame", CONV, "tile.first_slot + step.frame;", "tile.first_slot;", **NARROW),
    Bug(
        "the first frame of the ring is always the oldest",
        OUTPUT,
        "(first + number) % slots",
        "number % slots",
        **POINT,
    ),
    Bug(
        "all rows of a batch see the first one",
        CONV,
        "(std::int64_t{tile.batch} * params.slots + slot) * frame_size",
        "slot * frame_size",
        **{**POINT, "select": "batch and double"},
    ),
    Bug(
        "the last slab is left out",
        CONV,
        "if (++slab * Config::kSlab < params.channels)",
        "if ((++slab + 1) * Config::kSlab <= params.channels)",
        **POINT,
    ),
    # ---- what ring_conv3d writes ----
    Bug(
        "pixels beyond the end of a row are written",
        CONV_STORE,
        "if (y >= params.height || x >= params.width)",
        "if (y >= params.height)",
        **NARROW,
    ),
    Bug(
        "rows of a phase change places with columns",
        OUTPUT,
        "(y * params.space + place.row)",
        "(y * params.space + place.column)",
        **NARROW,
    ),
    Bug(
        "both frames of a pair go to one slot",
        OUTPUT,
        "t * params.frames_per_frame + place.frame, target",
        "t * params.frames_per_frame, target",
        **POINT,
    ),
    Bug(
        "the residual of another frame",
        OUTPUT,
        "(before * params.frames_per_frame + place.frame)",
        "(before + place.frame)",
        **POINT,
    ),
    Bug(
        "where `out` starts is not looked at",
        CONV_ARGUMENTS,
        "!params.bytes && starts_a_vector(out) &&",
        "!params.bytes &&",
        **CONV_CHECKS,
    ),
    # ---- norm and colours in ring_conv3d ----
    Bug(
        "the norm of half of the columns",
        CONV_STORE,
        "other < Config::kWarps; other",
        "other < Config::kPixelWarps; other",
        **WIDE_NORM,
    ),
    Bug(
        "no barrier before the squares of another warp are read",
        CONV_STORE,
        "arch::sync_threads();  // a pixel's",
        "// a pixel's",
        **WIDE_NORM,
    ),
    Bug("the squares of two lanes of four", CONV_STORE, "sum += arch::shuffle_xor(sum, 2);", "", **NARROW_NORM),
    Bug(
        "what lies beyond the last column counts",
        CONV_STORE,
        "inside[0] ? arch::to_float(place[0]) : 0.0f",
        "arch::to_float(place[0])",
        **NARROW_NORM,
    ),
    Bug(
        "the norm goes to the slot of the result",
        CONV_STORE,
        "target_frame(params, params.normed,",
        "target_frame(params, RingTarget{params.normed.data, params.out.start, params.normed.slots},",
        **NARROW_NORM,
    ),
    Bug("colours are not clamped", OUTPUT, "fminf(fmaxf(x, -1.0f), 1.0f)", "x", **COLOURS),
    Bug("colours are cut off", OUTPUT, "rintf((inside + 1.0f) * 127.5f)", "(inside + 1.0f) * 127.5f", **COLOURS),
    # ---- norm_silu, pixels ----
    Bug(
        "idle lanes count",
        PIXEL_NORM,
        "has(i) ? sum_of_squares(values[i]) : 0.0f",
        "sum_of_squares(values[i])",
        **PIXEL,
    ),
    Bug("pixels beyond the frame are written", PIXEL_NORM, "if (pixel >= params.pixels) continue;", "", **PIXEL),
    Bug(
        "the smallest norm is not squared",
        RMS_SILU,
        "eps * eps",
        "eps",
        **{**PIXEL, "select": "small"},
    ),
    # ---- norm_silu, groups ----
    Bug(
        "no barrier before the sums of a block are added up",
        GROUP_NORM,
        "arch::sync_threads();\n\n  // A warp",
        "// A warp",
        **GROUPS,
    ),
    Bug("pixels of the next chunk count", GROUP_NORM, "if (pixel < place.after_pixel) use", "use", **GROUPS),
    Bug("the pivot is not added again", GROUP_NORM, "frame, group) + sum[0];", "frame, group) * 0 + sum[0];", **GROUPS),
    Bug("the variance is the mean square", GROUP_NORM, "fmaf(-sum[0], sum[0], sum[1])", "sum[1]", **GROUPS),
    Bug(
        "eight channels are of one group",
        GROUP_NORM,
        "const int group = (place.channel + i) /",
        "const int group = place.channel /",
        **GROUPS,
    ),
    Bug("eps is left out", GROUP_NORM, "variance + params.eps", "variance", **{**GROUPS, "select": "constant"}),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.tests[5:-3]}: {bug.what}")
def test_bug_is_noticed(bug, planter, runs, tmp_path):
    assert not runs.pass_(planter.plant(bug, tmp_path / "planted"), bug.tests, bug.select)


@pytest.mark.parametrize("tests", sorted({(bug.tests, bug.select) for bug in BUGS}), ids=lambda tests: tests[1])
def test_the_same_tests_pass_without_a_bug(tests, runs):
    assert runs.pass_(EMULATED_BUILD, *tests, seconds=280)  # a busy machine is no bug
