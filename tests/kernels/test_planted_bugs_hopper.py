# SPDX-License-Identifier: Apache-2.0
"""Planted bugs, as in test_planted_bugs.py, in the attention on Hopper, whose two kernels share their source."""

from __future__ import annotations

import pytest

from aapt_fast.testing.planting import Bug
from aapt_fast.testing.targets import EMULATED_BUILD


def variant(name: str, select: str) -> dict[str, str]:
    """Source and tests for the bugs of a kernel; `select` matches the ids of its tests."""
    return {
        "source": f"paged_attention/instantiations/{name}_bf16_d64.cu",
        "tests": "test_paged_attention.py",
        "select": f"{select} and not torch.float16 and not 128",
    }


SM90 = variant("sm90", "sm90 and not sm90_")
LATE_SM90 = variant("sm90", "broken and sm90 and not sm90_")  # bugs that show in the last tests of the file only
SPLIT = variant("sm90_split", "sm90_split")
TRACED = {**variant("sm90", "test_equals and sm90 and not sm90_"), "traced": True}  # several times as slow
KERNEL, COMBINE = "paged_attention/kernel_sm90.cuh", "paged_attention/combine_sm90.cuh"
LOAD, MULTIPLY, SOFTMAX = (f"paged_attention/{name}.cuh" for name in ("load_sm90", "multiply_sm90", "softmax"))

