# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import torch
from torch import nn

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.ops.causal_conv3d import tap_major
from aapt_fast.testing.compare import assert_near
from aapt_fast.training.optimiser import MatrixOptimiser


def make(model: Generator, weight_decay: float = 0.01) -> MatrixOptimiser:
    return MatrixOptimiser(model, matrix_rate=0.02, rate=1e-3, weight_decay=weight_decay)


def give_gradients(model: Generator, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(model: Generator) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_a_step_changes_every_weight_of_the_model_itself():
    model = Generator(NANO)
    before, places = weights(model), [parameter.data_ptr() for parameter in model.parameters()]
    optimiser = make(model)
    give_gradients(model)
    optimiser.step()
    assert all(not torch.equal(before[name], after) for name, after in weights(model).items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


def test_views_share_memory_with_the_parameters():
    model = Generator(NANO)
    optimiser = make(model)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert all(view.untyped_storage().data_ptr() in storages for view, _, _ in optimiser._views)


def test_matrices_inside_go_to_muon_and_the_rest_to_adam():
    model = Generator(NANO)
    optimiser = make(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon = {names[id(parameter)] for _, parameter, _ in optimiser._views}
    adam = {names[id(parameter)] for parameter in optimiser._rest}
    assert muon | adam == set(names.values()) and not muon & adam
    assert {"blocks.0.video.qkv.weight", "blocks.1.video.down.weight"} <= muon
    assert {"head.conv_out.weight", "control_stem.0.weight"} <= muon
    assert {"patch_embed.weight", "unpatch.weight", "timestep.out.weight", "skip"} <= adam
    assert {"head.conv_in.bias", "blocks.0.video.q_norm", "blocks.0.video.modulation"} <= adam


def test_a_codec_gives_its_kernels_to_muon_in_their_own_memory_and_its_linear_maps_to_slow_adam():
    model = MiniVAE(MiniVAEConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8), (1, 1, 1)))
    optimiser = MatrixOptimiser(model, matrix_rate=0.02, rate=1e-3, slow={"linear": 0.1})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for view, parameter, _ in optimiser._views:
        assert view.data_ptr() == parameter.data_ptr() and view.shape == (len(parameter), parameter[0].numel())
    muon = {names[id(parameter)] for _, parameter, _ in optimiser._views}
    assert {"encoder.conv_in.weight", "decoder.up_half.weight", "decoder.blocks_full.0.conv1.weight"} <= muon
    _, usual, slow = optimiser.param_groups
    assert {names[id(each)] for each in usual["params"]} >= {"decoder.conv_out.weight", "decoder.conv_in.bias"}
    assert {names[id(each)].split(".")[0] for each in slow["params"]} == {"linear_encoder", "linear_decoder"}
    assert (usual["lr"], slow["lr"]) == (1e-3, 1e-4)


def test_the_order_of_a_kernels_memory_does_not_change_the_step():
    torch.manual_seed(0)
    weight, gradient = torch.randn(6, 4, 2, 3, 3), torch.randn(6, 4, 2, 3, 3)
    moved = []
    for layout in (lambda each: each.clone(), tap_major):
        model = nn.Module()
        model.decoder = nn.Module()
        model.decoder.weight = nn.Parameter(layout(weight))
        optimiser = MatrixOptimiser(model, matrix_rate=0.02, rate=1e-3)
        model.decoder.weight.grad = gradient.clone()
        optimiser.step()
        moved.append(model.decoder.weight.detach())
    assert_near(moved[1], moved[0], 1e-6, "weight")
    assert not torch.equal(moved[0], weight)


def test_a_fused_qkv_is_three_matrices():
    """Muon makes each of them orthogonal: singular values about 1, however small it is beside the other two."""
    model = Generator(NANO)
    optimiser = make(model, weight_decay=0.0)
    weight = model.blocks[0].video.qkv.weight
    spans = [(span.start, span.stop) for _, parameter, span in optimiser._views if parameter is weight]
    assert spans == [(0, 32), (32, 64), (64, 96)]
    before = weight.detach().clone()
    give_gradients(model)
    weight.grad[:32] *= 1000  # a strong query gradient must not drown the others
    optimiser.step()
    for update in (before - weight.detach()).split(32):
        strengths = torch.linalg.svdvals(update) / 0.02
        assert strengths.mean() > 0.6 and strengths.max() < 1.5


def test_a_convolution_kernel_is_one_matrix_of_outputs_by_inputs_and_taps():
    model = Generator(NANO)
    optimiser = make(model, weight_decay=0.0)
    kernel = model.head.first[0].weight
    before = kernel.detach().clone()
    give_gradients(model)
    optimiser.step()
    strengths = torch.linalg.svdvals((before - kernel.detach()).flatten(1))
    assert strengths.max() < 2.5 * strengths.min()


def test_rates_are_scaled_together():
    model = Generator(NANO)
    optimiser = make(model, weight_decay=0.0)
    before = weights(model)
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    give_gradients(model)
    optimiser.step()
    assert all(torch.equal(before[name], after) for name, after in weights(model).items())


def test_zero_grad_forgets_every_gradient():
    """A parameter without a new gradient stays as it is, even if it had one before."""
    model = Generator(NANO)
    optimiser = make(model, weight_decay=0.0)
    give_gradients(model)
    optimiser.step()
    optimiser.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    before = weights(model)
    optimiser.step()
    assert all(torch.equal(before[name], after) for name, after in weights(model).items())


def test_state_survives_a_round_trip():
    """Straight on, or through a state_dict into a new optimiser: bit-equal weights."""
    model = Generator(NANO)
    optimiser = make(model)
    give_gradients(model, 0)
    optimiser.step()
    twin = copy.deepcopy(model)
    resumed = make(twin)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    fresh_model = copy.deepcopy(model)
    fresh = make(fresh_model)
    for each, its_optimiser in ((model, optimiser), (twin, resumed), (fresh_model, fresh)):
        give_gradients(each, 1)
        its_optimiser.step()
    after, restored, forgetful = (weights(each) for each in (model, twin, fresh_model))
    for name in after:
        assert_near(restored[name], after[name], 0.0, name)
        assert not torch.equal(forgetful[name], after[name]), name
