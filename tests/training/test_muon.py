# SPDX-License-Identifier: Apache-2.0
"""Muon in float32 against torch's, which multiplies in bfloat16, and against a singular value decomposition."""

import pytest
import torch

from aapt_fast.training.muon import Float32Muon, orthogonal

SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_weights_move_as_torch_moves_them(shape: tuple[int, int], nesterov: bool) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = start.clone(), start.clone()
    first = Float32Muon([ours], **SETTINGS, nesterov=nesterov)
    second = torch.optim.Muon([theirs], **SETTINGS, nesterov=nesterov)
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bfloat16 in theirs


def test_directions_stay_and_lengths_become_equal() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(16, 10)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    update = orthogonal(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7)
    along = torch.einsum("ik,ij,kj->k", left, update, right)
    assert ((along > 0.6) & (along < 1.3)).all()
    assert (update - left @ torch.diag(along) @ right).norm() < 1e-4 * update.norm()


def test_state_is_the_one_of_torch() -> None:
    weight = torch.ones(4, 4)
    theirs = torch.optim.Muon([weight], **SETTINGS)
    weight.grad = torch.randn(4, 4)
    theirs.step()
    ours = Float32Muon([torch.ones(4, 4)], **SETTINGS)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.state_dict()["state"][0]["momentum_buffer"], theirs.state[weight]["momentum_buffer"])


def test_weights_without_a_gradient_stay() -> None:
    weight = torch.ones(4, 4)
    Float32Muon([weight], **SETTINGS).step()
    assert torch.equal(weight, torch.ones(4, 4))


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="closure"):
        Float32Muon([torch.ones(2, 2)], **SETTINGS).step(lambda: 0.0)
