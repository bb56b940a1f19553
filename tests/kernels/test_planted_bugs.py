# SPDX-License-Identifier: Apache-2.0
"""Tests of the tests: each case plants one bug in a kernel, and the tests of that kernel have to notice it."""

from __future__ import annotations

import pytest

from aapt_fast.testing.planting import Bug
from aapt_fast.testing.targets import EMULATED_BUILD

ATTENTION = {
    "source": "paged_attention/instantiations/bf16_d64.cu",
    "tests": "test_paged_attention.py",
    "select": "portable and not torch.float16 and not 128 and not 56",
}
NARROW_ATTENTION = {
    **ATTENTION,
    "source": "paged_attention/instantiations/bf16_d56.cu",
    "select": "of_56 and not torch.float16",
}
# Bugs that show in the last tests of the file only.
LATE_ATTENTION = {**ATTENTION, "select": f"(broken or bias or offsets or grouped) and {ATTENTION['select']}"}
KV_WRITE = {
    "source": "kv_write/instantiations/bf16_d64.cu",
    "tests": "test_kv_write.py",
    "select": "not torch.float16 and not 128 and not 56",
}
NARROW_KV_WRITE = {
    **KV_WRITE,
    "source": "kv_write/instantiations/bf16_d56.cu",
    "select": "56 and not torch.float16",
}
LATE_KV_WRITE = {**KV_WRITE, "select": f"(outside or elements) and {KV_WRITE['select']}"}
NORM = {
    "source": "gate_residual_norm/instantiations/bf16.cu",
    "tests": "test_gate_residual_norm.py",
    "select": "not torch.float16",
}
CONCAT = {
    "source": "channel_concat/instantiations/bf16.cu",
    "tests": "test_channel_concat.py",
    "select": "not torch.float16",
}
CLEAN = {
    "source": "clean_frame/instantiations/bf16.cu",
    "tests": "test_clean_frame.py",
    "select": "not torch.float16",
}
CLEAN_CHECKS = {**CLEAN, "source": "clean_frame/clean_frame.cpp"}
PHILOX = {"source": "philox_normal/kernel_portable.cu", "tests": "test_philox_normal.py"}
KERNEL, SOFTMAX, TABLE = (f"paged_attention/{name}.cuh" for name in ("kernel_portable", "softmax", "page_table"))
WRITER, EMBEDDER = "kv_write/kernel_portable.cuh", "channel_concat/kernel_portable.cuh"
CLEANER, NORMALISER = "clean_frame/kernel_portable.cuh", "gate_residual_norm/kernel_portable.cuh"
PHILOX_KERNEL = "philox_normal/kernel_portable.cu"

