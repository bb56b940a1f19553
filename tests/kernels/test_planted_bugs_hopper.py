# SPDX-License-Identifier: Apache-2.0
"""The same as test_planted_bugs.py for the attention on Hopper, whose variants share their source."""

from __future__ import annotations

import pytest

from aapt_fast.testing.planting import Bug, passes, plant
from aapt_fast.testing.targets import EMULATED_BUILD


def variant(name: str, select: str) -> dict[str, str]:
    """What is compiled and run for the bugs of a variant; `select` matches the ids of its tests."""
    return {
        "source": f"paged_attention/instantiations/{name}_bf16_d64.cu",
        "tests": "test_paged_attention.py",
        "select": f"{select} and not torch.float16 and not 128",
    }


PLAIN = variant("sm90", "sm90 and not sm90_")
OVERLAP = variant("sm90_overlap", "sm90_overlap")
CLUSTER = variant("sm90_cluster", "sm90_cluster")
SPLIT = variant("sm90_split", "sm90_split")
KERNEL, COMBINE = "paged_attention/kernel_sm90.cuh", "paged_attention/combine_sm90.cuh"
LOAD, MULTIPLY = "paged_attention/load_sm90.cuh", "paged_attention/multiply_sm90.cuh"

BUGS = [
    Bug(
        "the wrong phase of a barrier",
        MULTIPLY,
        "[stage], place.parity);\n    const",
        "[stage], 1);\n    const",
        **PLAIN,
    ),
    Bug("phases do not alternate", LOAD, "parity ^= stage == 0;", "", **PLAIN),
    Bug(
        "keys are loaded while they are in use",
        LOAD,
        "arch::barrier_wait(&shared.empty_k[stage], place.parity ^ 1);",
        "",
        **PLAIN,
    ),
    Bug(
        "values are loaded while they are in use",
        LOAD,
        "arch::barrier_wait(&shared.empty_v[stage], place.parity ^ 1);",
        "",
        **PLAIN,
    ),
    Bug("too few bytes are announced", LOAD, "full, present * Config::kSlabs", "full, Config::kSlabs", **PLAIN),
    Bug("nobody hears of the end", LOAD, "arch::barrier_arrive(&shared.full_k[place.stage]);", "", **PLAIN),
    Bug("a broken page table is kept secret", LOAD, "shared.broken = table.broken();", "shared.broken = 0;", **PLAIN),
    Bug(
        "a stage is released before its product",
        MULTIPLY,
        "arch::wgmma_wait<0>(flat<Config::kHeadDim>(out));\n    release<Config>(&shared.empty_v[stage]);",
        "release<Config>(&shared.empty_v[stage]);\n    arch::wgmma_wait<0>(flat<Config::kHeadDim>(out));",
        **PLAIN,
    ),
    Bug(
        "values of unused slots stay",
        MULTIPLY,
        "if (facts.partial()) clear_values<Config>(shared.v[stage], facts, group);",
        "",
        **PLAIN,
    ),
    Bug(
        "zeros that wgmma does not see",
        MULTIPLY,
        "= {};\n    }\n  }\n  arch::fence_proxy_async();",
        "= {};\n    }\n  }",
        **PLAIN,
    ),
    Bug(
        "a result that the copy engine does not see",
        MULTIPLY,
        "words);\n  }\n  arch::fence_proxy_async();",
        "words);\n  }",
        **PLAIN,
    ),
    Bug(
        "no fence before the first product",
        MULTIPLY,
        "auto& d = flat<Config::kKeys>(scores);\n  arch::wgmma_fence(d);",
        "auto& d = flat<Config::kKeys>(scores);",
        **PLAIN,
    ),
    Bug(
        "scores are used before the product is done",
        MULTIPLY,
        "arch::wgmma_wait<0>(flat<Config::kKeys>(scores));\n    release<Config>(&shared.empty_k[stage]);",
        "release<Config>(&shared.empty_k[stage]);",
        **PLAIN,
    ),
    Bug("scores that are still on their way", MULTIPLY, "wgmma_wait<1>", "wgmma_wait<2>", **OVERLAP),
    Bug(
        "weights change while a product reads them",
        MULTIPLY,
        "arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));",
        "weights.pack(scores);\n      arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));",
        **OVERLAP,
    ),
    Bug(
        "the output changes while a product adds to it",
        MULTIPLY,
        "softmax.weigh(scores, corrections, params.scale_log2);\n\n",
        "softmax.weigh(scores, corrections, params.scale_log2);\n softmax.rescale(out, corrections);\n"
        "corrections[0] = corrections[1] = 1.0f;\n",
        **OVERLAP,
    ),
    Bug("the output keeps an old scale", MULTIPLY, "softmax.rescale(out, corrections);", "", **OVERLAP),
    Bug("the keys of the tile before", MULTIPLY, "shared.k[ahead.stage]", "shared.k[place.stage]", **OVERLAP),
    Bug(
        "the valid counts of the tile before", MULTIPLY, "(scores, next, params)", "(scores, facts, params)", **OVERLAP
    ),
    Bug(
        "values of unused slots stay, with overlap",
        MULTIPLY,
        "if (facts.partial()) clear_values<Config>(shared.v[place.stage], facts, group);",
        "",
        **OVERLAP,
    ),
    Bug(
        "values are released before their product",
        MULTIPLY,
        "arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));\n"
        "      release<Config>(&shared.empty_v[place.stage]);",
        "release<Config>(&shared.empty_v[place.stage]);\n"
        "      arch::wgmma_wait<0>(flat<Config::kHeadDim>(out), flat<Config::kKeys>(scores));",
        **OVERLAP,
    ),
    Bug("a turn is kept", MULTIPLY, "turns.pass();\n\n      arch::wgmma_wait<1>", "arch::wgmma_wait<1>", **OVERLAP),
    Bug("nobody may begin", MULTIPLY, "if (group_ == 1) pass();", "", **OVERLAP),
    Bug(
        "a stage that the other block still reads",
        MULTIPLY,
        "barrier_release_remote(empty, arch::lane_index())",
        "barrier_release_remote(empty, arch::cluster_rank())",
        **CLUSTER,
    ),
    Bug("pages for one block only", LOAD, "first, 0b11)", "first, 1 << arch::cluster_rank())", **CLUSTER),
    Bug("both blocks bring the first page", LOAD, "arch::cluster_rank() != i)", "i == 1)", **CLUSTER),
    Bug("only the own page is awaited", LOAD, "full, present * Config::kSlabs", "full, Config::kSlabs", **CLUSTER),
    Bug(
        "a block ends while the other one reaches into it",
        KERNEL,
        "if constexpr (Config::kCluster > 1) arch::cluster_sync();",
        "",
        **CLUSTER,
    ),
    Bug(
        "copies come before the barrier is there",
        KERNEL,
        "sync_blocks<Config>();\n\n",
        "arch::sync_threads();\n\n",
        **CLUSTER,
    ),
    Bug(
        "an odd number of blocks",
        KERNEL,
        "(params.common.tokens + kClusterRows - 1) / kClusterRows * Config::kCluster",
        "(params.common.tokens + Config::kRows - 1) / Config::kRows",
        **CLUSTER,
    ),
    Bug("a part begins too early", LOAD, "share(entries, fraction, fractions)", "0", **SPLIT),
    Bug(
        "a part ends too early",
        LOAD,
        "share(entries, fraction + 1, fractions)",
        "share(entries, fraction + 1, fractions) - 1",
        **SPLIT,
    ),
    Bug("parts of another head", LOAD, "split.whole + part / split.parts", "split.whole + part % split.parts", **SPLIT),
    Bug("a part goes where a whole head goes", MULTIPLY, "block.part < 0 ? block.row", "true ? block.row", **SPLIT),
    Bug("the log-sum-exp of a part is not kept", MULTIPLY, "lse = params.split.lse;", "", **SPLIT),
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
def test_bug_is_noticed(bug, tmp_path):
    assert not passes(plant(bug, tmp_path / "planted"), bug.tests, bug.select)


@pytest.mark.parametrize("tests", sorted({(bug.tests, bug.select) for bug in BUGS}), ids=lambda tests: tests[1])
def test_the_same_tests_pass_without_a_bug(tests):
    assert passes(EMULATED_BUILD, *tests, seconds=280)  # a busy machine is no bug
