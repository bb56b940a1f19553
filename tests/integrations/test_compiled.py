# SPDX-License-Identifier: Apache-2.0
"""A patched transformer under `torch.compile`, as docs/how-to/compile-a-patched-pipeline.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

import aapt_fast
from aapt_fast.integrations import attention
from aapt_fast.ops.kernels import KERNELS, selection
from aapt_fast.testing.compare import assert_near

PAGE = Path(__file__).parents[2] / "docs/how-to/compile-a-patched-pipeline.md"


@pytest.fixture
def compiler():
    """Forgets what earlier tests compiled, and leaves nothing behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.timeout(900)  # a busy machine compiles slowly
def test_the_page(compiler, capsys):
    """The example as it is, with the C++ that torch makes of it: about a minute of one core, so the smallest model."""
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=1, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=8, num_layers=1)
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=WanTransformer3DModel(**sizes, rope_max_seq_len=8).eval(),
    )
    pipe.set_progress_bar_config(disable=True)

    def frames() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(2, 1, 8, 8, generator=generator)
        size = dict(height=32, width=32, num_frames=5, num_inference_steps=2, output_type="pt")
        prompts = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1])
        return pipe(**prompts, **size, generator=generator).frames

    expected = frames()
    assert expected.std() > 0.01
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(example, {"pipe": pipe})
    assert "replaced: vae" in capsys.readouterr().out and isinstance(pipe.transformer, torch._dynamo.OptimizedModule)
    assert_near(frames(), expected, 2e-4)
    pipe.transformer = pipe.transformer._orig_mod
    aapt_fast.unpatch(pipe)
    assert torch.equal(frames(), expected)


@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_replaced_attention_is_traced_as_a_whole(compiler, monkeypatch, name):
    """With our ops in it, as on a GPU: the choice of kernels is read once and is a constant in the trace."""
    monkeypatch.setattr(attention, "kernels_on", lambda *_: (selection(), (KERNELS["paged_attention/portable"],))[1])
    sizes = dict(num_attention_heads=1, attention_head_dim=64, text_dim=8, freq_dim=8, ffn_dim=8, num_layers=1)
    model = WanTransformer3DModel(**sizes, rope_max_seq_len=8).eval().requires_grad_(False).bfloat16()
    tokens, text = torch.randn(1, 12, 64).bfloat16(), torch.randn(1, 5, 64).bfloat16()
    rotary = model.rope(torch.zeros(1, 16, 2, 4, 6))
    inputs = (tokens, None, None, rotary) if name == "attn1" else (tokens, text)
    module = getattr(model.blocks[0], name)
    plain = module(*inputs)
    aapt_fast.patch(model, strict=True)
    traced: list[str] = []

    def keep(graph, _):
        traced.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    assert_near(torch.compile(module, backend=keep, fullgraph=True)(*inputs), plain, 2e-2)
    assert sum("paged_attention" in target for target in traced) == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_patched_decoder_under_a_compiler(compiler, backend):
    """One frame at a time: there torch 2.13 gave a wrong picture, see `PlainAttention`."""
    torch.manual_seed(0)
    sizes = dict(base_dim=4, num_res_blocks=1, dim_mult=[1, 2], temperal_downsample=[False])
    vae = AutoencoderKLWan(**sizes).eval().requires_grad_(False)
    latents = torch.randn(1, 16, 1, 3, 4)
    expected = vae.decoder(latents)
    aapt_fast.patch(vae, strict=True)
    assert_near(torch.compile(vae.decoder, backend=backend)(latents), expected, 1e-5)
