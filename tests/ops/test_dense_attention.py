# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from aapt_fast.ops.dense_attention import as_pages, dense_attention, running_kernel, table_attention
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.testing.attention import random_qkv, rows_of_attention
from aapt_fast.testing.cases import DEVICES, every_second, strided
from aapt_fast.testing.compare import assert_near

KEYS = (1, 63, 64, 65, 128, 200)


def both_routes(q, k, v, **options):
    """Through torch, and through pages (asking for the log-sum-exp does that)."""
    plain, nothing = dense_attention(q, k, v, **options)
    paged, lse = dense_attention(q, k, v, with_lse=True, **options)
    assert nothing is None and lse.dtype == torch.float32
    return plain, paged, lse


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("keys", KEYS)
def test_equals_the_softmax(keys, heads, device):
    q, k, v = random_qkv(2, 7, keys, *heads, device=device)
    expected, expected_lse = rows_of_attention(q, k, v, scale=0.3)
    plain, paged, lse = both_routes(q, k, v, scale=0.3)
    assert_near(plain, expected, 1e-5)
    assert_near(paged, expected, 1e-5)
    assert_near(lse, expected_lse, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", [[70, 130], [64, 64], [0, 3], [130, 130], [0, 0]], ids=str)
def test_what_lies_behind_the_lengths_is_not_looked_at(lengths, device):
    q, k, v = random_qkv(2, 5, 130, device=device)
    for row, length in enumerate(lengths):
        k[row, length:] = v[row, length:] = torch.nan
    plain, paged, lse = both_routes(q, k, v, lengths=torch.tensor(lengths, device=device))
    for row, length in enumerate(lengths):
        if length == 0:
            assert not plain[row].any() and not paged[row].any() and (lse[row] == -torch.inf).all()
            continue
        expected, expected_lse = rows_of_attention(q[row, None], k[row, None], v[row, None], [length])
        assert_near(plain[row, None], expected, 1e-5)
        assert_near(paged[row, None], expected, 1e-5)
        assert_near(lse[row, None], expected_lse, 1e-5)


def test_parts_of_a_cache_become_pages_without_a_copy():
    cache = torch.full((2, 256, 4, 16), torch.nan)
    q, k, v = random_qkv(2, 5, 130)
    caches = [cache.clone(), cache.clone()]
    for buffer, values in zip(caches, (k, v), strict=True):
        buffer[:, :130] = values
    k_pages, v_pages, ids, valid = as_pages(*(buffer[:, :130] for buffer in caches))
    assert k_pages.data_ptr() == caches[0].data_ptr() and v_pages.data_ptr() == caches[1].data_ptr()
    assert ids.tolist() == [[0, 1, 2], [4, 5, 6]] and valid.tolist() == [[64, 64, 2]] * 2
    out, _ = dense_attention(q, *(buffer[:, :130] for buffer in caches), with_lse=True)
    assert_near(out, rows_of_attention(q, k, v)[0], 1e-5)


@pytest.mark.parametrize(
    "change",
    [strided, every_second, lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), lambda x: x[:1].expand_as(x)],
    ids=["strided", "every second", "by heads", "expanded"],
)
@pytest.mark.parametrize("keys", [64, 70])
def test_other_layouts_of_memory(change, keys):
    q, k, v = random_qkv(2, 5, keys)
    k, v = change(k), change(v)
    out, lse = dense_attention(change(q), k, v, with_lse=True)
    expected, expected_lse = rows_of_attention(change(q), k, v)
    assert_near(out, expected, 1e-5)
    assert_near(lse, expected_lse, 1e-5)


def test_the_end_of_memory_is_not_passed():
    k = torch.randn(1, 70, 2, 16)
    k_pages, _, _, _ = as_pages(k, k)
    assert k_pages.data_ptr() != k.data_ptr() and k_pages.shape == (2, 64, 2, 16)
    assert as_pages(k[:, :64], k[:, :64])[0].data_ptr() == k.data_ptr()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [16, 64, 128, 100])
