# SPDX-License-Identifier: Apache-2.0
"""torch's default dtype is the user's own affair: nothing here depends on it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import aapt_fast
from aapt_fast import EulerSampler, FewStepSampler, WindowRule
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.files.compare import require_equal_models
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.ops import paged_attention
from aapt_fast.profiling.systems import default_dtype
from aapt_fast.streaming import graph
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.recorder import record_on_cpu
from aapt_fast.testing.streams import STREAMS, play, random_controls, random_image, random_model, random_prompt
from aapt_fast.testing.wan import TINY, WAN_KINDS, random_wan


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=str)
def default(request) -> torch.dtype:
    return request.param


def require_equal(got: tuple, expected: tuple) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def require_independent(model: StreamModel, given: dict, controls: list, default: torch.dtype) -> None:
    """Sessions created before and inside of another default, with the same tensors, give the same frames."""
    image = random_image(model)
    expected = play(StreamSession(model, image, **given), controls)
    before = StreamSession(model, image, **given)
    with default_dtype(default):
        require_equal(play(before, controls), expected)
        require_equal(play(StreamSession(model, image, **given), controls), expected)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(
    "options", [{}, {"sampler": EulerSampler(2)}, {"cuda_graph": True}], ids=["plain", "two", "recorded"]
)
def test_sessions(default, kind, options, monkeypatch):
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
    model = random_model(STREAMS[kind])
    controls = random_controls(model, 4)
    if model.control is not None and model.control.with_previous:
        options = {**options, "image_control": controls[0][0]}
    require_independent(model, {"prompt": random_prompt(model), "seed": 7, **options}, controls, default)


@pytest.mark.parametrize("with_wan_vae", [False, True], ids=["small VAE", "Wan VAE"])
def test_sessions_of_a_wan_transformer(default, with_wan_vae):
    torch.manual_seed(1)
    vae = WanVAE(WanVAEConfig(base_dim=4)).eval() if with_wan_vae else random_model(NANO).vae
    model = StreamModel(random_wan(), vae, grid=(4, 6))
    prompt = torch.randn(5, TINY.text_width)
    schedule = FewStepSampler(steps=(1000, 500), context_noise=50.0, window=WindowRule(1, 1, 1))
    require_independent(model, {"prompt": prompt, "seed": 7, "sampler": schedule}, [None] * 4, default)


def test_loaded_models(default):
    expected = aapt_fast.StreamModel.from_pretrained("mini-person")
    controls, image = random_controls(expected, 2), random_image(expected)
    given = {"seed": 7, "image_control": controls[0][0]}
    with default_dtype(default):
        model = aapt_fast.StreamModel.from_pretrained("mini-person")
        got = play(StreamSession(model, image, **given), controls)
    for part, same in ((model.generator, expected.generator), (model.vae, expected.vae)):
        require_equal(tuple(part.state_dict().values()), tuple(same.state_dict().values()))
    require_equal(got, play(StreamSession(expected, image, **given), controls))


def test_a_wan_vae_and_transformer_from_files(default, tmp_path):
    """Also the statistics of latents, which no file of weights holds; and how two files are compared."""
    torch.manual_seed(1)
    files = [tmp_path / "vae.safetensors", tmp_path / "generator.safetensors"]
    config, latents = {"num_heads": 3}, torch.randn(1, 16, 1, 4, 6)
    for file, module in zip(files, (WanVAE(WanVAEConfig(base_dim=4)), random_wan()), strict=True):
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, file)
    vae, generator = aapt_fast.load_vae(files[0]), aapt_fast.load_generator(files[1], config=config)
    with default_dtype(default):
        same_vae, same_generator = aapt_fast.load_vae(files[0]), aapt_fast.load_generator(files[1], config=config)
        decoded = same_vae.decode(latents)
        require_equal_models("vae", files[0], files[0], None, None)
    require_equal((decoded,), (vae.decode(latents),))
    require_equal(tuple(same_generator.state_dict().values()), tuple(generator.state_dict().values()))


def test_two_files_are_compared_in_float32(default, tmp_path):
    save_file(random_wan(WAN_KINDS["one head of 128"]).state_dict(), tmp_path / "wan.safetensors")
    with default_dtype(default):
        require_equal_models("generator", tmp_path / "wan.safetensors", tmp_path / "wan.safetensors", None, None)


def test_paged_attention(default):
    q, pages = torch.randn(2, 5, 2, 16), torch.randn(2, 3, 64, 2, 16)
    table, valid = torch.tensor([[[0, 1], [2, 0]], [[64, 9], [30, 0]]], dtype=torch.int32)
    expected = paged_attention(q, *pages, table, valid)
    with default_dtype(default):
        require_equal(paged_attention(q, *pages, table, valid), expected)
