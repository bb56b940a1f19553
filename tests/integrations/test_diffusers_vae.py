# SPDX-License-Identifier: Apache-2.0
"""A patched `AutoencoderKLWan` against the same one unpatched."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, WanRMS_norm
from torch import Tensor, nn

import aapt_fast
from aapt_fast.integrations import vae_layers
from aapt_fast.integrations.swap import is_swapped, swap
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.fake_cuda import FAKE_GPU, fake_cuda, on_fake_gpu

TOLERANCE = 2e-5
CONFIGS = {
    "2.1": dict(base_dim=8, num_res_blocks=1),
    "2.2": dict(
        base_dim=4,
        decoder_base_dim=8,
        num_res_blocks=1,
        z_dim=8,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
        scale_factor_spatial=16,
    ),
    "awkward": dict(base_dim=6, z_dim=5, dim_mult=[1, 3, 5], num_res_blocks=1, temperal_downsample=[True, True]),
}


def random_vae(name: str = "2.1") -> AutoencoderKLWan:
    torch.manual_seed(1)
    vae = AutoencoderKLWan(**CONFIGS[name])
    for key, parameter in vae.named_parameters():
        if key.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return vae.eval().requires_grad_(False)


@pytest.fixture(params=CONFIGS)
def vae(request) -> AutoencoderKLWan:
    return random_vae(request.param)


def latents_for(vae: AutoencoderKLWan, batch: int = 2, length: int = 3) -> Tensor:
    return torch.randn(batch, vae.config.z_dim, length, 2, 3)


def video_for(vae: AutoencoderKLWan) -> Tensor:
    return torch.rand(2, 3, 5, 32, 32) * 2 - 1


def results_of(vae: AutoencoderKLWan, latents: Tensor, video: Tensor) -> list[Tensor]:
    return [
        vae.decode(latents).sample,
        vae._decode(latents, return_dict=False)[0],
        vae.encode(video).latent_dist.parameters,
    ]


@pytest.mark.parametrize(("name", "sliced"), [("2.1", True), ("2.1", False), ("2.2", True), ("awkward", False)])
def test_the_same_results(name, sliced):
    vae = random_vae(name)
    if sliced:
        vae.enable_slicing()
    latents, video = latents_for(vae), video_for(vae)
    expected = results_of(vae, latents, video)
    assert expected[0].std() > 0.01
    report = aapt_fast.patch(vae)
    assert not report.left_alone
    for actual, wanted in zip(results_of(vae, latents, video), expected, strict=True):
        assert_near(actual, wanted, TOLERANCE)
    aapt_fast.unpatch(vae)
    for actual, wanted in zip(results_of(vae, latents, video), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_the_same_results_in_tiles():
    vae = random_vae()
    vae.enable_tiling(16, 16, 8, 8)
    latents, video = latents_for(vae, 1, 2), video_for(vae)[:1, :, :, :24]
    expected = [vae.decode(latents).sample, vae.encode(video).latent_dist.mean]
    with aapt_fast.patched(vae):
        found = [vae.decode(latents).sample, vae.encode(video).latent_dist.mean]
    for actual, wanted in zip(found, expected, strict=True):
        assert_near(actual, wanted, TOLERANCE)


def test_one_frame_and_no_batch_of_two():
    vae = random_vae()
    latents = latents_for(vae, batch=1, length=1)
    expected = vae.decode(latents).sample
    with aapt_fast.patched(vae):
        assert_near(vae.decode(latents).sample, expected, TOLERANCE)


def decoder_steps(vae: AutoencoderKLWan) -> Callable[[Tensor, int], Tensor]:
    """Frame by frame with the cache that diffusers keeps, as streaming code does."""
    vae.clear_cache()
    features = vae._feat_map

    def step(latents: Tensor, number: int) -> Tensor:
        frame = vae.post_quant_conv(latents[:, :, number : number + 1])
        return vae.decoder(frame, feat_cache=features, feat_idx=[0], first_chunk=number == 0)

    return step


def test_a_stream_goes_on_across_patch_and_unpatch(vae):
    latents = latents_for(vae, length=6)
    step = decoder_steps(vae)
    expected = [step(latents, number) for number in range(6)]
    step, found = decoder_steps(vae), []
    for number in range(6):
        if number in (1, 4):
            aapt_fast.patch(vae)
        if number == 3:
            aapt_fast.unpatch(vae)
        found.append(step(latents, number))
    for actual, wanted in zip(found, expected, strict=True):
        assert_near(actual, wanted, TOLERANCE)


# ---- what must stay as it was ----


def test_unpatch_leaves_nothing_behind(vae):
    before = {name: (type(module), set(vars(module))) for name, module in vae.named_modules()}
    keys = list(vae.state_dict())
    addresses = [parameter.data_ptr() for parameter in vae.parameters()]
    report = aapt_fast.patch(vae)
    assert aapt_fast.patch(vae) == report == aapt_fast.explain(vae)
    assert list(vae.state_dict()) == keys
    assert [parameter.data_ptr() for parameter in vae.parameters()] == addresses, "weights were copied"
    for name, module in vae.named_modules():
        kind, attributes = before[name]
        assert isinstance(module, kind) and type(module).__name__ == kind.__name__ and set(vars(module)) == attributes
    aapt_fast.unpatch(vae)
    assert {name: (type(module), set(vars(module))) for name, module in vae.named_modules()} == before
    aapt_fast.unpatch(vae)


def test_copies_and_pickles_are_patched_and_independent():
    vae = random_vae()
    latents = latents_for(vae)
    aapt_fast.patch(vae)
    expected = vae.decode(latents).sample
    file = io.BytesIO()
    torch.save(vae, file)
    file.seek(0)
    for other in (copy.deepcopy(vae), torch.load(file, weights_only=False)):
        assert is_swapped(other.decoder.conv_in) and type(other.decoder.conv_in) is type(vae.decoder.conv_in)
        assert torch.equal(other.decode(latents).sample, expected)
        aapt_fast.unpatch(other)
        assert type(other) is AutoencoderKLWan and type(other.decoder.conv_in) is WanCausalConv3d
        with torch.no_grad():
            other.decoder.conv_in.weight.zero_()
    assert is_swapped(vae.decoder.conv_in) and torch.equal(vae.decode(latents).sample, expected)


def test_save_pretrained_and_load(tmp_path):
    vae = random_vae()
    latents = latents_for(vae)
    expected = vae.decode(latents).sample
    aapt_fast.patch(vae)
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKLWan.from_pretrained(tmp_path)
    assert type(loaded) is AutoencoderKLWan and loaded.config.base_dim == vae.config.base_dim
    assert torch.equal(loaded.decode(latents).sample, expected)


def test_weights_that_change_later_count():
    vae = random_vae()
    aapt_fast.patch(vae)
    latents = latents_for(vae)
    vae.load_state_dict({key: 0.5 * value for key, value in vae.state_dict().items()})
    found = vae.decode(latents).sample
    aapt_fast.unpatch(vae)
    assert_near(found, vae.decode(latents).sample, TOLERANCE)


def test_hooks_and_adapters_still_run():
    vae = random_vae()
    aapt_fast.patch(vae)
    seen = []
    handles = [layer.register_forward_hook(lambda *_: seen.append(1)) for layer in vae.modules()]
    vae.decode(latents_for(vae, length=1))
    assert len(seen) > 40
    for handle in handles:
        handle.remove()

    class Adapted(nn.Module):
        """A low-rank correction beside a convolution, as adapters do it."""

        def __init__(self, base: nn.Conv2d) -> None:
            super().__init__()
            self.base = base
            self.down, self.up = nn.Conv2d(base.in_channels, 2, 1), nn.Conv2d(2, base.out_channels, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.up(self.down(x))

    up = vae.decoder.up_blocks[0].upsamplers[0].resample
    up[1] = Adapted(up[1]).requires_grad_(False)
    latents = latents_for(vae)
    found = vae.decode(latents).sample
    aapt_fast.unpatch(vae)
    assert_near(found, vae.decode(latents).sample, TOLERANCE)


def test_gradients_are_the_same():
    vae = random_vae().requires_grad_()
    latents, grad = latents_for(vae, batch=1, length=2).requires_grad_(), None
    names = ["decoder.conv_in.weight", "decoder.norm_out.gamma", "decoder.up_blocks.0.upsamplers.0.resample.1.weight"]
    wanted = [latents, *(dict(vae.named_parameters())[name] for name in names)]
    found = []
    for action in (lambda: None, lambda: aapt_fast.patch(vae)):
        action()
        video = vae.decode(latents).sample
        grad = torch.randn_like(video) if grad is None else grad
        found.append(torch.autograd.grad(video, wanted, grad))
    for name, actual, expected in zip(("latents", *names), found[1], found[0], strict=True):
        assert_near(actual, expected, 1e-4, name)


# ---- dtypes and other paths ----


def test_bfloat16_is_as_good_as_the_original():
    vae = random_vae()
    latents = latents_for(vae)
    oracle = vae.decode(latents).sample
    vae.to(torch.bfloat16)
    plain = vae.decode(latents.bfloat16()).sample
    with aapt_fast.patched(vae):
        found = vae.decode(latents.bfloat16()).sample
    assert found.dtype == torch.bfloat16
    error, limit = ((x.float() - oracle).norm() / oracle.norm() for x in (found, plain))
    assert error <= 1.1 * limit
    assert (found.float() - plain.float()).norm() / oracle.norm() < limit


def test_methods_that_hooks_kept_are_the_originals_after_unpatch():
    """As accelerate's hooks keep them: the bound method of the time they were put on."""
    vae = random_vae()
    latents = latents_for(vae)
    expected = vae.decode(latents).sample
    aapt_fast.patch(vae)
    layers = [layer for layer in vae.modules() if is_swapped(layer) and hasattr(layer, "forward")]
    kept = {layer: layer.forward for layer in layers}
    aapt_fast.unpatch(vae)
    for layer, forward in kept.items():
        layer.forward = forward
    assert len(kept) > 20 and torch.equal(vae.decode(latents).sample, expected)


