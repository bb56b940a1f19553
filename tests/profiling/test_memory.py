# SPDX-License-Identifier: Apache-2.0
"""The plan of a session's memory, against small models. tests/cuda_paths holds it against the peaks of large ones."""

from __future__ import annotations

import torch

from aapt_fast import PagePool
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.vae.packed_weights import PackedWeights
from aapt_fast.models.vae.ring_cache import MOST_CLOCKS, RingCache
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.profiling.memory import MemoryPlan, decoder_memory, plan_memory
from aapt_fast.testing.streams import SMALL_VAE, random_model
from aapt_fast.testing.wan import TINY


def on_meta(module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return module.to("meta", dtype)


def test_weights_pages_and_the_state_of_the_decoder_are_those_of_a_session():
    model = random_model(NANO_TEXT)
    plan = plan_memory(on_meta(Generator(NANO_TEXT)), on_meta(MiniVAE(SMALL_VAE)), NANO_TEXT.grid, prompt=70)
    assert plan.generator == sum(weight.nbytes for weight in model.generator.parameters())
    assert plan.vae == sum(weight.nbytes for weight in model.vae.parameters())
    assert plan.pages == PagePool.for_sessions(model, 1, text_length=70).bytes and plan.prompt == 0
    stream = model.vae.stream()
    for _ in range(3):
        stream.decode(torch.zeros(1, NANO_TEXT.latent_channels, 1, *NANO_TEXT.grid))
    assert plan.decoder_state == sum(past.nbytes for past in stream.fix())
    assert plan.decoding > 4 * 3 * 4 * 32 * 48  # at least the four video frames in float32


def test_attention_copies_the_keys_and_values_of_one_layer():
    plan = plan_memory(on_meta(Generator(NANO)), on_meta(MiniVAE(SMALL_VAE)), NANO.grid)
    slots = 64 * (1 + NANO.window + 1)  # a page per frame
    assert plan.attention == slots * (2 * NANO.width * 4 + 32)
    half = plan_memory(on_meta(Generator(NANO), torch.bfloat16), on_meta(MiniVAE(SMALL_VAE)), NANO.grid)
    assert (half.generator, half.pages) == (plan.generator // 2, plan.pages // 2)


def test_the_prompt_of_a_wan_transformer_takes_no_pages():
    vae = on_meta(MiniVAE(SMALL_VAE))
    plans = [plan_memory(on_meta(WanTransformer(TINY)), vae, (4, 6), prompt=prompt) for prompt in (0, 12)]
    assert plans[0].pages == plans[1].pages and plans[0].prompt == 0
    assert plans[1].prompt == TINY.layers * 12 * 2 * TINY.width * 4


def test_a_block_of_frames_is_decoded_at_once():
    vae = on_meta(MiniVAE(SMALL_VAE))
    (state, one), (same, three) = (decoder_memory(vae, (4, 6), frames) for frames in (1, 3))
    assert state == same and 2 * one < three < 4 * one


def test_a_step_takes_the_larger_of_evaluation_and_decoding():
    parts = {"generator": 1000, "vae": 100, "pages": 10, "prompt": 1, "decoder_state": 5}
    plan = MemoryPlan(**parts, attention=30, activations=20, decoding=40, rings=15, ring_decoding=25)
    assert (plan.held(), plan.held(kernels=True), plan.step(), plan.step(kernels=True)) == (1116, 1126, 50, 25)
    assert (plan.total(), plan.total(kernels=True)) == (1166, 1151) and sum(plan.parts().values()) == plan.total()


def test_rings_are_those_of_a_stream():
    widths = {"encoder_widths": (8, 8), "decoder_widths": (8, 8)}
    vae = AAPTVAE(AAPTVAEConfig(**widths, temporal_downsample=(True,), norm_num_groups=4))
    cache = RingCache(vae.packed_weights)
    with torch.no_grad():
        for _ in range(2):
            vae.decode_chunk(torch.randn(1, 16, 1, 4, 6), cache)
    held = cache.bytes() + vae.packed_weights.bytes()
    rings, work = decoder_memory(on_meta(vae), (4, 6), 1, lambda: RingCache(PackedWeights()))
    assert rings == held + 16 * 4 * 6 * 4 + 4 * MOST_CLOCKS * 4, "and the newest latents, and slots"
    assert 0 < work < rings
