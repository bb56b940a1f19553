# SPDX-License-Identifier: Apache-2.0
"""The original pipeline of Self-Forcing and a descendant, from checkouts of them (`--originals FOLDER`).

Its sizes are those of the 1.3 B model, written into the code: 12 heads of 128 and 30 layers; here there are two layers
with a narrow feed-forward, 24 tokens per frame and a VAE of base 8, all random.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.integrations.originals import Checkout, random_weights
from torch import Tensor, nn

import aapt_fast
from aapt_fast.compat.wan import replaced_in
from aapt_fast.integrations.kv_cache import PagedKVCache
from aapt_fast.models.wan.sampling import FewStepSampler
from aapt_fast.ops import philox_normal
from aapt_fast.testing.compare import relative_l2

TOLERANCE = 1e-5
SIZES = dict(dim=1536, num_heads=12, num_layers=2, ffn_dim=192, freq_dim=32, text_len=16)
GRID = (8, 12)
TOKENS = 24
STEPS = 4
FOLDER = Path("wan_models/Wan2.1-T2V-1.3B")

REPOSITORIES = pytest.mark.parametrize("repository", ["Self-Forcing", "Causal-Forcing"])
# local_attn_size, sink_size, frames of a block, of the clip
WINDOWS = pytest.mark.parametrize(("local", "sink", "block", "frames"), [(-1, 0, 3, 9), (6, 1, 3, 15), (4, 1, 1, 8)])


class Words(nn.Module):
    """In place of their text encoder."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.embeddings = torch.zeros(batch, SIZES["text_len"], 4096)
        self.embeddings[:, :5] = torch.randn(batch, 5, 4096)

    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        return {"prompt_embeds": self.embeddings}


