# SPDX-License-Identifier: Apache-2.0
"""A patched `AutoencoderKLWan` that runs on the ops of our decoders, against the same one unpatched."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

import aapt_fast
from aapt_fast.integrations import shared_vae
from aapt_fast.models.vae import video_stream
from aapt_fast.ops.calls import observe_ops
from aapt_fast.testing.compare import assert_near, relative_l2

TOLERANCE = 5e-5
RINGS = {"ring_conv3d", "norm_silu"}
SMALL = dict(base_dim=16, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True])
CONFIGS = {
    "2.1": SMALL,
    "2.2": SMALL | dict(dim_mult=[1, 1], is_residual=True, patch_size=2, in_channels=12, out_channels=12),
}


def random_vae(name: str = "2.1", **changes) -> AutoencoderKLWan:
    torch.manual_seed(1)
    vae = AutoencoderKLWan(**CONFIGS[name] | changes)
    for key, parameter in vae.named_parameters():
        if key.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return vae.eval().requires_grad_(False)


def random_latents(length: int = 4, batch: int = 2) -> Tensor:
    return torch.randn(batch, 16, length, 3, 2)


def ops_of(call: Callable[[], object]) -> set[str]:
    """The ops of this package that ran."""
    with observe_ops() as calls:
        call()
    return set(calls.what_ran())


@pytest.fixture(params=CONFIGS)
def vae(request) -> AutoencoderKLWan:
    return random_vae(request.param)


@pytest.fixture(autouse=True)
def kernels_everywhere(monkeypatch) -> None:
    """As on a GPU whose record has the kernels, in any dtype: the references of the ops compute."""
    monkeypatch.setattr(shared_vae, "kernels_run", lambda device, dtype: True)


def test_the_same_results_and_the_module_as_before(vae):
    latents, picture = random_latents(), torch.rand(2, 3, 1, 16, 24) * 2 - 1
    decoded, encoded = vae.decode(latents).sample, vae.encode(picture).latent_dist.parameters
    state, kinds = dict(vae.state_dict()), {name: set(vars(module)) for name, module in vae.named_modules()}
    report = aapt_fast.patch(vae, strict=True)
    with observe_ops() as calls:
        found = vae.decode(latents)
        assert vae.decode(latents, return_dict=False)[0].equal(found.sample)
        moments = vae.encode(picture).latent_dist.parameters
    assert set(calls.what_ran()) == RINGS
    assert_near(found.sample, decoded, TOLERANCE)
    assert_near(moments, encoded, TOLERANCE)
    assert decoded.std() > 0.01 and decoded.shape[2] == 7
    now = vae.state_dict()
    assert now.keys() == state.keys() and all(now[key].data_ptr() == state[key].data_ptr() for key in state)
    assert {name: set(vars(module)) for name, module in vae.named_modules()} == kinds, "attributes were added"
    assert report == aapt_fast.explain(vae) == aapt_fast.patch(vae)
    assert "AutoencoderKLWan._decode: the whole decoder by ring_conv3d and norm_silu" in str(report)
    assert "AutoencoderKLWan._encode: one picture by ring_conv3d and norm_silu" in str(report)
    aapt_fast.unpatch(vae)
    assert ops_of(lambda: vae.decode(latents)) == set() and torch.equal(vae.decode(latents).sample, decoded)


def test_slices_and_a_batch_of_one(vae):
    latents = random_latents(length=2)
    expected = vae.decode(latents).sample
    vae.enable_slicing()
    aapt_fast.patch(vae)
    assert_near(vae.decode(latents).sample, expected, TOLERANCE)
    assert_near(vae.decode(latents[:1, :, :1]).sample, expected[:1, :, :1], TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_as_good_as_the_original(name):
    """Rings round fewer times than diffusers, and at other places: half as much error again is the limit."""
    vae = random_vae(name, num_res_blocks=2)
    latents = random_latents()
    oracle = vae.decode(latents).sample
    vae.to(torch.bfloat16)
    original = vae.decode(latents.bfloat16()).sample
    with aapt_fast.patched(vae):
        assert ops_of(lambda: vae.decode(latents.bfloat16())) == RINGS
        found = vae.decode(latents.bfloat16()).sample
    assert found.dtype == torch.bfloat16
    assert relative_l2(found, oracle) <= 1.5 * relative_l2(original, oracle)


# ---- changes after the patch ----


def replace_a_parameter(vae: AutoencoderKLWan) -> None:
    vae.decoder.conv_in.weight = nn.Parameter(2 * vae.decoder.conv_in.weight, requires_grad=False)


def add_behind_autograd(vae: AutoencoderKLWan) -> None:
    vae.decoder.conv_in.weight.data += 0.3  # as adapters merge their weights; no version of the tensor tells


CHANGES = {
    "a state dict": lambda vae: vae.load_state_dict({key: 0.5 * value for key, value in vae.state_dict().items()}),
    "another parameter": replace_a_parameter,
    "merged": add_behind_autograd,
    "another dtype": lambda vae: vae.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_change_later_count(change):
    vae = random_vae()
    aapt_fast.patch(vae)
    latents = random_latents(length=2)
    before = vae.decode(latents).sample
    CHANGES[change](vae)
    latents = latents.to(vae.dtype)
    with observe_ops() as calls:
        found = vae.decode(latents).sample
    assert set(calls.what_ran()) == RINGS
    aapt_fast.unpatch(vae)
    assert_near(found, vae.decode(latents).sample, TOLERANCE)
    assert change == "another dtype" or not torch.allclose(found, before)


def test_copies_have_their_own_weights_and_nothing_is_kept_alive():
    vae = random_vae()
    aapt_fast.patch(vae)
    latents = random_latents(length=2)
    expected = vae.decode(latents).sample
    other = copy.deepcopy(vae)
    other.decoder.conv_in.weight.zero_()
    assert not torch.allclose(other.decode(latents).sample, expected)
    assert torch.equal(vae.decode(latents).sample, expected)
    kept = len(shared_vae._made)
    del other
    gc.collect()
    assert len(shared_vae._made) == kept - 1


# ---- where layers run ----


def with_a_hook(vae: AutoencoderKLWan) -> None:
    vae.decoder.mid_block.register_forward_hook(lambda *_: None)


def with_an_adapter(vae: AutoencoderKLWan) -> None:
    up = vae.decoder.up_blocks[0].upsamplers[0].resample

    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * self.base(x)

    up[1] = Adapted(up[1])


def with_an_own_forward(vae: AutoencoderKLWan) -> None:
    norm = vae.decoder.norm_out
    norm.forward = lambda x: 2 * x


def with_two_dtypes(vae: AutoencoderKLWan) -> None:
    vae.encoder.double()


OTHERS = {
    "decoder.mid_block has hooks": with_a_hook,
    "decoder.up_blocks.0.upsamplers.0.resample.1 is a Adapted": with_an_adapter,
    "decoder.norm_out has hooks": with_an_own_forward,
    "its weights have 2 kinds of dtype and device": with_two_dtypes,
}


@pytest.mark.parametrize("reason", OTHERS)
@pytest.mark.parametrize("after", [False, True], ids=["before the patch", "after it"])
def test_modules_that_compute_something_else(reason, after):
    vae, latents = random_vae(), random_latents(length=2)
    if after:
        aapt_fast.patch(vae)
    OTHERS[reason](vae)
    if not after:
        aapt_fast.patch(vae)
    assert shared_vae.obstacle(vae) == reason
    with observe_ops() as calls:
        found = vae.decode(latents).sample
    assert set(calls.what_ran()) == {"causal_conv3d"}
    aapt_fast.unpatch(vae)
    assert_near(found, vae.decode(latents).sample, TOLERANCE)


def test_widths_that_kernels_do_not_take():
    vae = random_vae(base_dim=8)
    assert shared_vae.obstacle(vae) == "widths [8] are no multiples of 16"
    assert "_encode" not in str(aapt_fast.patch(vae))


CALLS = {
    "tiles": lambda vae, latents: vae.enable_tiling(16, 16, 8, 8),
    "gradients": lambda vae, latents: latents.requires_grad_(),
    "no room": None,
    "no kernels": None,
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_go_layer_by_layer(case, monkeypatch):
    vae, latents = random_vae(), random_latents(length=2)
    if case == "no room":
        monkeypatch.setattr(video_stream, "memory_left", lambda device: 1000)
    elif case == "no kernels":
        monkeypatch.setattr(shared_vae, "kernels_run", lambda device, dtype: False)
    else:
        CALLS[case](vae, latents)
    expected = vae.decode(latents).sample
    aapt_fast.patch(vae)
    with observe_ops() as calls:
        found = vae.decode(latents).sample
    assert "causal_conv3d" in calls.what_ran() and not RINGS & set(calls.what_ran())
    assert_near(found, expected, TOLERANCE)


def test_autocast_and_longer_clips_run_as_ever():
    vae, latents, clip = random_vae(), random_latents(length=2), torch.rand(1, 3, 5, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = vae.decode(latents).sample
        with aapt_fast.patched(vae):
            assert not RINGS & ops_of(lambda: vae.decode(latents))
            assert torch.equal(vae.decode(latents).sample, expected)
    with aapt_fast.patched(vae):
        assert not RINGS & ops_of(lambda: vae.encode(clip))
