# SPDX-License-Identifier: Apache-2.0
"""Gradients of networks whose tokens ranks share, and of blocks that are computed again, are those of the network."""

import dataclasses

import pytest
import torch

from aapt_fast.distributed.context_parallel import share_tokens
from aapt_fast.models.aapt.discriminator import Discriminator
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.thread_ranks import on_ranks
from aapt_fast.training.adversarial import roll_out
from aapt_fast.training.clips import Batch
from aapt_fast.training.place import blocks_of
from aapt_fast.training.recomputing import RecomputedBlock, recompute

CONFIG = dataclasses.replace(NANO, heads=4, grid=(6, 6), patch=2, layers=2)  # 9 tokens: two and four ranks fill up


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(kind=Generator):
    model = kind(CONFIG)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.1 * drawn(*parameter.shape, seed=number) + (parameter.ndim == 1))
    return model


def rolled_out(model):
    """A rollout of two segments across the wrap of the window, each differentiated; frames and their weights' pull."""
    clean = drawn(2, 16, 8, 6, 6)
    batch = Batch(clean, clean.roll(1, 2), drawn(2, CONFIG.control.step_channels, 8, 6, 6, seed=1))
    made = []
    for segment in roll_out(model, batch, drawn(*clean.shape, seed=2), segment_frames=4):
        segment.fake.square().mean().backward()
        made.append(segment.fake.detach())
    return torch.cat(made, 2)


def judged(model):
    """Logits of frames; the discriminator is called twice before the backward pass."""
    frames = drawn(2, 16, 5, 6, 6)
    given = frames.roll(1, 2), drawn(2, CONFIG.control.step_channels, 5, 6, 6, seed=1), torch.tensor([0.3, 0.9])
    logits = model(frames, *given)
    (logits.square().mean() + (logits - model(frames + 0.1, *given)).square().mean()).backward()
    return logits.detach()


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr("aapt_fast.training.precision.fast_dtype", lambda device: torch.float32)


@pytest.mark.parametrize(("kind", "work"), [(Generator, rolled_out), (Discriminator, judged)])
@pytest.mark.parametrize(("ranks", "again"), [(1, True), (2, False), (4, True)])
def test_the_mean_of_the_ranks_gradients_is_the_gradient(ranks, kind, work, again):
    whole = network(kind)
    expected = work(whole)

    def rank(transport):
        model = network(kind)
        for block in blocks_of(model) if again else ():
            recompute(block)
        share_tokens(model, transport)
        return work(model), gradients(model)

    results = on_ranks(ranks, rank)
    for result, _ in results:
        assert_near(result, expected, 1e-5)
    for name, gradient in gradients(whole).items():
        mean = torch.stack([found[name] for _, found in results]).mean(0)
        scale = gradient.abs().max()
        assert scale > 1e-6, name
        assert_near(mean / scale, gradient / scale, 2e-5, name)


def test_operators_in_recomputed_blocks_keep_little_for_the_backward_pass():
    def kept(layers, again):
        """Bytes that the operators of a rollout keep, but for weights."""
        model, found = Generator(dataclasses.replace(CONFIG, layers=layers)), {}
        for block in model.blocks if again else ():
            recompute(block)

        def note(tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        clean = drawn(2, 16, 4, 6, 6)
        batch = Batch(clean, clean, drawn(2, CONFIG.control.step_channels, 4, 6, 6))
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            [segment] = roll_out(model, batch, clean, segment_frames=4)
        assert segment.fake.requires_grad
        return sum(size for place, size in found.items() if place not in own)

    for_three_blocks = kept(4, again=False) - kept(1, again=False)
    assert for_three_blocks > 500_000
    assert kept(4, again=True) - kept(1, again=True) < 0.15 * for_three_blocks


def test_names_and_weights_of_a_recomputed_network_stay():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for block in model.blocks:
        recompute(block)
        assert type(block) is RecomputedBlock
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_heads_that_the_ranks_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="context: expected a number that divides 4 heads, got 3"):
        on_ranks(3, lambda transport: share_tokens(network(), transport))
