# SPDX-License-Identifier: Apache-2.0
"""The log of controls over more steps than one block holds."""

from __future__ import annotations

import gc

import torch

from aapt_fast.streaming.control_log import STEPS, ControlLog


def value(step: int) -> torch.Tensor:
    return torch.full((4, 3, 3), float(step))


def filled(steps: int) -> ControlLog:
    log = ControlLog()
    for step in range(1, steps + 1):
        log.add(step, [value(step)], alone=True)
    return log


def test_steps_of_all_blocks_are_taken_in_order():
    taken, alone = filled(2 * STEPS + 3).taken(2 * STEPS + 1)
    assert alone and taken is not None
    assert torch.equal(taken, torch.stack([value(step) for step in range(1, 2 * STEPS + 2)]))


def test_a_step_taken_again_replaces_what_came_after_it():
    log = filled(STEPS + 5)
    log.add(STEPS - 1, [value(7)], alone=False)
    taken, alone = log.taken(STEPS - 1)
    assert not alone and taken is not None
    assert torch.equal(taken[-2:], torch.stack([value(STEPS - 2), value(7)]))


def test_a_fork_has_the_past_and_a_future_of_its_own():
    log = filled(STEPS + 1)
    other = log.fork()
    log.add(STEPS + 1, [value(-1)], alone=True)
    taken, _ = other.taken(STEPS + 1)
    assert taken is not None and torch.equal(taken[-1], value(STEPS + 1))


def test_a_model_without_control_has_no_values():
    log = ControlLog()
    log.add(1, [], alone=True)
    assert log.taken(1) == (None, True)


def test_a_long_session_keeps_few_tensors():
    def tensors() -> int:
        return sum(type(each) is torch.Tensor for each in gc.get_objects())

    gc.collect()
    before = tensors()
    log = filled(3 * STEPS)
    gc.collect()
    assert tensors() - before == 3  # one for each block, none for each step
    assert log.taken(1)[1]