def test_what_is_not_faster_runs_as_ever():
    vae = random_vae().double()
    latents = latents_for(vae).double()
    expected = vae.decode(latents).sample
    aapt_fast.patch(vae)
    assert torch.equal(vae.decode(latents).sample, expected)
    vae.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = vae.decode(latents.float()).sample
        aapt_fast.unpatch(vae)
        assert torch.equal(found, vae.decode(latents.float()).sample)


@pytest.mark.parametrize("cached", [None, 1, 2])
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), ((3, 1, 1), 1, (1, 0, 0)), ((3, 1, 1), (2, 1, 1), 0)]
)
def test_the_convolution(kernel, stride, padding, length, cached):
    conv = WanCausalConv3d(5, 7, kernel, stride, padding).requires_grad_(False)
    assert vae_layers._conv_obstacle(conv) is None
    strided = stride != 1
    x = torch.randn(2, 5, length + 2 * strided, 4, 6)
    past = None if cached is None else torch.randn(2, 5, cached, 4, 6)
    expected = conv(x, past)
    swap(conv, vae_layers.FastCausalConv3d)
    assert_near(conv(x, past), expected, TOLERANCE)


@pytest.mark.parametrize(
    "conv",
    [
        WanCausalConv3d(4, 4, 3, 2, 1),
        WanCausalConv3d(4, 4, 3, 1, 0),
        WanCausalConv3d(4, 4, (5, 3, 3), 1, 1),
        WanCausalConv3d(4, 4, (3, 2, 2), 1, (1, 1, 1)),
    ],
)
def test_other_convolutions_are_left_alone(conv):
    vae = random_vae()
    vae.decoder.conv_in = conv
    (finding,) = aapt_fast.patch(vae).left_alone
    assert finding.where == "decoder.conv_in" and "a convolution of kernel" in finding.what
    assert type(conv) is WanCausalConv3d


