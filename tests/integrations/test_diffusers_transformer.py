# SPDX-License-Identifier: Apache-2.0
"""A patched `WanTransformer3DModel`. There is no kernel on a CPU, so the tests turn the CPU compositions on instead."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from safetensors.torch import load_file
from tests.integrations.diffusers_models import IMAGE_WIDTH, image_transformer, random_transformer
from torch import Tensor, nn

import aapt_fast
from aapt_fast.integrations import attention
from aapt_fast.integrations.swap import is_swapped
from aapt_fast.ops import KERNELS
from aapt_fast.testing.compare import assert_near

TOLERANCE = 2e-5


def forward(model: WanTransformer3DModel, tokens_of_text: int = 512) -> Tensor:
    torch.manual_seed(2)
    inputs = dict(hidden_states=torch.randn(2, 4, 3, 8, 12), timestep=torch.tensor([900, 20]))
    inputs["encoder_hidden_states"] = torch.randn(2, tokens_of_text, 16)
    if model.config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = torch.randn(2, 7, IMAGE_WIDTH)
    return model(**inputs).sample


def fused() -> WanTransformer3DModel:
    model = image_transformer()
    for module in model.modules():
        if type(module).__name__ == "WanAttention":
            module.fuse_projections()
    return model.requires_grad_(False)


@pytest.mark.parametrize("build", [random_transformer, image_transformer, fused])
def test_the_same_results(compositions, build):
    model = build()
    expected = forward(model)
    report = aapt_fast.patch(model)
    assert report.parts() == {"attention"} and not report.left_alone
    assert len(report.replaced) == 4
    assert_near(forward(model), expected, TOLERANCE)
    images = build is not random_transformer
    calls = ["kv_write", "paged_attention", "paged_attention", *["paged_attention"] * images] * 2
    assert compositions == calls
    aapt_fast.unpatch(model)
    assert torch.equal(forward(model), expected)
    assert compositions == calls


def test_copies_pickles_and_saved_models(compositions, tmp_path):
    model = random_transformer()
    expected = forward(model)
    aapt_fast.patch(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_swapped(other.blocks[0].attn1)
        assert_near(forward(other), expected, TOLERANCE)
        aapt_fast.unpatch(other)
        assert torch.equal(forward(other), expected)
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    saved = load_file(file)
    assert list(saved) == sorted(model.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "WanTransformer3DModel"
    model.load_state_dict(saved)


class LowRank(nn.Module):
    """A linear layer with an adapter."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("first", ["adapter", "patch"])
def test_adapters_count(compositions, first):
    model = random_transformer()
    without = forward(model)
    if first == "patch":
        aapt_fast.patch(model)
    for block in model.blocks:
        block.attn1.to_q, block.attn2.to_v = LowRank(block.attn1.to_q), LowRank(block.attn2.to_v)
    model.requires_grad_(False)
    aapt_fast.patch(model)
    found = forward(model)
    aapt_fast.unpatch(model)
    assert_near(found, forward(model), TOLERANCE)
    assert (found - without).abs().max() > 1e-3


def test_hooks_on_the_norms_still_run(compositions):
    model = random_transformer()
    model.blocks[0].attn1.norm_q.register_forward_hook(lambda module, inputs, output: 2 * output)
    expected = forward(model)
    with aapt_fast.patched(model):
        assert_near(forward(model), expected, TOLERANCE)
        assert compositions.count("kv_write") == 1


def test_recorded_gradients_go_through_the_original(compositions):
    model = random_transformer().requires_grad_()
    aapt_fast.patch(model)
    forward(model).sum().backward()
    assert not compositions and model.blocks[0].attn1.to_q.weight.grad is not None
    with torch.no_grad():
        forward(model)
    assert compositions


def test_other_processors_are_respected(compositions):
    class Doubled(WanAttnProcessor):
        def __call__(self, *arguments, **options):
            return 2 * super().__call__(*arguments, **options)

    model = random_transformer()
    model.blocks[0].attn1.set_processor(Doubled())
    expected = forward(model)
    report = aapt_fast.patch(model)
    (finding,) = report.left_alone
    assert finding.where == "blocks.0.attn1" and "a processor of its own, Doubled" in finding.what
    assert_near(forward(model), expected, TOLERANCE)
    model.blocks[1].attn1.set_processor(Doubled())
    found = forward(model)
    aapt_fast.unpatch(model)
    assert_near(found, forward(model), TOLERANCE)


def test_a_chosen_backend_is_respected(compositions):
    model = random_transformer()
    model.set_attention_backend("native")
    report = aapt_fast.patch(model)
    assert len(report.left_alone) == 4 and not report.replaced


def test_a_cpu_says_that_nothing_is_faster():
    model = random_transformer()
    report = aapt_fast.patch(model)
    assert not report.replaced and len(report.left_alone) == 4
    assert "4 x WanAttention.forward: on the CPU nothing here is faster than torch's attention" in str(report)
    assert not is_swapped(model.blocks[0].attn1)
    with pytest.raises(RuntimeError, match="strict: expected every place"):
        aapt_fast.patch(model, strict=True)


@pytest.mark.parametrize(
    ("dtype", "width", "reason"),
    [
        (torch.float32, 128, "bfloat16 and float16, not torch.float32"),
        (torch.bfloat16, 96, "sm90 takes heads of width 64 and 128, not 96"),
        (torch.bfloat16, 128, None),
        (torch.bfloat16, 56, None),  # for the second kernel
    ],
)
def test_what_kernels_do_not_do_is_said(monkeypatch, dtype, width, reason):
    kernels = tuple(KERNELS[f"paged_attention/{variant}"] for variant in ("sm90", "portable"))
    monkeypatch.setattr(attention, "kernels_on", lambda *_: kernels)
    found = attention.attention_obstacle(torch.device("cuda"), dtype, width)
    assert found is None if reason is None else reason in found


def test_a_gpu_without_a_verified_kernel_is_left_alone(monkeypatch):
    monkeypatch.setattr(attention, "kernels_on", lambda *_: ())
    found = attention.attention_obstacle(torch.device("cuda"), torch.bfloat16, 128)
    assert "no attention kernel of this build is verified for this GPU" in found
