# SPDX-License-Identifier: Apache-2.0
"""Patched models of the original Wan code and of Self-Forcing, through stand-ins with their interfaces."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan
from tests.integrations.wan_family import CausalInferencePipeline, CausalWanModel, CausalWanSelfAttention, WanVAE_
from torch import Tensor, nn

import aapt_fast
from aapt_fast.compat.wan import replaced_in
from aapt_fast.integrations import wan
from aapt_fast.integrations.kv_cache import HostIndex, PagedKVCache
from aapt_fast.integrations.swap import is_swapped
from aapt_fast.models.vae.wan_keys import WanVAEKeys
from aapt_fast.ops import kv_write
from aapt_fast.testing.compare import assert_near

TOLERANCE = 2e-5
GRID = (3, 5)
TOKENS = 15

# ---- the VAE ----

SCALE = [torch.linspace(-1, 1, 16), 1 / torch.linspace(0.5, 2, 16)]


@pytest.fixture
def vae() -> WanVAE_:
    theirs = AutoencoderKLWan(base_dim=8, num_res_blocks=1)
    keys = WanVAEKeys(num_res_blocks=1)
    state = {keys.to_original(key): tensor for key, tensor in theirs.state_dict().items()}
    vae = WanVAE_().eval().requires_grad_(False)
    vae.load_state_dict({key: state[key] for key in vae.state_dict()})
    latents = torch.randn(2, 16, 4, 2, 3)
    scaled = latents / SCALE[1].view(1, -1, 1, 1, 1) + SCALE[0].view(1, -1, 1, 1, 1)
    with torch.no_grad():
        assert_near(vae.decode(latents, SCALE).clamp(-1, 1), theirs.eval().decode(scaled).sample, TOLERANCE)
    return vae


def test_the_original_vae(vae):
    latents = torch.randn(2, 16, 4, 2, 3)
    expected = vae.decode(latents, SCALE)
    report = aapt_fast.patch(SimpleNamespace(model=vae))
    assert report.parts() == {"vae"} and not report.left_alone
    kinds = {finding.kind.split(".")[0] for finding in report.replaced}
    assert kinds == {"AttentionBlock", "CausalConv3d", "RMS_norm", "Sequential"}
    assert_near(vae.decode(latents, SCALE), expected, TOLERANCE)
    vae.clear_cache()
    pieces = [vae.cached_decode(piece, SCALE) for piece in latents.split([1, 2, 1], 2)]
    assert_near(torch.cat(pieces, 2), expected, TOLERANCE)
    aapt_fast.unpatch(SimpleNamespace(model=vae))
    assert torch.equal(vae.decode(latents, SCALE), expected)


class VAEDecoderWrapper(nn.Module):
    """The decoder of Self-Forcing's demo: it keeps nothing, its cache is given with every call."""

    def __init__(self, vae: WanVAE_) -> None:
        super().__init__()
        self.decoder, self.conv2 = vae.decoder, vae.conv2

    def forward(self, latents: Tensor, *cache: Tensor | None) -> tuple[Tensor, list]:
        cache = list(cache)
        frames = [self.decoder(frame, cache, [0]) for frame in self.conv2(latents).split(1, 2)]
        return torch.cat(frames, 2), cache


def test_the_decoder_of_the_demo(vae):
    decoder, latents = VAEDecoderWrapper(vae), torch.randn(1, 16, 4, 2, 3)
    expected, cache = decoder(latents, *vae._feat_map)
    with aapt_fast.patched(decoder) as report:
        assert report.parts() == {"vae"} and not report.left_alone
        first, cache = decoder(latents[:, :, :1], *vae._feat_map)
        rest, cache = decoder(latents[:, :, 1:], *cache)
        assert_near(torch.cat([first, rest], 2), expected, TOLERANCE)


# ---- the transformer ----


def pipeline(local: int = -1, sink: int = 0, window: int = 8, dtype: torch.dtype = torch.float32):
    model = CausalWanModel(local=local, sink=sink).requires_grad_(False)
    model.blocks.to(dtype)
    return CausalInferencePipeline(model, TOKENS, window if local == -1 else local)


def noise(frames: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, frames, TOKENS, 48, generator=torch.Generator().manual_seed(5))


