# SPDX-License-Identifier: Apache-2.0
"""A whole `WanPipeline` of diffusers, tiny and random: the same frames patched and unpatched."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor

import aapt_fast
from aapt_fast.testing.compare import assert_near

TOLERANCE = 2e-4


@pytest.fixture
def pipe() -> WanPipeline:
    torch.manual_seed(0)
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLWan(base_dim=4, num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            text_dim=16,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=32,
        ).eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames(pipe: WanPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 1, 12, 16, generator=generator)
    return pipe(
        prompt_embeds=text[0],
        negative_prompt_embeds=text[1],
        height=32,
        width=48,
        num_frames=9,
        num_inference_steps=2,
        generator=generator,
        output_type="pt",
    ).frames


def test_the_same_frames_patched_and_bit_equal_after_unpatch(pipe):
    expected = frames(pipe)
    assert expected.shape == (1, 9, 3, 32, 48) and expected.std() > 0.01
    report = aapt_fast.patch(pipe)
    assert report.parts() == {"vae"}
    assert {finding.part for finding in report.left_alone} >= {"attention"}
    places = {finding.where.split(".")[0] for finding in (*report.replaced, *report.left_alone)}
    assert places == {"vae", "transformer"}
    assert_near(frames(pipe), expected, TOLERANCE)
    assert_near(frames(copy.deepcopy(pipe)), expected, TOLERANCE)
    aapt_fast.unpatch(pipe)
    assert torch.equal(frames(pipe), expected)


def test_the_same_frames_with_every_part(pipe, compositions):
    expected = frames(pipe)
    with aapt_fast.patched(pipe, strict=True) as report:
        assert report.parts() == {"vae", "attention"}
        assert_near(frames(pipe), expected, TOLERANCE)
        assert compositions
    assert torch.equal(frames(pipe), expected)


def test_a_pipeline_is_saved_as_what_it_was(pipe, tmp_path):
    before = (tmp_path / "before", tmp_path / "after")
    pipe.save_pretrained(before[0])
    aapt_fast.patch(pipe)
    pipe.save_pretrained(before[1])
    for file in sorted(path for path in before[0].rglob("*") if path.is_file()):
        assert (before[1] / file.relative_to(before[0])).read_bytes() == file.read_bytes(), file


def test_the_page_about_pipelines_runs(pipe):
    """Its first block, with a call of the small pipeline in place of one with a prompt in words."""
    page = (Path(__file__).parents[2] / "docs/how-to/patch-diffusers.md").read_text()
    block = re.findall(r"```py\n(.*?)```", page, re.DOTALL)[0]
    call = 'pipe(prompt="a cat walks on the grass").frames'
    assert call in block
    expected = frames(pipe)
    scope = {"pipe": pipe, "video": frames}
    exec(compile(block.replace(call, "video(pipe)"), "patch-diffusers.md", "exec"), scope)
    assert scope["report"].parts() == {"vae"}
    assert_near(scope["frames"], expected, TOLERANCE)
    assert torch.equal(frames(pipe), expected)  # unpatched at its end
