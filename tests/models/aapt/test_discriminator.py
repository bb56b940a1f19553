# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch

from aapt_fast.models.aapt.discriminator import Discriminator, QueryHead
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import MINI_PERSON, NANO
from aapt_fast.testing.compare import assert_near

CONFIG = dataclasses.replace(NANO, layers=3)
FRAMES = 5


def inputs(rows: int = 2) -> tuple[torch.Tensor, ...]:
    """Frames, previous frames, controls, t."""
    frames, previous = torch.randn(2, rows, 16, FRAMES, 4, 4)
    return frames, previous, torch.randn(rows, CONFIG.control.step_channels, FRAMES, 4, 4), torch.rand(rows)


def random_discriminator(**options) -> Discriminator:
    torch.manual_seed(1)
    model = Discriminator(CONFIG, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sensitivity(model: Discriminator, argument: int) -> torch.Tensor:
    """bool [logits, frames]: which logits of row 0 depend on which frame of this argument."""
    tensors = list(inputs())
    tensors[argument].requires_grad_(True)
    logits = model(*tensors)
    rows = []
    for column in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[0, column], tensors[argument], retain_graph=True)
        assert (gradient[1] == 0).all()  # rows are independent
        rows.append((gradient[0] != 0).any(0).flatten(1).any(1))
    return torch.stack(rows)


@pytest.mark.parametrize("argument", [0, 1, 2], ids=["frames", "previous", "control"])
def test_a_frames_logit_sees_that_frame_and_those_before(argument):
    """Through the layers a window of 2 reaches everything before; frame 1 is the sink anyway."""
    assert torch.equal(sensitivity(random_discriminator(), argument), torch.ones(FRAMES, FRAMES).tril().bool())


def test_whole_clip_gives_one_logit_that_sees_everything():
    model = random_discriminator(whole_clip=True)
    assert model(*inputs()).shape == (2, 1)
    assert torch.equal(sensitivity(model, 0), torch.ones(1, FRAMES).bool())


def test_logits_depend_on_t():
    model, (frames, previous, control, t) = random_discriminator(), inputs()
    assert not torch.allclose(model(frames, previous, control, t), model(frames, previous, control, 1 - t))


def test_logits_are_float32_under_autocast():
    model = random_discriminator()
    expected = model(*inputs())
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        logits = model(*inputs())
    assert logits.dtype == expected.dtype == torch.float32


@pytest.mark.parametrize(("layers", "depths"), [(1, (1,)), (2, (1, 2)), (6, (2, 4, 6)), (36, (12, 24, 36))])
def test_heads_sit_at_thirds_of_the_depth(layers, depths):
    assert Discriminator(dataclasses.replace(NANO, layers=layers)).depths == depths


def test_depths_may_be_chosen_and_leave_out_later_blocks():
    model = random_discriminator(depths=(1, 2))
    assert len(model.trunk.blocks) == 2 and model(*inputs()).shape == (2, FRAMES)
    with pytest.raises(ValueError, match=r"depths: expected ascending numbers of blocks in 1\.\.1, got \(2, 1\)"):
        Discriminator(CONFIG, depths=(2, 1))(*inputs())


def test_it_starts_from_the_trunk_of_a_generator():
    generator = Generator(CONFIG)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_()
    model = Discriminator(CONFIG, depths=(1, 2))
    model.start_from(generator)
    expected = generator.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.trunk.state_dict().items())
    frames, previous, control, t = inputs()
    states = [
        each.hidden_states(frames, previous, control, t, each.new_cache(), (2,))[0] for each in (generator, model.trunk)
    ]
    assert torch.equal(*states)


def test_hidden_states_are_what_the_next_block_adds_to():
    """After the last block they give the generator's own output."""
    torch.manual_seed(2)
    model = Generator(dataclasses.replace(CONFIG, head_width=0, control_width=0, prediction="velocity"))
    with torch.no_grad():
        model.unpatch.weight.normal_(std=0.1)
        model.modulation_out.normal_()
    frames, previous, control, t = inputs()
    (tokens,) = model.hidden_states(frames, previous, control, t, model.new_cache(), (3,))
    shift, scale = (model.modulation_out + model.timestep(t)[:, :2]).unbind(1)
    normed = torch.nn.functional.rms_norm(tokens, tokens.shape[-1:], eps=1e-6)
    patches = model.unpatch(normed * (1 + scale[:, None, None]) + shift[:, None, None])
    output = torch.nn.functional.pixel_shuffle(patches.unflatten(2, (2, 2)).permute(0, 1, 4, 2, 3), 2).transpose(1, 2)
    expected = model(frames, previous, control, t, model.new_cache())
    assert_near(frames - t.view(-1, 1, 1, 1, 1) * output, expected, 1e-5)


def test_a_query_head_reads_every_token_of_its_frame_only():
    torch.manual_seed(0)
    head, tokens = QueryHead(8, 2), torch.randn(1, 2, 5, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(head(tokens)[0, 1].sum(), tokens)
    assert (gradient[0, 0] == 0).all() and (gradient[0, 1] != 0).any(-1).all()


def test_the_bundled_size():
    parameters = sum(parameter.numel() for parameter in Discriminator(MINI_PERSON).parameters())
    assert 4e6 < parameters < 7e6