# Pairwise: every window with both block sizes, every window with both caches, every block size with both caches.
@pytest.mark.parametrize(
    ("local", "sink", "block", "caches"),
    [
        (-1, 0, 1, "theirs"),
        (-1, 0, 2, "ours"),
        (4, 0, 1, "ours"),
        (4, 0, 2, "theirs"),
        (4, 1, 1, "theirs"),
        (4, 1, 2, "ours"),
        (6, 2, 1, "ours"),
        (6, 2, 2, "theirs"),
    ],
)
def test_rollouts_are_the_same(local, sink, block, caches, monkeypatch):
    in_pages = []
    monkeypatch.setattr(wan, "kv_write", lambda *arguments: (in_pages.append(1), kv_write(*arguments))[1])
    pipe = pipeline(local, sink)
    expected = pipe.inference(noise(), GRID, block)
    original = [cache["k"].clone() for cache in pipe.kv_cache1]
    pipe.kv_cache1 = None
    report = aapt_fast.patch(pipe if caches == "ours" else pipe.generator)
    assert not report.left_alone
    in_pages.clear()
    assert_near(pipe.inference(noise(), GRID, block), expected, TOLERANCE)
    assert caches == "theirs" or len(in_pages) == 2 * 2 * (8 // block), "layers, noise levels, blocks"
    for cache, keys in zip(pipe.kv_cache1, original, strict=True):
        assert isinstance(cache, PagedKVCache) == (caches == "ours")
        assert_near(cache["k"], keys, TOLERANCE, "the cache")
        assert int(cache["global_end_index"]) == 8 * TOKENS
    assert_near(pipe.inference(noise(), GRID, block), expected, TOLERANCE)
    aapt_fast.unpatch(pipe)
    pipe.kv_cache1 = None
    assert torch.equal(pipe.inference(noise(), GRID, block), expected)


def test_our_caches_serve_unpatched_code_too():
    pipe = pipeline(4, 1)
    expected = pipe.inference(noise(), GRID, 2)
    pipe.kv_cache1 = [PagedKVCache(cache) for cache in pipe.kv_cache1]
    assert torch.equal(pipe.inference(noise(), GRID, 2), expected)
    assert repr(pipe.kv_cache1[0]["global_end_index"]) == "HostIndex(120)"


@pytest.mark.parametrize("kind", [int, lambda value: torch.tensor([value]), lambda value: torch.tensor(value)])
def test_indices_of_any_kind(kind):
    pipe = pipeline(4, 1)
    expected = pipe.inference(noise(3), GRID, 1, levels=1)
    aapt_fast.patch(pipe.generator)
    for cache in pipe.kv_cache1:
        cache |= {name: kind(0) for name in ("global_end_index", "local_end_index")}
    outputs = []
    with torch.no_grad():
        for frame, x in enumerate(noise(3).unbind(1)):
            outputs.append(pipe.generator.model(x, (1, *GRID), pipe.kv_cache1, frame * TOKENS))
    assert_near(torch.cat(outputs, 1), expected, TOLERANCE)
    assert type(pipe.kv_cache1[0]["local_end_index"]) is type(kind(0))
    assert int(pipe.kv_cache1[0]["local_end_index"]) == 3 * TOKENS


def test_nothing_is_read_back_from_the_device():
    pipe = pipeline(4, 1)
    aapt_fast.patch(pipe)
    pipe._initialize_kv_cache(1, torch.float32, torch.device("cpu"))
    assert all(isinstance(cache["global_end_index"], HostIndex) for cache in pipe.kv_cache1)
    cache = pipe.kv_cache1[0]
    cache["global_end_index"] = torch.tensor([7])
    assert isinstance(cache["global_end_index"], HostIndex) and int(cache["global_end_index"]) == 7
    assert cache["global_end_index"].zero_().item() == 0


def test_the_attention_that_their_code_calls_stays_in_use(monkeypatch):
    """Also when it is replaced after the patch, and when their module is loaded under no name."""
    pipe = pipeline(4, 1)
    aapt_fast.patch(pipe)
    family = CausalWanSelfAttention.__module__
    calls = []
    with replaced_in(family, dtype=torch.float32) as places, monkeypatch.context() as patch:
        assert f"{family}.attention" in places
        patch.delitem(sys.modules, family)
        own = CausalWanSelfAttention.forward.__globals__
        replaced = own["attention"]
        patch.setitem(own, "attention", lambda *given: (calls.append(1), replaced(*given))[1])
        pipe.inference(noise(2), GRID, 2, levels=1)
    assert len(calls) == 2, "once per layer"


def test_training_and_gradients_go_through_the_original():
    model = pipeline().generator.model
    x = noise(2).flatten(1, 2)
    expected = model(x, (2, *GRID), None, 0)
    aapt_fast.patch(model)
    assert torch.equal(model(x, (2, *GRID), None, 0), expected)
    model.requires_grad_()
    model(x, (2, *GRID), None, 0).sum().backward()
    assert model.blocks[0]["self_attn"].q.weight.grad is not None


def test_half_precision():
    pipe = pipeline(4, 1)
    oracle = pipe.inference(noise(), GRID, 2)
    half = pipeline(4, 1, dtype=torch.bfloat16)
    half.generator.model.load_state_dict(pipe.generator.model.state_dict())
    plain = half.inference(noise().bfloat16(), GRID, 2)
    half.kv_cache1 = None
    assert len(aapt_fast.patch(half).replaced) == 3
    found = half.inference(noise().bfloat16(), GRID, 2)
    error, limit = ((x.float() - oracle).norm() for x in (found, plain))
    assert error <= 1.5 * limit


def test_copies_are_independent():
    pipe = pipeline(4, 1)
    aapt_fast.patch(pipe)
    expected = pipe.inference(noise(), GRID, 2)
    other = copy.deepcopy(pipe)
    assert torch.equal(other.inference(noise(), GRID, 2), expected)
    aapt_fast.unpatch(other)
    assert is_swapped(pipe) and not is_swapped(other)
    assert set(vars(other)) == set(vars(pipeline()))


# ---- relatives that are not the same ----


class OtherArguments(CausalWanSelfAttention):
    def forward(self, x, seq_lens, grid_sizes, freqs, block_mask, kv_cache=None, current_start=0, t_scale=1.0):
        return super().forward(x, seq_lens, grid_sizes, freqs, block_mask, kv_cache, current_start)


class OtherPositions(CausalWanSelfAttention):
    """The same interface, but every block starts at position 0."""

    def forward(self, x, seq_lens, grid_sizes, freqs, block_mask, kv_cache=None, current_start=0, cache_start=None):
        return super().forward(x, seq_lens, grid_sizes, freqs.roll(-1, 0), block_mask, kv_cache, current_start)


class OtherSink(CausalWanSelfAttention):
    """The same interface, but the sink is counted in frames of 1560 tokens."""

    def _store(self, k, v, cache, current_end, sink) -> None:
        super()._store(k, v, cache, current_end, 0)


class Failing(CausalWanSelfAttention):
    def forward(self, x, seq_lens, grid_sizes, freqs, block_mask, kv_cache=None, current_start=0, cache_start=None):
        raise RuntimeError("only on a GPU")


class WithoutValues(CausalWanSelfAttention):
    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.qkv = nn.Linear(48, 144)
        del self.q


RELATIVES = {
    OtherArguments: "its forward takes (x, seq_lens, grid_sizes, freqs, block_mask, kv_cache, current_start, t_scale)",
    OtherPositions: "in a trial its results differed by",
    OtherSink: "in a trial its results differed by",
    Failing: "a trial failed with RuntimeError: only on a GPU",
    WithoutValues: "it has no q",
}


@pytest.mark.parametrize("relative", RELATIVES)
def test_relatives_that_compute_something_else_are_left_alone(relative, monkeypatch):
    named = type("CausalWanSelfAttention", (relative,), {})
    monkeypatch.setattr(CausalWanModel, "attention_class", named)
    model = CausalWanModel(local=3, sink=1).requires_grad_(False)
    report = aapt_fast.patch(model)
    assert not report.replaced and len(report.left_alone) == 2
    assert report.left_alone[0].what.startswith(RELATIVES[relative]), report
    assert type(model.blocks[0]["self_attn"]) is named


def test_a_trial_leaves_the_layer_as_it_was():
    layer = CausalWanSelfAttention(48, 2, 4, 1)
    before = copy.deepcopy(layer.state_dict())
    assert wan._trial(layer) is None
    assert type(layer) is CausalWanSelfAttention
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())