def test_pages_of_any_size(size, device):
    lengths = [150, 33]
    q, k, v = random_qkv(2, 5, 200, 4, 2, device=device)
    per_row = -(-200 // size)
    caches = [torch.full((2 * per_row + 1, size, 2, 16), torch.nan, device=device) for _ in range(2)]
    places = (torch.randperm(2 * per_row) + 1).view(2, per_row)
    for row, length in enumerate(lengths):
        for token in range(length):
            for cache, values in zip(caches, (k, v), strict=True):
                cache[places[row, token // size], token % size] = values[row, token]
    table = places.clone().int()
    table[1, -(-33 // size) :] = 2147480000  # behind the length nothing is looked at
    expected, expected_lse = rows_of_attention(q, k, v, lengths)
    arguments = (q, *caches, table.to(device), torch.tensor(lengths, device=device))
    assert_near(table_attention(*arguments)[0], expected, 1e-5)
    out, lse = table_attention(*arguments, with_lse=True)
    assert_near(out, expected, 1e-5)
    assert_near(lse, expected_lse, 1e-5)


def test_gradients_flow_through_torch():
    q, k, v = (x.requires_grad_() for x in random_qkv(2, 5, 70))
    grad = torch.randn(2, 5, 4, 16)
    lengths = torch.tensor([70, 30])
    found = torch.autograd.grad(dense_attention(q, k, v, lengths=lengths)[0], (q, k, v), grad)
    expected = torch.autograd.grad(rows_of_attention(q, k, v, [70, 30])[0], (q, k, v), grad.double())
    for actual, wanted in zip(found, expected, strict=True):
        assert_near(actual, wanted, 1e-5)
    with pytest.raises(RuntimeError, match="paged_attention has no backward"):
        dense_attention(q, k, v, with_lse=True)


def test_values_may_be_wider_than_keys():
    q, k, _ = random_qkv(2, 5, 70)
    v = torch.randn(2, 70, 4, 24)
    assert_near(dense_attention(q, k, v)[0], rows_of_attention(q, k, v)[0], 1e-5)


def test_no_kernel_runs_here_unasked():
    assert running_kernel("paged_attention", torch.device("cpu")) is None
    with use_kernels("none"):
        assert running_kernel("paged_attention", torch.device("cpu")) is None


Q, K, V = random_qkv(2, 5, 70)
ERRORS = {
    "k: expected shape [2, L, Hkv, 16]": (Q, K[..., :8], V),
    "v: expected shape [2, 70, 4, Dv]": (Q, K, V[:, :60]),
    "k: expected the dtype of q": (Q, K.double(), V),
    "q: expected a number of heads that 3 divides": (Q, K[:, :, :3], V[:, :, :3]),
    "lengths: expected shape [2]": (Q, K, V, None, torch.tensor([3])),
    "lengths: expected integers": (Q, K, V, None, torch.tensor([3.0, 4.0])),
    "lengths: expected 0..70": (Q, K, V, None, torch.tensor([3, 71])),
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_arguments(message):
    with pytest.raises(ValueError) as error:
        dense_attention(*ERRORS[message])
    assert str(error.value).startswith(message), error.value


@pytest.mark.parametrize(
    ("table", "lengths", "message"),
    [
        ([[0, 5], [1, 2]], [128, 3], "table: expected pages in 0..4"),
        ([[0, -1], [1, 2]], [128, 3], "table: expected pages in 0..4"),
        ([[0, 1], [1, 2]], [129, 3], "lengths: expected 0..128"),
    ],
)
def test_bad_tables(table, lengths, message):
    cache = torch.zeros(5, 64, 4, 16)
    with pytest.raises(ValueError) as error:
        table_attention(Q, cache, cache, torch.tensor(table), torch.tensor(lengths))
    assert str(error.value).startswith(message), error.value
