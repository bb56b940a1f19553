# SPDX-License-Identifier: Apache-2.0
"""`aapt_fast.patch` of diffusers' models on the fake GPU: no copy from the host, no wait, no more launches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

import aapt_fast
from aapt_fast.testing.fake_cuda import FAKE_GPU, on_fake_gpu
from aapt_fast.testing.fake_gpu import Counts, FakeGPU
from aapt_fast.testing.fake_kernels import fake_kernels
from aapt_fast.testing.fake_models import on_meta

DTYPE = torch.bfloat16


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=DTYPE, device=FAKE_GPU)


def transformer() -> WanTransformer3DModel:
    sizes = dict(num_attention_heads=2, attention_head_dim=64, in_channels=4, out_channels=4, text_dim=16, freq_dim=32)
    model = WanTransformer3DModel(**sizes, ffn_dim=64, num_layers=2, rope_max_seq_len=32)
    return on_fake_gpu(model.eval().requires_grad_(False).to(DTYPE))


def evaluate(model: WanTransformer3DModel) -> None:
    frames, t = zeros(2, 4, 3, 8, 12), torch.zeros(2, device=FAKE_GPU)
    out = model(hidden_states=frames, timestep=t, encoder_hidden_states=zeros(2, 512, 16)).sample
    assert out.shape == frames.shape and out.dtype == DTYPE and out.device == FAKE_GPU


def counted(gpu: FakeGPU, call: Callable[[], None]) -> Counts:
    """Counts of a call that is not the first."""
    with torch.inference_mode():
        call()
        with gpu.counting() as counts:
            call()
    assert not counts.uploads and not counts.syncs
    return counts


def test_a_transformer_without_verified_kernels_stays_as_it_is(gpu):
    model = transformer()
    before = counted(gpu, lambda: evaluate(model))
    report = aapt_fast.patch(model)
    assert not report.replaced and "no attention kernel of this build is verified for this GPU" in str(report)
    assert counted(gpu, lambda: evaluate(model)).operators == before.operators


def test_a_transformer_with_kernels(gpu):
    """Attention to its own tokens and to the text: two kernels of ours, and fewer launches than before."""
    model = transformer()
    before = counted(gpu, lambda: evaluate(model))
    with fake_kernels(gpu):
        report = aapt_fast.patch(model, strict=True)
        assert len(report.replaced) == 4
        after = counted(gpu, lambda: evaluate(model))
        assert (after.operators["paged_attention_portable"], after.operators["kv_write_portable"]) == (4, 2)
        assert (before.operators["scaled_dot_product_attention"], after.operators["scaled_dot_product_attention"]) == (
            4,
            0,
        )
        assert after.operators.total() <= 156 < before.operators.total()
        aapt_fast.unpatch(model)
        assert counted(gpu, lambda: evaluate(model)).operators == before.operators


@pytest.mark.parametrize("what", ["decode", "encode"])
def test_a_vae(what, gpu):
    """Its layers keep frames as cuDNN reads them; without kernels of ours, and with no launch more."""
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1, dim_mult=[1, 2], temperal_downsample=[True])
    vae = on_fake_gpu(vae.eval().requires_grad_(False).to(DTYPE))
    argument = zeros(1, 16, 2, 4, 6) if what == "decode" else zeros(1, 3, 5, 8, 12)

    def call() -> None:
        assert getattr(vae, what)(argument)[0] is not None

    before = counted(gpu, call)
    report = aapt_fast.patch(vae)
    assert {"AutoencoderKLWan._decode", "WanCausalConv3d.forward"} <= {finding.kind for finding in report.replaced}
    after = counted(gpu, call)
    assert after.operators.total() <= before.operators.total() and after.peak_bytes <= before.peak_bytes


MIB = 2**20


def test_a_vae_on_kernels(gpu, decoder_kernels):
    """Budgets of one more latent frame of Wan 2.1 at 736x416, and of the whole call; they may only fall.

    Layer by layer a frame is 229 launches and 17.2 GiB of new tensors, before the patch 445 and 36.6 GiB, at most 2.7
    and 2.9 GiB at a time. In rings more stays, and less is written.
    """
    vae = on_fake_gpu(on_meta(lambda: AutoencoderKLWan().eval().requires_grad_(False), DTYPE))
    aapt_fast.patch(vae, strict=True)
    found = []
    for frames in (2, 3):
        latents, live = zeros(1, 16, frames, 52, 92), gpu.live_bytes
        with torch.inference_mode(), gpu.counting() as counts:
            assert vae.decode(latents).sample.shape == (1, 3, 4 * frames - 3, 416, 736)
        assert not counts.syncs and counts.uploads.total() <= 3, "of the small matrices that sum taps of upsampling"
        assert counts.operators["convolution"] == 0
        found.append((counts.operators.total(), counts.taken_bytes // MIB, (counts.peak_bytes - live) // MIB))
    (launches, taken, _), (more_launches, more_taken, peak) = found
    assert more_launches - launches <= 114 and more_taken - taken <= 2685 and peak <= 4460, found
