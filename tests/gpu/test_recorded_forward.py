# SPDX-License-Identifier: Apache-2.0
"""Forward passes of diffusers as CUDA graphs, on a GPU; the test of the same name in tests/integrations needs none."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

import aapt_fast
from aapt_fast.integrations.recorded_forward import MAX_RECORDINGS, RecordedForward
from aapt_fast.testing.compare import assert_near

TOLERANCE = 1e-2  # bfloat16; products may be split in another way while a graph is captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: recordings were replayed on the CPU")


@pytest.fixture
def model() -> WanTransformer3DModel:
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=2, attention_head_dim=64, text_dim=32, freq_dim=32, ffn_dim=256, num_layers=2)
    model = WanTransformer3DModel(**sizes, rope_max_seq_len=64).eval().requires_grad_(False)
    return model.to("cuda", torch.bfloat16)


def inputs(seed: int, frames: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    like = dict(generator=generator, device="cuda")
    return {
        "hidden_states": torch.randn(1, 16, frames, 16, 24, **like).bfloat16(),
        "timestep": torch.randint(1000, (1,), **like),
        "encoder_hidden_states": torch.randn(1, 512, 32, **like).bfloat16(),
    }


def assert_right(model: WanTransformer3DModel, *seeds: int, frames: int = 3) -> None:
    given = [inputs(seed, frames) for seed in seeds]
    found = [model(**one).sample for one in given]  # all of them before the first is looked at
    for one, sample in zip(given, found, strict=True):
        assert_near(sample.float(), WanTransformer3DModel.forward(model, **one).sample.float(), TOLERANCE)


@pytest.mark.parametrize("kernels", ["none", "verified", "all"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_recorded_forward_pass_is_that_of_eager_launches(model, kernels, mode):
    with aapt_fast.use_kernels(kernels), mode():
        aapt_fast.patch(model, cuda_graph=True)
        assert_right(model, 0, 1, 2, 0)
    assert len(vars(model)[RecordedForward.kept_by_swap[0]]) == 1


@torch.no_grad()
def test_other_weights_and_shapes_are_recorded_anew(model):
    aapt_fast.patch(model, attention=False, cuda_graph=True, strict=True)
    assert_right(model, 0, 1)
    model.load_state_dict({key: 1.5 * value for key, value in model.state_dict().items()})
    assert_right(model, 0, 1)
    model.load_state_dict({key: 0.8 * value for key, value in model.state_dict().items()}, assign=True)
    for frames in range(1, MAX_RECORDINGS + 3):
        assert_right(model, 0, 1, frames=frames)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert_right(model, 0, 1)
        torch.cuda.synchronize()
    model.to("cpu")
    model.to("cuda")
    assert_right(model, 0, 1)


@torch.no_grad()
def test_unpatch_frees_the_memory_of_recordings(model):
    given = inputs(0, frames=8)
    model(**given)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    aapt_fast.patch(model, attention=False, cuda_graph=True)
    model(**given)
    recorded = torch.cuda.memory_allocated()
    aapt_fast.unpatch(model)
    assert torch.cuda.memory_allocated() < recorded and recorded > before


@torch.no_grad()
def test_under_autocast(model):
    model.float().requires_grad_()  # weights that autocast would keep
    aapt_fast.patch(model, attention=False, cuda_graph=True)
    with torch.autocast("cuda", torch.bfloat16):
        assert_right(model, 0, 1)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    with torch.autocast("cuda", torch.bfloat16):
        assert_right(model, 0, 1)
