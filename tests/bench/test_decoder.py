# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from bench import bench_decoder
from bench.baselines import wan_decoders
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from aapt_fast.profiling.decoder_steps import OwnStep, Step
from aapt_fast.profiling.decoders import DECODERS, Layer, decoder_layers, layer_rows, make_vae, table_of


@pytest.mark.parametrize("name", DECODERS)
def test_the_program_with_a_narrow_decoder(name, monkeypatch, tmp_path, capsys):
    out = tmp_path / "document.json"
    monkeypatch.setattr("sys.argv", ["bench_decoder.py", "--tiny", "--decoder", name, "--out", str(out)])
    bench_decoder.main()
    document = json.loads(out.read_text())
    *decoders, encoder = document["results"]
    assert encoder["name"] == f"encoder/{name}/64x48/float32/torch" and encoder["p50_ms"] > 0
    by_side = {entry["what_ran"]: entry for entry in decoders}
    assert by_side.keys() == ({"torch"} if name == "light" else {"torch", "diffusers"})
    entry = by_side["torch"]
    assert entry["name"] == f"decoder/{name}/64x48/float32/torch" and entry["p50_ms"] > 0 and entry["tflops"] > 0
    assert entry["share_of_ceiling"] > 0
    assert entry["psnr_db"] is None if name == "light" else entry["psnr_db"] > 100
    failures = {failure["what_ran"] for failure in document.get("failures", [])}
    assert failures == (set() if name == "light" else {"vLLM-Omni", "SGLang"})
    assert sum(row["share"] for row in document["layers"][f"{name}/64x48"]) == pytest.approx(1)
    assert "sum" in capsys.readouterr().out


def test_rows_hold_all_the_work():
    layers = decoder_layers(DECODERS["light"], 52, 92)
    rows = layer_rows(layers, matmul=790e12, copy=3e12)
    assert sum(row["gflop"] for row in rows) == pytest.approx(sum(layer.flops for layer in layers) / 1e9)
    assert sum(row["count"] for row in rows) == len(layers) > len(rows)
    assert len(table_of(rows)) == len(rows) + 2


def test_a_row_by_hand():
    layer = Layer(64, 3, (3, 3, 3), (4, 416, 736))
    (row,) = layer_rows([layer, layer], matmul=790e12, copy=3e12)
    assert row["limit"] == "bytes" and row["count"] == 2 and row["share"] == 1
    assert row["ceiling_ms"] == pytest.approx(1e3 * 2 * layer.elements * 2 / 3e12)


def test_a_size_with_a_part_of_a_cell_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_decoder.py", "--layers", "--decoder", "wan2.2", "--size", "72x48"])
    with pytest.raises(ValueError, match="--size: expected multiples of 16 pixels, got 72x48"):
        bench_decoder.main()


# ---- other packages, as their own modules are called ----


def recorded_calls(monkeypatch: pytest.MonkeyPatch, installed: bool = True) -> list[str]:
    """Stand-ins for vLLM-Omni and SGLang, which cannot run here, that note their calls."""
    calls: list[str] = []

    def install(vae: AutoencoderKLWan, level: str) -> SimpleNamespace:
        calls.append(f"install {level}")
        return SimpleNamespace(installed=installed, reason="the decoder is another one")

    class Theirs(AutoencoderKLWan):
        def __init__(self, config: SimpleNamespace) -> None:
            arch = vars(config.arch_config)
            names = {"temporal_downsample": "temperal_downsample"}
            fields = {names.get(name, name): value for name, value in arch.items()}
            super().__init__(**{**fields, "dim_mult": list(fields["dim_mult"])})
            assert (config.use_parallel_encode, config.use_parallel_decode) == (False, False)

        def reset_causal_decode_state(self) -> None:
            self.clear_cache()
            calls.append("reset")

        def causal_decode(self, z: Tensor) -> Tensor:
            calls.append("decode")
            first = self._feat_map[0] is None
            blocks = self.decoder(self.post_quant_conv(z), self._feat_map, [0], first_chunk=first)
            return unpatchify(blocks, self.config.patch_size or 1).clamp(-1, 1)

    @contextmanager
    def use_vae_fast_path(vae: Theirs, enabled: bool) -> Iterator[None]:
        calls.append(f"enabled {enabled}")
        yield

    models = f"{wan_decoders.SGLANG}.runtime.models.vaes"
    stand_ins = {
        wan_decoders.VLLM_OMNI: SimpleNamespace(install_wan_vae_fastpath=install),
        f"{wan_decoders.SGLANG}.configs.models.vaes.wanvae": SimpleNamespace(
            WanVAEArchConfig=SimpleNamespace, WanVAEConfig=SimpleNamespace
        ),
        f"{models}.wanvae": SimpleNamespace(AutoencoderKLWan=Theirs),
        f"{models}.wan_vae_cuda_opt": SimpleNamespace(maybe_optimize_wan_vae=lambda vae: vae),
        f"{models}.fast_path_gate": SimpleNamespace(use_vae_fast_path=use_vae_fast_path),
    }
    monkeypatch.setattr(wan_decoders, "import_module", stand_ins.__getitem__)
    return calls


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2"])
def test_others_get_the_same_weights_and_latents(name, monkeypatch):
    calls = recorded_calls(monkeypatch)
    vae = make_vae(bench_decoder.tiny(DECODERS[name])).eval().requires_grad_(False)
    steps = {
        side: make(vae) for side, make in {"diffusers": wan_decoders.diffusers_step, **wan_decoders.OTHERS}.items()
    }
    stream = vae.stream()
    for _ in range(2):
        latents = torch.randn(1, vae.latent_channels, 1, 2, 3)
        expected = stream.decode(latents)
        for step in steps.values():
            assert bench_decoder.psnr(step(latents), expected) > 100
    assert calls == ["install channels_last", "reset", *["enabled True", "decode"] * 2]


def test_a_fast_path_that_is_not_installed_is_a_failure(monkeypatch):
    recorded_calls(monkeypatch, installed=False)
    vae = make_vae(bench_decoder.tiny(DECODERS["wan2.1"])).eval()
    with pytest.raises(RuntimeError, match="vLLM-Omni's fast path is not installed: the decoder is another one"):
        wan_decoders.vllm_omni_step(vae)


def test_a_compiled_step_goes_on_where_the_first_one_ended():
    """What is compiled is the step from the second latent frame on, whose state stays in the same tensors."""
    vae = make_vae(bench_decoder.tiny(DECODERS["wan2.1"])).eval().requires_grad_(False)
    compiled, places = [], []

    def compiler(step: Step) -> Step:
        compiled.append(step)
        return step

    step, plain = OwnStep(vae, "none", compiler), vae.stream()
    for _ in range(3):
        latents = torch.randn(1, 16, 1, 2, 3)
        assert bench_decoder.psnr(step(latents), plain.decode(latents)) > 100
        assert len(compiled) == 1
        places.append([tensor.data_ptr() for tensor in step.stream._cache.to_restore()])
    assert places[0] == places[1] == places[2] != []


def test_psnr_by_hand():
    video = torch.zeros(1, 3, 1, 4, 4)
    assert bench_decoder.psnr(video + 0.02, video) == pytest.approx(40)
    assert bench_decoder.psnr(video, video) == float("inf")