BUGS = [
    Bug(
        "the wrong phase of a barrier",
        MULTIPLY,
        "[ahead.stage], ahead.parity);",
        "[ahead.stage], 1);",
        **SM90,
    ),
    Bug("phases do not alternate", "common/ring_place.cuh", "parity ^= stage == 0;", "", **SM90),
    Bug(
        "keys are loaded while they are in use",
        LOAD,
        "arch::barrier_wait_bounded(&shared.empty_k[stage], place.parity ^ 1);",
        "",
        **SM90,
    ),
    Bug(
        "values are loaded while they are in use",
        LOAD,
        "arch::barrier_wait_bounded(&shared.empty_v[stage], place.parity ^ 1);",
        "",
        **SM90,
    ),
    Bug("too few bytes are announced", LOAD, "full, present * Config::kSlabs", "full, Config::kSlabs", **SM90),
    Bug("the end is not announced", LOAD, "arch::barrier_arrive(&shared.full_k[stage]);", "", **SM90),
    Bug(
        "a broken page table is kept secret", LOAD, "shared.broken = table.broken();", "shared.broken = 0;", **LATE_SM90
    ),
    Bug(
        "zeros that wgmma does not see",
        LOAD,
        "wgmma, then wait for those of the whole warp.\n  arch::fence_proxy_async();",
        "wgmma, then wait for those of the whole warp.",
        **SM90,
    ),
    Bug(
        "zeros that the other lanes have not written yet",
        LOAD,
        "arch::fence_proxy_async();\n  arch::sync_warp();",
        "arch::fence_proxy_async();",
        **SM90,
    ),
    Bug(
        "zeros that the copies overwrite",
        LOAD,
        "arch::barrier_wait_bounded(&shared.full_v[before.stage], before.parity);",
        "",
        **SM90,
    ),
    Bug(
        "a result that the copy engine does not see",
        MULTIPLY,
        "then let one thread start the copies.\n  arch::fence_proxy_async();",
        "then let one thread start the copies.",
        **SM90,
    ),
    Bug(
        "no fence before the first product",
        MULTIPLY,
        "auto& d = flat<Config::kKeys>(scores);\n  arch::wgmma_fence(d);",
        "auto& d = flat<Config::kKeys>(scores);",
        **SM90,
    ),
    Bug(
        "scores are used before the product is done",
        MULTIPLY,
        "arch::wgmma_wait<0>(flat<Config::kKeys>(scores));\n      release<Config>(&shared.empty_k[0]);",
        "release<Config>(&shared.empty_k[0]);",
        **SM90,
    ),
    Bug("scores that are still on their way", MULTIPLY, "wgmma_wait<1>", "wgmma_wait<2>", **SM90),
    Bug(
        "weights change while a product reads them",
        MULTIPLY,
        "arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));",
        "weights.pack(scores);\n        arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));",
        **SM90,
    ),
    Bug(
        "the output changes while a product adds to it",
        MULTIPLY,
        "softmax.weigh(scores, corrections, params.scale_log2);\n\n",
        "softmax.weigh(scores, corrections, params.scale_log2);\n softmax.rescale(out, corrections);\n"
        "corrections[0] = corrections[1] = 1.0f;\n",
        **SM90,
    ),
    Bug(
        "lanes of a warp write the result from two places",
        MULTIPLY,
        "arch::stmatrix(rows + column / 64 * Config::kGroupSlabBytes + swizzled(Swizzle::k128Bytes, at), words);",
        "char* row = rows + column / 64 * Config::kGroupSlabBytes + swizzled(Swizzle::k128Bytes, at);\n"
        "lane < 16 ? arch::stmatrix(row, words)\n : arch::stmatrix(row, words);",
        **SM90,
    ),
    Bug(
        "lanes of a warp exchange maxima in two places",
        "paged_attention/softmax.cuh",
        "largest = fmaxf(largest, arch::shuffle_xor(largest, 2));\n\n",
        "largest = fmaxf(largest, arch::lane_index() < 16 ? arch::shuffle_xor(largest, 2)\n"
        ": arch::shuffle_xor(largest, 2));\n",
        **SM90,
    ),
    Bug(
        "half of each warp opens a product at another place",
        MULTIPLY,
        "auto& d = flat<Config::kHeadDim>(out);\n  arch::wgmma_fence(d);",
        "auto& d = flat<Config::kHeadDim>(out);\n  if (arch::lane_index() < 16) {\n    arch::wgmma_fence(d);\n"
        "  } else {\n    arch::wgmma_fence(d);\n  }",
        **SM90,
    ),
    Bug(
        "a barrier of half warps",
        MULTIPLY,
        "reads the queries.\n  arch::named_barrier_sync(1 + group, 128);",
        "reads the queries.\n  if (lane < 16) arch::named_barrier_sync(1 + group, 64);",
        **SM90,
    ),
    Bug(
        "queries serve as scratch memory while a product reads them",
        MULTIPLY,
        "turns.pass();\n\n"
        "        // Wait for the scores only, and compute their weights while the values are multiplied.\n"
        "        arch::wgmma_wait<1>(flat<Config::kKeys>(scores));",
        "turns.pass();\n        if (arch::thread_index() % 128 == 0) shared.q[group][0] ^= 1;\n"
        "        arch::wgmma_wait<1>(flat<Config::kKeys>(scores));\n"
        "        if (arch::thread_index() % 128 == 0) shared.q[group][0] ^= 1;",
        **SM90,
    ),
    Bug(
        "tensor maps keep the stride of a dimension of one element",
        "common/tensor_map.cpp",
        "size == 1 ? natural : stride)",
        "stride)",
        **{**SM90, "source": "common/tensor_map.cpp", "select": "batch_of_one and sm90 and not sm90_"},
    ),
    Bug(
        "only the thread that stores the result fences",
        MULTIPLY,
        "then let one thread start the copies.\n  arch::fence_proxy_async();",
        "then let one thread start the copies.\n  if (arch::thread_index() % 128 == 0) arch::fence_proxy_async();",
        **TRACED,
    ),
    Bug(
        "one lane fences the zeros of its warp",
        LOAD,
        "wgmma, then wait for those of the whole warp.\n  arch::fence_proxy_async();",
        "wgmma, then wait for those of the whole warp.\n  if (arch::lane_index() == 0) arch::fence_proxy_async();",
        **TRACED,
    ),
    Bug(
        "values are multiplied before they are clear",
        MULTIPLY,
        "if (facts.partial()) arch::barrier_wait(&shared.cleared_v[place.stage], place.parity);",
        "",
        **TRACED,
    ),
    Bug(
        "the output is looked at while a product adds to it",
        MULTIPLY,
        "softmax.weigh(scores, corrections, params.scale_log2);\n\n",
        "softmax.weigh(scores, corrections, params.scale_log2);\n"
        "if (out[0][0][0] != out[0][0][0]) corrections[0] = NAN;\n",
        **TRACED,
    ),
    Bug(
        "weights are written once more while a product reads them",
        MULTIPLY,
        "multiply_values<Config>(out, weights, shared.v[place.stage]);\n        turns.pass();",
        "multiply_values<Config>(out, weights, shared.v[place.stage]);\n        turns.pass();\n"
        "const_cast<volatile std::uint32_t&>(weights.words[0][0]) = weights.words[0][0];",
        **TRACED,
    ),
    Bug("the output keeps an old scale", MULTIPLY, "softmax.rescale(out, corrections);", "", **SM90),
    Bug(
        "a row without a new maximum keeps the other one's scale",
        SOFTMAX,
        "same = same && corrections[r] == 1.0f",
        "same = corrections[r] == 1.0f",
        **SM90,
    ),
    Bug("the keys of the tile before", MULTIPLY, "shared.k[ahead.stage]", "shared.k[place.stage]", **SM90),
    Bug("the valid counts of the tile before", MULTIPLY, "(scores, next, params)", "(scores, facts, params)", **SM90),
    Bug(
        "values of unused slots stay",
        LOAD,
        "clear_values<Config>(shared.v[before.stage], facts_before);",
        "",
        **SM90,
    ),
    Bug(
        "values are released before their product",
        MULTIPLY,
        "arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));\n"
        "        release<Config>(&shared.empty_v[place.stage]);",
        "release<Config>(&shared.empty_v[place.stage]);\n"
        "        arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));",
        **SM90,
    ),
    Bug(
        "a turn is kept", MULTIPLY, "turns.pass();\n\n        // Wait for the scores", "// Wait for the scores", **SM90
    ),
    Bug("no warpgroup may begin", MULTIPLY, "if (group_ == 1) pass();", "", **SM90),
    Bug(
        "a stage that the other block still reads",
        MULTIPLY,
        "barrier_release_remote(empty, arch::lane_index())",
        "barrier_release_remote(empty, arch::cluster_rank())",
        **SPLIT,
    ),
    Bug("pages for one block only", LOAD, "first, 0b11)", "first, 1 << arch::cluster_rank())", **SPLIT),
    Bug("both blocks bring the first page", LOAD, "arch::cluster_rank() != i)", "i == 1)", **SPLIT),
    Bug("only the own page is awaited", LOAD, "full, present * Config::kSlabs", "full, Config::kSlabs", **SPLIT),
    Bug(
        "a block ends while the other one reaches into it",
        LOAD,
        "i < Config::kStages; ++i, place.advance()",
        "false; ++i, place.advance()",
        **SPLIT,
    ),
    Bug(
        "copies come before the barrier is there",
        KERNEL,
        "sync_blocks<Config>();\n\n",
        "arch::sync_threads();\n\n",
        **SPLIT,
    ),
    Bug(
        "an odd number of blocks",
        KERNEL,
        "(params.common.tokens + kClusterRows - 1) / kClusterRows * Config::kCluster",
        "(params.common.tokens + Config::kRows - 1) / Config::kRows",
        **SPLIT,
    ),
    Bug("a part begins too early", LOAD, "share(entries, split.cuts[part])", "0", **SPLIT),
    Bug(
        "a part ends too early",
        LOAD,
        "share(entries, split.cuts[part + 1])",
        "share(entries, split.cuts[part + 1]) - 1",
        **SPLIT,
    ),
    Bug("parts of another head", LOAD, "head = split.whole + nth;", "head = split.whole + part;", **SPLIT),
    Bug("a part goes where a whole head goes", MULTIPLY, "part ? params.parts : params.out", "params.out", **SPLIT),
    Bug(
        "the log-sum-exp of a part is not kept",
        MULTIPLY,
        "part ? params.split.lse : params.common.lse",
        "params.common.lse",
        **SPLIT,
    ),
    Bug("parts change places", LOAD, "nth * split.parts + part}", "part * split_heads + nth}", **SPLIT),
    Bug(
        "the last part is left out",
        COMBINE,
        "part < split.parts; ++part) {",
        "part + 1 < split.parts; ++part) {",
        **SPLIT,
    ),
    Bug(
        "parts have equal weights",
        COMBINE,
        "arch::exp2_approx((split.lse[row_of(part)] - base) * kLog2E)",
        "1.0f",
        **SPLIT,
    ),
    Bug("parts are weighed in powers of two", COMBINE, "- base) * kLog2E)", "- base))", **SPLIT),
    Bug("no part has a key", COMBINE, "maximum == -INFINITY ? 0.0f : maximum", "maximum", **SPLIT),
    Bug("a combined log-sum-exp in powers of two", COMBINE, "log2_approx(sum) * kLn2", "log2_approx(sum)", **SPLIT),
    Bug("the combined rows are not divided by their weights", COMBINE, "0.0f : 1.0f / sum", "0.0f : 1.0f", **SPLIT),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_bug_is_noticed(bug, planter, runs, tmp_path):
    assert not runs.pass_(planter.plant(bug, tmp_path / "planted"), bug.tests, bug.select)


def test_the_traced_kernel_passes_without_a_bug(planter, runs, tmp_path):
    same = Bug("none", MULTIPLY, "// Starts scores =", "// Starts scores =", **TRACED)
    assert runs.pass_(planter.plant(same, tmp_path / "traced"), same.tests, same.select, seconds=280)


@pytest.mark.parametrize("kernel", [SM90, SPLIT], ids=["sm90", "sm90_split"])
def test_the_same_tests_pass_without_a_bug(kernel, runs):
    """Every other selection above is a part of one of these two."""
    tests = (kernel["tests"], kernel["select"])
    assert runs.pass_(EMULATED_BUILD, *tests, seconds=280)  # a busy machine is no bug
