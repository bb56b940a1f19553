# SPDX-License-Identifier: Apache-2.0
"""Errors name the argument, what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from aapt_fast.errors import require_plain

VALUES = torch.rand(2, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about its own kinds of tensors
@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: VALUES.to("meta"), "one on the device meta, which holds none"),
        (lambda: torch.nested.nested_tensor([VALUES, VALUES[:1]]), "a nested one; give"),
        (
            lambda: torch.quantize_per_tensor(VALUES, 0.1, 0, torch.quint8),
            r"a quantised one \(torch.quint8\); give its",
        ),
        (lambda: VALUES.to_sparse(), r"one of layout torch.sparse_coo; give its .to_dense\(\)"),
        (lambda: VALUES.to_sparse_csr(), "one of layout torch.sparse_csr"),
        (lambda: VALUES.to(torch.complex64), r"complex ones \(torch.complex64\); give its .real"),
    ],
    ids=["meta", "nested", "quantised", "sparse", "compressed", "complex"],
)
def test_tensors_without_plain_values_are_refused(make, got) -> None:
    with pytest.raises(TypeError, match=f"^pose: expected a tensor with real numbers in memory, got {got}"):
        require_plain("pose", make())


@pytest.mark.parametrize("values", [VALUES, VALUES.T, VALUES[:, ::2], VALUES.expand(4, 2, 3), VALUES.int()])
def test_views_and_integers_are_plain(values) -> None:
    require_plain("pose", values)
