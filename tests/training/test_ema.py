# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from aapt_fast.testing.compare import assert_near
from aapt_fast.training.ema import WeightAverage


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_average_has_its_closed_form():
    """Weights 1 from the start at 0: 1 minus the product of the decays, which warm up as (step + 1) / (step + 10)."""
    model = nn.Linear(2, 3)
    set_all(model, 0.0)
    average = WeightAverage(model, decay=0.5)
    set_all(model, 1.0)
    remaining = 1.0
    for step in range(20):
        average.update(step)
        remaining *= min(0.5, (step + 1) / (step + 10))
        if step in (0, 4, 12):
            for tensor in average.average.values():
                assert_near(tensor, torch.full_like(tensor, 1 - remaining), 1e-6, f"after step {step}")
    assert min(0.5, 1 / 10) == 0.1 and min(0.5, 13 / 22) == 0.5  # both branches were taken


def test_average_starts_at_the_weights_and_shares_nothing_with_them():
    model = nn.Linear(2, 3)
    average = WeightAverage(model)
    before = model.weight.detach().clone()
    set_all(model, 9.0)
    assert torch.equal(average.average["weight"], before)


def test_applied_swaps_and_restores_the_very_same_tensors():
    model = nn.Linear(2, 3)
    average = WeightAverage(model)
    set_all(model, 5.0)
    parameters = dict(model.named_parameters())
    places = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    averaged = average.average["weight"].clone()
    with average.applied():
        assert torch.equal(model.weight, averaged)
        assert torch.equal(average.average["weight"], torch.full((3, 2), 5.0))
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert torch.equal(model.weight, torch.full((3, 2), 5.0))
    assert torch.equal(average.average["weight"], averaged)


def test_applied_restores_after_an_error():
    model = nn.Linear(2, 3)
    average = WeightAverage(model)
    set_all(model, 5.0)
    with pytest.raises(RuntimeError, match="evaluation failed"), average.applied():
        raise RuntimeError("evaluation failed")
    assert torch.equal(model.weight, torch.full((3, 2), 5.0))


def test_training_goes_on_after_a_swap():
    """The optimiser still moves the weights that the model uses, and the average follows them."""
    model = nn.Linear(2, 3)
    average = WeightAverage(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    with average.applied():
        pass
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    assert_near(model.weight, before - 1, 1e-6, "weights")
    average.update(0)
    assert_near(average.average["weight"], before - 0.9, 1e-6, "average")


def test_state_survives_a_round_trip():
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    average, restored = WeightAverage(model), WeightAverage(other)
    restored.load_state_dict({name: tensor.clone() for name, tensor in average.state_dict().items()})
    assert all(torch.equal(restored.average[name], tensor) for name, tensor in average.average.items())
    with pytest.raises(KeyError, match="bias"):
        restored.load_state_dict({"weight": torch.zeros(3, 2)})
