# SPDX-License-Identifier: Apache-2.0
"""Both versions of FlashAttention's functions against a softmax written out."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest
import torch

from aapt_fast.compat import flash_attn, flash_attn_interface
from aapt_fast.testing.attention import random_qkv, rows_of_attention, softmax_attention
from aapt_fast.testing.cases import DEVICES
from aapt_fast.testing.compare import assert_near, assert_within_twice_torch

MODULES = {"2": flash_attn, "3": flash_attn_interface}
VERSIONS = pytest.mark.parametrize("version", MODULES)
ON = pytest.mark.parametrize("device", DEVICES)
TABLE = {"2": "block_table", "3": "page_table"}

# The parameters of the originals, in their order; a value after "=" is the default.
SIGNATURES = {
    ("2", "flash_attn_func"): "q k v dropout_p=0.0 softmax_scale=None causal=False window_size=(-1,-1) softcap=0.0"
    " alibi_slopes=None deterministic=False return_attn_probs=False",
    ("2", "flash_attn_varlen_func"): "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p=0.0"
    " softmax_scale=None causal=False window_size=(-1,-1) softcap=0.0 alibi_slopes=None deterministic=False"
    " return_attn_probs=False block_table=None",
    ("2", "flash_attn_with_kvcache"): "q k_cache v_cache k=None v=None rotary_cos=None rotary_sin=None"
    " cache_seqlens=None cache_batch_idx=None cache_leftpad=None block_table=None softmax_scale=None causal=False"
    " window_size=(-1,-1) softcap=0.0 rotary_interleaved=True alibi_slopes=None num_splits=0 return_softmax_lse=False",
    ("3", "flash_attn_func"): "q k v softmax_scale=None causal=False qv=None q_descale=None k_descale=None"
    " v_descale=None window_size=(-1,-1) attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None"
    " deterministic=False sm_margin=0 return_attn_probs=False",
    ("3", "flash_attn_varlen_func"): "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q=None"
    " seqused_k=None softmax_scale=None causal=False qv=None q_descale=None k_descale=None v_descale=None"
    " window_size=(-1,-1) attention_chunk=0 softcap=0.0 num_splits=1 pack_gqa=None deterministic=False sm_margin=0"
    " return_attn_probs=False",
    ("3", "flash_attn_with_kvcache"): "q k_cache v_cache k=None v=None qv=None rotary_cos=None rotary_sin=None"
    " cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None cu_seqlens_q=None"
    " cu_seqlens_k_new=None max_seqlen_q=None rotary_seqlens=None q_descale=None k_descale=None v_descale=None"
    " softmax_scale=None causal=False window_size=(-1,-1) attention_chunk=0 softcap=0.0 rotary_interleaved=True"
    " scheduler_metadata=None num_splits=0 pack_gqa=None sm_margin=0 return_softmax_lse=False",
}


@pytest.mark.parametrize(("version", "name"), SIGNATURES)
def test_signatures(version, name):
    parameters = inspect.signature(getattr(MODULES[version], name)).parameters.values()
    written = []
    for parameter in parameters:
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        default = "" if parameter.default is parameter.empty else f"={parameter.default}".replace(", ", ",")
        written.append(parameter.name + default)
    assert written == SIGNATURES[version, name].split()


def test_the_version_is_that_of_the_signatures():
    assert flash_attn.__version__ == "2.8.3"


@VERSIONS
def test_arrays_are_refused_by_name(version):
    module, tensor, ends = MODULES[version], torch.zeros(1, 4, 2, 8), torch.tensor([0, 4])
    array, packed = tensor.numpy(), tensor[0]
    for name in "qkv":
        given = {"q": tensor, "k": tensor, "v": tensor, name: array}
        with pytest.raises(TypeError, match=f"^{name}: expected Tensor, got ndarray"):
            module.flash_attn_func(**given)
    for name in ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"):
        given = {"q": packed, "k": packed, "v": packed, "cu_seqlens_q": ends, "cu_seqlens_k": ends}
        given[name] = given[name].numpy()
        with pytest.raises(TypeError, match=f"^{name}: expected Tensor, got ndarray"):
            module.flash_attn_varlen_func(**given, max_seqlen_q=4, max_seqlen_k=4)
    for name in ("q", "k_cache", "v_cache", "k", "v"):
        given = {"q": tensor, "k_cache": tensor, "v_cache": tensor, "k": tensor, "v": tensor, name: array}
        with pytest.raises(TypeError, match=f"^{name}: expected Tensor, got ndarray"):
            module.flash_attn_with_kvcache(**given, cache_seqlens=0)


def with_lse(module: ModuleType, result):
    """(out, lse) of a call with return_attn_probs."""
    if module is flash_attn:
        out, lse, probabilities = result
        assert probabilities is None
        return out, lse
    return result


@VERSIONS
@ON
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 7, 70), (1, 65, 64), (3, 64, 128), (2, 5, 200)], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
def test_plain(version, device, sizes, heads):
    module = MODULES[version]
    q, k, v = random_qkv(*sizes, *heads, device=device)
    expected, expected_lse = rows_of_attention(q, k, v)
    bare = module.flash_attn_func(q, k, v)
    assert isinstance(bare, torch.Tensor)
    assert_near(bare, expected, 1e-5)
    out, lse = with_lse(module, module.flash_attn_func(q, k, v, return_attn_probs=True))
    assert_near(out, expected, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    assert_near(module.flash_attn_func(q, k, v, softmax_scale=0.7), rows_of_attention(q, k, v, scale=0.7)[0], 1e-5)


@VERSIONS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(version, dtype):
    q, k, v = random_qkv(2, 9, 130, dtype=dtype)
    out = MODULES[version].flash_attn_func(q, k, v)
    oracle, _ = rows_of_attention(q, k, v)
    plain = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert out.dtype == dtype
    assert_within_twice_torch(out, oracle, plain)


PACKED = {
    "equal": ([5, 5], [64, 64]),
    "different": ([5, 1, 9], [70, 3, 128]),
    "an empty one": ([4, 0, 3], [10, 20, 64]),
    "no keys in one": ([4, 2], [10, 0]),
    "one": ([7], [65]),
}


def boundaries(lengths: list[int], device: str) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def packed_oracle(q, k, v, query_lengths, key_lengths, used=None):
    outs, lses = [], []
    starts = zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    for row, (queries, keys, values) in enumerate(starts):
        length = len(keys) if used is None else used[row]
        out, lse = softmax_attention(queries, keys[:length], values[:length])
        outs.append(out if length else torch.zeros_like(out))
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, 1)


@VERSIONS
@ON
@pytest.mark.parametrize("case", PACKED)
def test_packed(version, device, case):
    module, (query_lengths, key_lengths) = MODULES[version], PACKED[case]
    q, k, v = (x[0] for x in random_qkv(1, sum(query_lengths), sum(key_lengths), 4, 2, device=device))
    k, v = k[: sum(key_lengths)], v[: sum(key_lengths)]
    limits = (boundaries(query_lengths, device), boundaries(key_lengths, device))
    longest = (max(query_lengths), max(key_lengths))
    expected, expected_lse = packed_oracle(q, k, v, query_lengths, key_lengths)
    assert_near(module.flash_attn_varlen_func(q, k, v, *limits, *longest), expected, 1e-5)
    generous = (longest[0] + 3, longest[1] + 10)
    result = module.flash_attn_varlen_func(q, k, v, *limits, *generous, return_attn_probs=True)
    out, lse = with_lse(module, result)
    assert_near(out, expected, 1e-5)
    assert_near(lse, expected_lse, 1e-5)


@ON
def test_used_parts_of_packed_sequences(device):
    query_lengths, key_lengths, used_q, used_k = [6, 6], [64, 64], [6, 2], [30, 64]
    q, k, v = (x[0] for x in random_qkv(1, 12, 128, device=device))
    out, lse = flash_attn_interface.flash_attn_varlen_func(
        q,
        k,
        v,
        boundaries(query_lengths, device),
        boundaries(key_lengths, device),
        6,
        64,
        torch.tensor(used_q, device=device).int(),
        torch.tensor(used_k, device=device).int(),
        return_attn_probs=True,
    )
    expected, expected_lse = packed_oracle(q, k, v, query_lengths, key_lengths, used_k)
    assert_near(out[:8], expected[:8], 1e-5)
    assert_near(lse[:, :8], expected_lse[:, :8], 1e-5)
    assert not out[8:].any()


@ON
def test_packed_queries_over_a_block_table(device):
    q, k, v = random_qkv(2, 4, 128, device=device)
    table = torch.tensor([[2, 0], [3, 1]], device=device).int()
    caches = [x.new_full((4, 64, 4, 16), torch.nan) for x in (k, v)]
    for cache, values in zip(caches, (k, v), strict=True):
        cache[table.long()] = values.unflatten(1, (2, 64))
    limits = (boundaries([4, 2], device), boundaries([128, 70], device))
    packed = torch.cat([q[0], q[1, :2]])
    out, lse, _ = flash_attn.flash_attn_varlen_func(
        packed, *caches, *limits, 4, 128, return_attn_probs=True, block_table=table
    )
    expected, expected_lse = rows_of_attention(q, k, v, [128, 70])
    assert_near(out, torch.cat([expected[0], expected[1, :2]]), 1e-5)
    assert_near(lse, torch.cat([expected_lse[0], expected_lse[1, :, :2]], 1), 1e-5)


@VERSIONS
@ON
def test_a_cache(version, device):
    attend = MODULES[version].flash_attn_with_kvcache
    q, k, v = random_qkv(2, 5, 200, device=device)
    assert_near(attend(q, k, v), rows_of_attention(q, k, v)[0], 1e-5)
    assert_near(attend(q, k, v, cache_seqlens=70), rows_of_attention(q, k, v, [70, 70])[0], 1e-5)
    lengths = torch.tensor([3, 130], device=device).int()
    out, lse = attend(q, k, v, cache_seqlens=lengths, return_softmax_lse=True)
    expected, expected_lse = rows_of_attention(q, k, v, [3, 130])
    assert_near(out, expected, 1e-5)
    assert_near(lse, expected_lse, 1e-5)
    rows = torch.tensor([1, 1], device=device).int()
    out = attend(q, k, v, cache_seqlens=lengths, cache_batch_idx=rows)
    assert_near(out, rows_of_attention(q, k[[1, 1]], v[[1, 1]], [3, 130])[0], 1e-5)


@VERSIONS
@ON
@pytest.mark.parametrize("size", [64, 256, 20])
def test_a_paged_cache_that_grows(version, device, size):
    attend = MODULES[version].flash_attn_with_kvcache
    q, k, v = random_qkv(2, 5, 150, device=device)
    per_row = -(-150 // size)
    table = torch.randperm(2 * per_row).view(2, per_row).int().to(device)
    caches = [torch.full((2 * per_row, size, 4, 16), torch.nan, device=device) for _ in range(2)]
    lengths = torch.zeros(2, dtype=torch.int32, device=device)
    for step in (100, 50):
        new = [x[:, int(lengths[0]) : int(lengths[0]) + step] for x in (k, v)]
        out = attend(q, *caches, *new, cache_seqlens=lengths, **{TABLE[version]: table})
        lengths = lengths + step
        assert_near(out, rows_of_attention(q, k, v, lengths.tolist())[0], 1e-5)


@VERSIONS
def test_new_keys_are_written_into_the_cache(version):
    attend = MODULES[version].flash_attn_with_kvcache
    q, k, v = random_qkv(2, 5, 30)
    caches = [torch.zeros(3, 100, 4, 16) for _ in range(2)]
    out = attend(q, *caches, k, v, cache_seqlens=0, cache_batch_idx=torch.tensor([2, 0]))
    assert torch.equal(caches[0][2, :30], k[0]) and torch.equal(caches[1][0, :30], v[1])
    assert not caches[0][1].any() and not caches[0][0, 30:].any()
    assert_near(out, rows_of_attention(q, k, v)[0], 1e-5)


# ---- what is not supported ----

SLOPES, LENGTHS = torch.ones(4), torch.tensor([1, 1])
COMMON = {"causal": True, "window_size": (3, 0), "softcap": 5.0}
REFUSED = {
    ("2", "flash_attn_func"): {**COMMON, "dropout_p": 0.1, "alibi_slopes": SLOPES, "deterministic": None},
    ("2", "flash_attn_varlen_func"): {**COMMON, "dropout_p": 0.1, "alibi_slopes": SLOPES},
    ("2", "flash_attn_with_kvcache"): {
        **COMMON,
        "alibi_slopes": SLOPES,
        "rotary_cos": SLOPES,
        "rotary_sin": SLOPES,
        "rotary_interleaved": False,
        "cache_leftpad": LENGTHS,
        "num_splits": 4,
    },
    ("3", "flash_attn_func"): {
        **COMMON,
        "qv": SLOPES,
        "q_descale": SLOPES,
        "k_descale": SLOPES,
        "v_descale": SLOPES,
        "attention_chunk": 64,
        "num_splits": 2,
        "pack_gqa": True,
        "sm_margin": 8,
    },
    ("3", "flash_attn_varlen_func"): {**COMMON, "qv": SLOPES, "v_descale": SLOPES, "sm_margin": 1},
    ("3", "flash_attn_with_kvcache"): {
        **COMMON,
        "rotary_cos": SLOPES,
        "rotary_seqlens": LENGTHS,
        "cache_leftpad": LENGTHS,
        "cu_seqlens_q": LENGTHS,
        "cu_seqlens_k_new": LENGTHS,
        "max_seqlen_q": 5,
        "scheduler_metadata": LENGTHS,
        "rotary_interleaved": False,
    },
}


@pytest.mark.parametrize(
    ("version", "name", "argument"),
    [(*function, argument) for function, arguments in REFUSED.items() for argument in arguments],
)
def test_other_values_are_refused_by_name(version, name, argument):
    q, k, v = random_qkv(1, 5, 70)
    arguments = (q, k, v)
    if "varlen" in name:
        limits = (torch.tensor([0, 5]), torch.tensor([0, 70]))
        arguments = (q[0], k[0], v[0], *limits, 5, 70)
    with pytest.raises(NotImplementedError, match=rf"{name}: only {argument}=.* supported, got "):
        getattr(MODULES[version], name)(*arguments, **{argument: REFUSED[version, name][argument]})


WRONG = {
    "cu_seqlens_q: expected boundaries that rise from 0 to 5": ([0, 4], [0, 70], 5, 70),
    "cu_seqlens_k: expected boundaries that rise from 0 to 70": ([0, 5], [1, 70], 5, 70),
    "max_seqlen_q: expected at least 5": ([0, 5], [0, 70], 4, 70),
    "max_seqlen_k: expected at least 40": ([0, 2, 5], [0, 40, 70], 5, 39),
    "cu_seqlens_k: expected 1 sequences": ([0, 5], [0, 40, 70], 5, 70),
}


@VERSIONS
@pytest.mark.parametrize("message", WRONG)
def test_wrong_packing_is_refused(version, message):
    q, k, v = (x[0] for x in random_qkv(1, 5, 70))
    limits_q, limits_k, *longest = WRONG[message]
    with pytest.raises(ValueError) as error:
        MODULES[version].flash_attn_varlen_func(q, k, v, torch.tensor(limits_q), torch.tensor(limits_k), *longest)
    assert str(error.value).startswith(message), error.value


@VERSIONS
def test_wrong_caches_are_refused(version):
    attend = MODULES[version].flash_attn_with_kvcache
    q, k, v = random_qkv(2, 5, 64)
    with pytest.raises(ValueError, match="k_cache: expected 2 rows as in q, got 3"):
        attend(q, *(torch.zeros(3, 64, 4, 16) for _ in range(2)))
    with pytest.raises(ValueError, match="cache_seqlens: expected at most 59, to write k"):
        attend(q, k, v, k[:, :5], v[:, :5], cache_seqlens=60)
    with pytest.raises(ValueError, match="cache_seqlens: expected where to write k and v"):
        attend(q, k, v, k[:, :5], v[:, :5])
    with pytest.raises(ValueError, match="v: expected k and v together"):
        attend(q, k, v, k[:, :5], cache_seqlens=3)
    with pytest.raises(ValueError, match="cache_seqlens: expected the lengths that go with"):
        attend(q, k, v, **{TABLE[version]: torch.zeros(2, 1).int()})
    with pytest.raises(ValueError, match="cache_batch_idx: expected None together with"):
        attend(q, k, v, cache_seqlens=3, cache_batch_idx=LENGTHS, **{TABLE[version]: torch.zeros(2, 1).int()})