def test_other_norms_and_upsamplings_are_left_alone():
    vae = random_vae()
    vae.decoder.norm_out = WanRMS_norm(8, images=False, bias=True)
    vae.decoder.up_blocks[0].upsamplers[0].resample[0].mode = "bilinear"
    reasons = {finding.where: finding.what for finding in aapt_fast.patch(vae).left_alone}
    assert reasons == {
        "decoder.norm_out": "a norm with a bias, or not over the second dimension",
        "decoder.up_blocks.0.upsamplers.0.resample": "expected nearest upsampling by two, then a convolution",
    }


def test_upsampling_of_any_size():
    resample = WanResample(6, "upsample2d").resample.requires_grad_(False)
    frames = [torch.randn(3, 6, *size) for size in ((1, 1), (2, 5), (4, 3))]
    expected = [resample(x) for x in frames]
    swap(resample, vae_layers.FastUpsample)
    for x, wanted in zip(frames, expected, strict=True):
        assert_near(resample(x), wanted, TOLERANCE)


# ---- on a GPU ----


@pytest.mark.parametrize("name", ["2.1", "2.2"])
def test_the_ways_of_gpus_give_the_same_results(name, monkeypatch):
    """On a CPU, in float32."""
    vae = random_vae(name)
    latents, video = latents_for(vae), video_for(vae)
    expected = results_of(vae, latents, video)
    monkeypatch.setattr(vae_layers, "_faster_here", lambda x, weight: False)
    monkeypatch.setattr(vae_layers, "_leaner_here", lambda x, weight: True)
    aapt_fast.patch(vae)
    for found, wanted in zip(results_of(vae, latents, video), expected, strict=True):
        assert_near(found, wanted, TOLERANCE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU has no fake one")
def test_a_gpu_moves_half_the_memory():
    counted = []
    for patched in (False, True):
        with torch.device("meta"):
            vae = AutoencoderKLWan(**CONFIGS["2.1"]).eval().requires_grad_(False).bfloat16()
        with fake_cuda() as gpu, torch.inference_mode():
            vae = on_fake_gpu(vae)
            if patched:
                report = aapt_fast.patch(vae)
                assert report.replaced and not report.left_alone
            latents = torch.zeros(1, 16, 3, 16, 16, dtype=torch.bfloat16, device=FAKE_GPU)
            with gpu.counting() as counts:
                assert vae.decode(latents).sample.shape == (1, 3, 9, 128, 128)
            counted.append(counts)
    before, after = counted
    assert after.taken_bytes < 0.55 * before.taken_bytes
    assert after.peak_bytes < before.peak_bytes
    assert after.operators.total() < 0.6 * before.operators.total() and not after.syncs
