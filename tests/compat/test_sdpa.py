# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import scaled_dot_product_attention as imported_before

from aapt_fast.compat.sdpa import scaled_dot_product_attention_through_pages
from aapt_fast.testing.compare import assert_near


def by_heads(queries: int = 9, keys: int = 70, heads: int = 4, kv_heads: int = 4) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(2, heads, queries, 16),
        torch.randn(2, kv_heads, keys, 16),
        torch.randn(2, kv_heads, keys, 16),
    )


@pytest.mark.parametrize("keys", [1, 64, 70, 128])
@pytest.mark.parametrize("function", [F.scaled_dot_product_attention, imported_before])
def test_eligible_calls_go_through_pages(keys, function):
    q, k, v = by_heads(keys=keys)
    expected = function(q, k, v, scale=0.3)
    with scaled_dot_product_attention_through_pages() as calls:
        out = function(query=q, key=k, value=v, scale=0.3)
    assert calls.through_pages == 1 and not calls.left_alone
    assert_near(out, expected, 1e-5)


def test_grouped_heads_and_tokens_first():
    q, k, v = by_heads(kv_heads=2)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    with scaled_dot_product_attention_through_pages() as calls:
        assert_near(F.scaled_dot_product_attention(q, k, v, enable_gqa=True), expected, 1e-5)
    assert calls.through_pages == 1


Q, K, V = by_heads()
LEFT_ALONE = {
    "a mask": ((Q, K, V), {"attn_mask": torch.ones(9, 70).tril().bool()}),
    "causal": ((Q, K, V), {"is_causal": True}),
    "dropout": ((Q, K, V), {"dropout_p": 0.5}),
    "not four dimensions": ((Q[0], K[0], V[0]), {}),
    "a dtype without pages": ((Q.double(), K.double(), V.double()), {}),
    "a gradient": ((Q.clone().requires_grad_(), K, V), {}),
    "shapes that broadcast or differ": ((Q, K[:1], V[:1]), {}),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_other_calls_run_as_ever(reason):
    arguments, options = LEFT_ALONE[reason]
    torch.manual_seed(3)
    expected = F.scaled_dot_product_attention(*arguments, **options)
    torch.manual_seed(3)
    with scaled_dot_product_attention_through_pages() as calls:
        out = F.scaled_dot_product_attention(*arguments, **options)
    assert torch.equal(out, expected)
    assert calls.through_pages == 0 and calls.left_alone == {reason: 1}
    assert reason in str(calls)


def test_torch_is_itself_again_after_an_exception():
    original = F.scaled_dot_product_attention
    with pytest.raises(KeyError), scaled_dot_product_attention_through_pages() as calls:
        assert F.scaled_dot_product_attention is original
        raise KeyError
    F.scaled_dot_product_attention(Q, K, V)
    assert calls.through_pages == 0


def test_other_threads_do_not_notice():
    results = []
    with scaled_dot_product_attention_through_pages() as calls:
        thread = threading.Thread(target=lambda: results.append(F.scaled_dot_product_attention(Q, K, V)))
        thread.start()
        thread.join()
        assert calls.through_pages == 0
    assert len(results) == 1


def test_blocks_nest():
    with scaled_dot_product_attention_through_pages() as outer, scaled_dot_product_attention_through_pages() as inner:
        F.scaled_dot_product_attention(Q, K, V)
    assert (outer.through_pages, inner.through_pages) == (0, 1)