BUGS = [
    Bug(
        "no barrier before keys and values are overwritten",
        KERNEL,
        "arch::cp_async_wait<0>();\n    arch::sync_threads();\n    load_tile",
        "arch::cp_async_wait<0>();\n    load_tile",
        **ATTENTION,
    ),
    Bug(
        "no wait for the keys",
        KERNEL,
        "arch::cp_async_wait<0>();\n    arch::sync_threads();",
        "arch::sync_threads();",
        **ATTENTION,
    ),
    Bug("no wait for the values", KERNEL, "arch::cp_async_wait<1>();", "", **ATTENTION),
    Bug("a wait that leaves the values on their way", KERNEL, "cp_async_wait<1>", "cp_async_wait<2>", **ATTENTION),
    Bug(
        "no barrier after the values have come",
        KERNEL,
        "arch::cp_async_wait<1>();\n        arch::sync_threads();",
        "arch::cp_async_wait<1>();",
        **ATTENTION,
    ),
    Bug(
        "the next keys overwrite those in use",
        KERNEL,
        "load_keys(next, stage ^ 1)",
        "load_keys(next, stage)",
        **ATTENTION,
    ),
    Bug(
        "no barrier between writing and reading the result",
        KERNEL,
        "arch::sync_warp();\n  constexpr",
        "constexpr",
        **ATTENTION,
    ),
    Bug(
        "unused slots are loaded",
        KERNEL,
        "inside = row < valid && column < Config::kHeadDim;",
        "inside = column < Config::kHeadDim;",
        **ATTENTION,
    ),
    Bug(
        "what lies beside a narrow head is read",
        KERNEL,
        "row < valid && column < Config::kHeadDim;",
        "row < valid;",
        **NARROW_ATTENTION,
    ),
    Bug(
        "the padding of a narrow head is written",
        KERNEL,
        "constexpr int kPieces = Config::kHeadDim / 8;",
        "constexpr int kPieces = Config::kPadded / 8;",
        **NARROW_ATTENTION,
    ),
    Bug(
        "the valid count is ignored in the scores",
        KERNEL,
        "if (page.valid < Config::kKeys) mask",
        "if (false) mask",
        **ATTENTION,
    ),
    Bug(
        "page offsets of keys in 32 bits",
        KERNEL,
        "k + page.id * params.k_stride.outer",
        "k + page.id * int(params.k_stride.outer)",
        **LATE_ATTENTION,
    ),
    Bug(
        "page offsets of values in 32 bits",
        KERNEL,
        "v + page.id * params.v_stride.outer",
        "v + page.id * int(params.v_stride.outer)",
        **LATE_ATTENTION,
    ),
    Bug(
        "the last tokens are not written",
        KERNEL,
        "if (first_token + r < params.tokens) {",
        "if (first_token + Config::kRows <= params.tokens) {",
        **ATTENTION,
    ),
    Bug(
        "all blocks keep their first token in one place",
        KERNEL,
        "const int first_token = arch::block_index().x * Config::kRows;",
        "static int kept;\n  kept = arch::block_index().x * Config::kRows;\n  arch::sync_threads();\n"
        "  const int first_token = kept;",
        **ATTENTION,
    ),
    Bug(
        "query heads share the wrong keys",
        KERNEL,
        "head * params.kv_heads / params.heads",
        "head % params.kv_heads",
        **LATE_ATTENTION,
    ),
    Bug(
        "the last entry of the page table is skipped",
        TABLE,
        "while (entry_ < end_)",
        "while (entry_ + 1 < end_)",
        **ATTENTION,
    ),
    Bug("a page just past the pool is read", TABLE, "id >= params_.pages", "id > params_.pages", **LATE_ATTENTION),
    Bug("65 valid slots are accepted", TABLE, "valid > kPageSlots", "valid > kPageSlots + 1", **LATE_ATTENTION),
    Bug("the bias is not in powers of two", TABLE, "bias * kLog2E", "bias", **LATE_ATTENTION),
    Bug(
        "the output is not rescaled when the maximum grows",
        SOFTMAX,
        "out[r / 2][n][r % 2 * 2] *= correction;",
        "",
        **ATTENTION,
    ),
    Bug("the sum is of one lane only", SOFTMAX, "sum_[r] += arch::shuffle_xor(sum_[r], 2);", "", **ATTENTION),
    Bug(
        "minus infinity minus minus infinity",
        SOFTMAX,
        "maximum == -INFINITY ? 0.0f : maximum",
        "maximum",
        **LATE_ATTENTION,
    ),
    Bug(
        "the log-sum-exp is in powers of two",
        SOFTMAX,
        "(maximum_[r] + arch::log2_approx(sum_[r])) * kLn2",
        "maximum_[r] + arch::log2_approx(sum_[r])",
        **ATTENTION,
    ),
    Bug("a page past the pool is written", WRITER, "page < params.pages", "page <= params.pages", **LATE_KV_WRITE),
    Bug("page offsets in 32 bits", WRITER, "page * stride.outer", "page * int(stride.outer)", **LATE_KV_WRITE),
    Bug("all tokens go to the first page", WRITER, " + token / kPageSlots * params.ids_stride[1]", "", **KV_WRITE),
    Bug("slots are off by one", WRITER, "token % kPageSlots * stride", "(token + 1) % kPageSlots * stride", **KV_WRITE),
    Bug("heads turn the wrong way", WRITER, "cos_[i] - odd * sin_[i]", "cos_[i] + odd * sin_[i]", **KV_WRITE),
    Bug("all rows turn like the first", WRITER, "row * params.cos_stride[0] + ", "", **KV_WRITE),
    Bug(
        "what lies beside a narrow head is taken for a part of it",
        WRITER,
        "if (column_of_vectors<Config>() >= Config::kHeadDim) return {Part::kNothing, 0};",
        "",
        **NARROW_KV_WRITE,
    ),
    Bug(
        "the padding of a narrow head counts in its mean",
        WRITER,
        "sum_of_lanes<Config::kLanes>(squares) / Config::kHeadDim",
        "sum_of_lanes<Config::kLanes>(squares) / (8 * Config::kLanes)",
        **NARROW_KV_WRITE,
    ),
    Bug("no barrier in a sum over the block", "common/reduce.cuh", "  arch::sync_threads();\n", "", **KV_WRITE),
    Bug("the same, for rows of tokens", "common/reduce.cuh", "  arch::sync_threads();\n", "", **NORM),
    Bug(
        "elements that are read twice count twice",
        NORMALISER,
        "place.has(i) ? sum_of_squares(values[i]) : 0.0f",
        "sum_of_squares(values[i])",
        **NORM,
    ),
    Bug("no eps", NORMALISER, "(params.width) + params.eps", "(params.width)", **NORM),
    Bug(
        "no barrier before patches and weight are overwritten",
        EMBEDDER,
        "arch::cp_async_wait<0>();\n    arch::sync_threads();\n    if (more)",
        "arch::cp_async_wait<0>();\n    if (more)",
        **CONCAT,
    ),
    Bug(
        "no wait for the weight",
        EMBEDDER,
        "arch::cp_async_wait<0>();\n    arch::sync_threads();\n    if (more)",
        "arch::sync_threads();\n    if (more)",
        **CONCAT,
    ),
    Bug("the weight in use is overwritten", EMBEDDER, "shared.weight[stage ^ 1],", "shared.weight[stage],", **CONCAT),
    Bug(
        "no barrier before the result", EMBEDDER, "arch::sync_threads();      // the weight", "// the weight", **CONCAT
    ),
    Bug(
        "the last features are not written",
        EMBEDDER,
        "feature + e < params.features",
        "feature + 8 <= params.features",
        **CONCAT,
    ),
    Bug("the velocity is added", CLEANER, "fmaf(-t, of_pixel", "fmaf(t, of_pixel", **CLEAN),
    Bug("all rows have the first timestep", CLEANER, "rectangle.batch * params.t_stride", "0", **CLEAN),
    Bug(
        "all frames have the first one's tokens",
        CLEANER,
        "(rectangle.frame * (params.height",
        "(0 * (params.height",
        **CLEAN,
    ),
    Bug(
        "the columns of a patch change places", CLEANER, "+ i % Config::kPatch]", "+ (i + 1) % Config::kPatch]", **CLEAN
    ),
    Bug(
        "the last rectangle of a frame is left out",
        CLEANER,
        "exists = patch_row <",
        "exists = patch_row + 1 <",
        **CLEAN,
    ),
    Bug(
        "a row that is no whole number of vectors is not finished",
        CLEANER,
        "if (rectangle.x + i < params.width)",
        "if (rectangle.x + Config::kPixels <= params.width)",
        **CLEAN,
    ),
    Bug("pixels beyond the end of a row are written", CLEANER, "if (rectangle.x + i < params.width)", "", **CLEAN),
    Bug(
        "the place of the frames in memory is not looked at",
        "clean_frame/clean_frame.cpp",
        "reinterpret_cast<std::uintptr_t>(frames.data) % sizeof(Vector16) == 0",
        "true",
        **CLEAN_CHECKS,
    ),
    Bug(
        "nor are their strides",
        "clean_frame/clean_frame.cpp",
        "whole && (frames.size(i) == 1 || frames.stride[i] % kPixels == 0)",
        "whole",
        **CLEAN_CHECKS,
    ),
    Bug(
        "offsets of tokens in 32 bits",
        CLEANER,
        "token * params.token_stride",
        "token * int(params.token_stride)",
        **CLEAN,
    ),
    Bug(
        "offsets of channels in 32 bits",
        CLEANER,
        "channel(row) * params.channel_stride",
        "channel(row) * int(params.channel_stride)",
        **CLEAN,
    ),
    Bug("nine rounds", PHILOX_KERNEL, "kRounds = 10", "kRounds = 9", **PHILOX),
    Bug("half of the key stands still", PHILOX_KERNEL, "key[1] += kKeySteps[1];", "", **PHILOX),
    Bug("uniform numbers reach zero", PHILOX_KERNEL, " + 0x1p-33f", "", **PHILOX),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.tests[5:-3]}: {bug.what}")
def test_bug_is_noticed(bug, planter, runs, tmp_path):
    assert not runs.pass_(planter.plant(bug, tmp_path / "planted"), bug.tests, bug.select)


SELECTIONS = {(bug.tests, bug.select) for bug in BUGS} - {
    (late["tests"], late["select"]) for late in (LATE_ATTENTION, LATE_KV_WRITE)
}
"""Tests that show bugs, without selections that are a part of another one."""


@pytest.mark.parametrize("tests", sorted(SELECTIONS), ids=lambda tests: tests[0])
def test_the_same_tests_pass_without_a_bug(tests, runs):
    assert runs.pass_(EMULATED_BUILD, *tests, seconds=280)  # a busy machine is no bug