@pytest.fixture
def in_folder(tmp_path) -> Iterator[None]:
    """Their paths are relative to where they run."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def small_pipeline(original: Checkout, local: int, sink: int, block: int, **options):
    batch = options.pop("batch", 1)
    settings = dict(
        denoising_step_list=[1000, 750, 500, 250],
        warp_denoising_step=True,
        num_frame_per_block=block,
        independent_first_frame=False,
        context_noise=0,
    )
    random_weights(original("wan.modules.causal_model").CausalWanModel(**SIZES)).save_pretrained(FOLDER)
    levels = dict(dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    vae = random_weights(original("wan.modules.vae").WanVAE_(dim=8, z_dim=16, **levels))
    torch.save(vae.state_dict(), FOLDER / "Wan2.1_VAE.pth")
    wrapper = original("utils.wan_wrapper")
    original.replace(wrapper, "_video_vae", partial(wrapper._video_vae, dim=8))
    generator = wrapper.WanDiffusionWrapper(is_causal=True, timestep_shift=5.0, local_attn_size=local, sink_size=sink)
    pipeline = original("pipeline.causal_inference").CausalInferencePipeline(
        SimpleNamespace(**settings | options), "cpu", generator, Words(batch), wrapper.WanVAEWrapper()
    )
    pipeline.num_transformer_blocks, pipeline.frame_seq_length = SIZES["num_layers"], TOKENS
    return pipeline.requires_grad_(False)


@contextmanager
def noise_from(noises: list[Tensor], monkeypatch) -> Iterator[None]:
    """Let their code take the noise between two levels from a list."""
    left = iter(noises)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: next(left))
        yield
    assert next(left, None) is None


def a_model(pipeline, config: dict) -> aapt_fast.StreamModel:
    """Ours, from the files that theirs was made from."""
    state = pipeline.generator.state_dict()
    assert all(key.startswith("model.") for key in state)
    wrapped = {key.replace("model.", "model._fsdp_wrapped_module.", 1): value for key, value in state.items()}
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"generator": zeros, "generator_ema": wrapped}, "self_forcing_dmd.pt")
    generator = aapt_fast.load_generator("self_forcing_dmd.pt", config={"text_len": SIZES["text_len"], **config})
    return aapt_fast.StreamModel(generator, aapt_fast.load_vae(FOLDER / "Wan2.1_VAE.pth"), grid=GRID)


def step_noise(model: aapt_fast.StreamModel, seed: int, numbers: list[int]) -> Tensor:
    """Noise [1, C, n, h, w] of a session: frame i from (seed, numbers[i])."""
    shape = (model.config.latent_channels, *model.grid)
    return philox_normal(torch.full((len(numbers),), seed), torch.tensor(numbers), shape).transpose(0, 1)[None]


def fresh_noise(block: int, frames: int, batch: int = 1) -> list[Tensor]:
    shape = (batch * block, 16, *GRID)
    return [torch.randn(shape) for _ in range((STEPS - 1) * frames // block)]


@REPOSITORIES
@WINDOWS
@torch.no_grad()
def test_patched(original, repository, local, sink, block, frames, in_folder, monkeypatch):
    pipeline = small_pipeline(original(repository), local, sink, block)
    first, noises = torch.randn(1, frames, 16, *GRID), fresh_noise(block, frames)

    def rollout() -> tuple[Tensor, Tensor]:
        with noise_from(noises, monkeypatch):
            return pipeline.inference(first, [""], return_latents=True)

    with replaced_in("wan", dtype=torch.float32):
        expected = rollout()
        keys = pipeline.kv_cache1[0]["k"]
        pipeline.kv_cache1 = None
        report = aapt_fast.patch(pipeline)
        assert not report.left_alone and report.parts() == {"attention", "vae"}
        for found in (rollout(), rollout()):
            assert all(relative_l2(*pair) < TOLERANCE for pair in zip(found, expected, strict=True))
        assert isinstance(pipeline.kv_cache1[0], PagedKVCache)
        assert relative_l2(pipeline.kv_cache1[0]["k"], keys) < TOLERANCE
        aapt_fast.unpatch(pipeline)
        pipeline.kv_cache1 = None
        assert all(torch.equal(*pair) for pair in zip(rollout(), expected, strict=True))


@REPOSITORIES
@pytest.mark.parametrize("given", [0, 3, 4])
@torch.no_grad()
def test_patched_with_other_settings(original, repository, given, in_folder, monkeypatch):
    """Two samples, a noisy context, a first frame by itself, and frames that are given (to one sample: their code
    fails with more)."""
    batch = 1 if given else 2
    options = dict(batch=batch, context_noise=100, independent_first_frame=given in (0, 4))
    pipeline = small_pipeline(original(repository), 7, 1, 3, **options)
    frames = 6 if given else 7
    first, initial = torch.randn(batch, frames, 16, *GRID), torch.randn(1, given, 16, *GRID) if given else None
    noises = fresh_noise(3, 6, batch)
    if not given:
        noises = [torch.randn(batch, 16, *GRID) for _ in range(STEPS - 1)] + noises
    with replaced_in("wan", dtype=torch.float32):
        results = []
        for patched in (False, True):
            pipeline.kv_cache1 = None
            if patched:
                assert not aapt_fast.patch(pipeline).left_alone
            with noise_from(noises, monkeypatch):
                results.append(pipeline.inference(first, [""] * batch, initial, return_latents=True)[1])
    assert relative_l2(results[1], results[0]) < TOLERANCE


@REPOSITORIES
@torch.no_grad()
def test_patched_in_half_precision(original, repository, in_folder, monkeypatch):
    """Errors against float32 are at most half as large again as those of the original in bfloat16."""
    pipeline = small_pipeline(original(repository), 6, 1, 3)
    first, noises = torch.randn(1, 9, 16, *GRID), fresh_noise(3, 9)
    results = []
    for dtype in (torch.float32, torch.bfloat16, torch.bfloat16):
        pipeline.kv_cache1 = None
        pipeline.to(dtype)
        pipeline.text_encoder.embeddings = pipeline.text_encoder.embeddings.to(dtype)
        if len(results) == 2:
            assert not aapt_fast.patch(pipeline, vae=False).left_alone
        halves = [noise.to(dtype) for noise in noises]
        with replaced_in("wan", dtype=torch.float32), noise_from(halves, monkeypatch):
            results.append(pipeline.inference(first.to(dtype), [""], return_latents=True)[1].float())
    oracle, theirs, ours = results
    assert relative_l2(ours, oracle) <= 1.5 * relative_l2(theirs, oracle)


@REPOSITORIES
@WINDOWS
@torch.no_grad()
def test_our_session(original, repository, local, sink, block, frames, in_folder, monkeypatch):
    """The same checkpoint and the same noise in their pipeline, in a growing cache and in a `StreamSession`."""
    pipeline = small_pipeline(original(repository), local, sink, block)
    config = {"num_frame_per_block": block, "sink_size": sink}
    if local != -1:
        config["local_attn_size"] = local
    model = a_model(pipeline, config)
    generator = model.generator

    blocks = [range(start, start + block) for start in range(0, frames, block)]
    noises = [[step_noise(model, 3, [f * STEPS + k + 1 for f in part]) for k in range(STEPS)] for part in blocks]
    first = torch.cat([levels[0] for levels in noises], 2).transpose(1, 2)
    between = [noise.transpose(1, 2).flatten(0, 1) for levels in noises for noise in levels[1:]]
    with replaced_in("wan", dtype=torch.float32), noise_from(between, monkeypatch):
        video, latents = pipeline.inference(first, [""], return_latents=True)

    words, cache = pipeline.text_encoder.embeddings, generator.new_cache(*GRID)
    context = generator.encode_context(words)
    sampler = FewStepSampler()
    ours = [sampler.sample(generator, torch.stack(levels), None, None, context, [cache], False) for levels in noises]
    assert relative_l2(torch.cat(ours, 2).transpose(1, 2), latents) < TOLERANCE
    with aapt_fast.StreamSession(model, prompt=words[0, :5], seed=3) as session:
        streamed = torch.cat([torch.as_tensor(session.step()) for _ in blocks])
    difference = (streamed - 255 * video[0].permute(0, 2, 3, 1)).abs().max()
    assert difference < 0.51, "rounded to whole numbers, and nothing else"


@pytest.mark.parametrize("steps", [[1000], [1000, 500]], ids=["one step", "two steps"])
@torch.no_grad()
def test_a_first_frame_in_more_steps(original, steps, in_folder, monkeypatch):
    """Causal-Forcing++: a frame in one or two steps, the first one in four."""
    frames, first_steps = 6, [1000, 750, 500, 250]
    options = dict(denoising_step_list=steps, denoising_step_list_first_chunk=first_steps)
    pipeline = small_pipeline(original("Causal-Forcing"), 4, 1, 1, **options)
    model = a_model(pipeline, {"num_frame_per_block": 1, "sink_size": 1, "local_attn_size": 4})
    schedule = FewStepSampler(steps=tuple(steps), first_steps=tuple(first_steps))
    counts = [len(schedule.levels(frame == 0)) for frame in range(frames)]
    noises = [[step_noise(model, 3, [f * 4 + k + 1]) for k in range(count)] for f, count in enumerate(counts)]
    first = torch.cat([levels[0] for levels in noises], 2).transpose(1, 2)
    between = [noise.transpose(1, 2).flatten(0, 1) for levels in noises for noise in levels[1:]]
    with replaced_in("wan", dtype=torch.float32), noise_from(between, monkeypatch):
        latents = pipeline.inference(first, [""], return_latents=True)[1]
    words = pipeline.text_encoder.embeddings[0, :5]
    with aapt_fast.StreamSession(model, prompt=words, seed=3, sampler=schedule) as session:
        made = [(session.step(), session.frame)[1] for _ in range(frames)]
    assert schedule.nfe == len(steps) + 1
    assert relative_l2(torch.cat(made, 2).transpose(1, 2), latents) < TOLERANCE
