# SPDX-License-Identifier: Apache-2.0
"""Planted bugs, as in test_planted_bugs.py, in the convolution for Hopper."""

from __future__ import annotations

from typing import Any

import pytest

from aapt_fast.testing.planting import Bug
from aapt_fast.testing.targets import EMULATED_BUILD


def variant(tests: str, tile: str = "p128-o128") -> dict[str, Any]:
    """Source and tests for a bug; `tests` matches the names of tests with this tile."""
    return {
        "source": f"ring_conv3d/instantiations/sm90_bf16_{tile.replace('-', '_')}.cu",
        "tests": "test_ring_conv3d_hopper.py",
        "select": f"({tests}) and {tile} and not torch.float16",
    }


REFERENCE = variant("test_equals_reference")
NORM = variant("test_norm_of_the_result")
STAY = variant("test_blocks_that_stay")
TRACED = {**variant("test_equals_reference and 1x3x3"), "traced": True}
LARGE = variant("test_equals_reference or test_blocks_that_stay", tile="p256-o128")
LOAD, MULTIPLY, STORE, TILE, KERNEL = (
    f"ring_conv3d/{name}_sm90.cuh" for name in ("load", "multiply", "store", "tile", "kernel")
)

BUGS = [
    Bug(
        "taps along a column in reverse",
        MULTIPLY,
        "+ j * Config::kRowBytes",
        "+ (2 - j) * Config::kRowBytes",
        **REFERENCE,
    ),
    Bug("one column too far", LOAD, "common.kernel_w / 2 + k,", "common.kernel_w / 2 + k + 1,", **REFERENCE),
    Bug(
        "rows and columns of the weights change places",
        LOAD,
        "(i * common.kernel_h + j) * common.kernel_w + k",
        "(i * common.kernel_h + k) * common.kernel_w + j",
        **REFERENCE,
    ),
    Bug("a stale frame of the ring", LOAD, "ring_slot(common.start,", "ring_slot(nullptr,", **REFERENCE),
    Bug("rows of the wrong phase", LOAD, "tile.y + tile.phase / 2", "tile.y + tile.phase % 2", **REFERENCE),
    Bug(
        "a box is loaded while it is in use",
        LOAD,
        "arch::barrier_wait_bounded(&shared_.empty_boxes[stage], box_.parity ^ 1);",
        "",
        **REFERENCE,
    ),
    Bug("only the own weights are awaited", LOAD, "Config::kWeightBytes);", "Config::kWeightBytes / 2);", **REFERENCE),
    Bug("both blocks bring the same weights", LOAD, "arch::cluster_rank() * kOwn", "0", **REFERENCE),
    Bug("weights for one block only", LOAD, "channel}, 0b11)", "channel}, 1 << arch::cluster_rank())", **REFERENCE),
    Bug("a block ends while the other one reaches into it", KERNEL, "loader.finish();", "", **REFERENCE),
    Bug("barriers that the other block does not see", KERNEL, "cluster_sync_after_init()", "sync_threads()", **STAY),
    Bug(
        "weights that the other block still reads",
        MULTIPLY,
        "empty_weights[stage], arch::lane_index()",
        "empty_weights[stage], arch::cluster_rank()",
        **REFERENCE,
    ),
    Bug(
        "weights that have not come",
        MULTIPLY,
        "full_weights[weight_.stage], weight_.parity",
        "full_weights[weight_.stage], 1",
        **REFERENCE,
    ),
    Bug(
        "weights are free before their product",
        MULTIPLY,
        "release_weights(weight_before);\n        if",
        "release_weights(weight_.stage);\n        if",
        **REFERENCE,
    ),
    Bug(
        "a box is free before its last product",
        MULTIPLY,
        "if (!first && j == 0) release_box",
        "if (!first && j == common.kernel_h - 1) release_box",
        **REFERENCE,
    ),
    Bug("the result is read before it is there", MULTIPLY, "wait_for_all<Config>(sums);", "", **REFERENCE),
    Bug(
        "sums of the tile before",
        MULTIPLY,
        "start_products(sums, j, steps, !first);",
        "start_products(sums, j, steps, true);",
        **STAY,
    ),
    Bug("half of the last channels", MULTIPLY, "Config::kSlab) / 16;", "Config::kSlab) / 32;", **REFERENCE),
    Bug(
        "no fence before whole slabs",
        MULTIPLY,
        "      fence<Config>(sums);\n#pragma unroll\n",
        "#pragma unroll\n",
        **REFERENCE,
    ),
    Bug(
        "both warpgroups multiply the same pixels",
        MULTIPLY,
        "moved(group_ * Config::kRowTiles * 64",
        "moved(0 * 64",
        **REFERENCE,
    ),
    Bug("64 pixels twice", MULTIPLY, "pixels.moved(tile * 64 *", "pixels.moved(0 * 64 *", **LARGE),
    Bug("the right border is not guarded", STORE, " && x + 8 * half < params.width", "", **REFERENCE),
    Bug("the lower border is not guarded", STORE, "y < params.height && ", "", **REFERENCE),
    Bug(
        "outputs beyond the last one", STORE, "return count_ > 0;", "return true;", **variant("test_numbers_of_outputs")
    ),
    Bug(
        "the bias of the next column",
        STORE,
        "arch::lane_index() % 4 * 2 + e;",
        "arch::lane_index() % 4 * 2 + e + 1;",
        **REFERENCE,
    ),
    Bug("a residual in the lanes' order", STORE, "        transpose_among_four_lanes(added);\n", "", **REFERENCE),
    Bug("the norm of half of the columns", STORE, "squares += arch::shuffle_xor(squares, 2);", "", **NORM),
    Bug("weights of the norm of the first columns", STORE, "is_float32, first, gain)", "is_float32, 0, gain)", **NORM),
    Bug(
        "the norm goes to the slot of the result",
        STORE,
        "i == 0 ? common.out : common.normed;",
        "i == 0 ? common.out : RingTarget{common.normed.data, common.out.start, common.normed.slots};",
        **NORM,
    ),
    Bug(
        "the norm takes the place of the result",
        STORE,
        "if (i == 1) normalise",
        "if (common.normed.data) normalise",
        **NORM,
    ),
    Bug("tiles are left out", TILE, "number += params.clusters)", "number += params.clusters + 1)", **STAY),
    Bug(
        "an odd number of tiles",
        "ring_conv3d/params_sm90.cpp",
        "ceil_divide(tile_rows * sm90.tile_columns, kCluster)",
        "tile_rows * sm90.tile_columns / kCluster",
        **{**variant("test_sizes"), "source": "ring_conv3d/params_sm90.cpp"},
    ),
    Bug(
        "the first warpgroup gets further ahead than there are stages",
        MULTIPLY,
        "if (++taps == Config::kWeights - 3) head_start_.give();\n      }\n"
        "      if (box == Config::kBoxes - 3) head_start_.give();",
        "}",
        **REFERENCE,
    ),
    Bug(
        "sums are looked at while a product adds to them",
        MULTIPLY,
        "    wait_for_all<Config>(sums);\n",
        "    if (sums[0][0] != sums[0][0]) box_before = 0;\n    wait_for_all<Config>(sums);\n",
        **TRACED,
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_bug_is_noticed(bug, planter, runs, tmp_path):
    assert not runs.pass_(planter.plant(bug, tmp_path / "planted"), bug.tests, bug.select)


def test_the_traced_kernel_passes_without_a_bug(planter, runs, tmp_path):
    same = Bug("none", MULTIPLY, "// A warpgroup that", "// A warpgroup that", **TRACED)
    assert runs.pass_(planter.plant(same, tmp_path / "traced"), same.tests, same.select, seconds=280)


@pytest.mark.parametrize("tests", sorted({(bug.tests, bug.select) for bug in BUGS}), ids=lambda tests: tests[1])
def test_the_same_tests_pass_without_a_bug(tests, runs):
    assert runs.pass_(EMULATED_BUILD, *tests, seconds=280)  # a busy machine is no bug
