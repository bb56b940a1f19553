# SPDX-License-Identifier: Apache-2.0
"""Prompts in words: a tiny UMT5 and a tokenizer of six words, as a pipeline holds them."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="prompts in words need transformers")

from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import aapt_fast
from aapt_fast.errors import CheckpointError
from aapt_fast.integrations import text as module
from aapt_fast.integrations.text import TextEncoder, clean_prompt
from aapt_fast.profiling.memory import weight_bytes
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.fake_cuda import FAKE_GPU, fake_cuda
from aapt_fast.testing.wan import TINY, diffusers_config

WORDS = ("<pad>", "</s>", "<unk>", "a", "cat", "runs")
PROMPT = "a cat runs"
KEY = "encoder.block.1.layer.1.DenseReluDense.wo.weight"

PAGE = Path(__file__).parents[2] / "docs/how-to/stream-a-wan-checkpoint.md"
SMALL = {
    '"Wan2.1-T2V-1.3B-Diffusers", device="cuda", dtype=torch.bfloat16': "path",
    '"self_forcing_dmd.pt"': "path",
    '"Wan2.1_VAE.pth"': "path",
    'device="cuda",': "",
    "dtype=torch.bfloat16,": "",
    "(60, 104)": "(2, 4)",
    "range(7)": "range(2)",
    "a cat walks on the grass": PROMPT,
}
"""Values of the page -> values for a tiny pipeline on a CPU."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(path / "tokenizer")
    torch.manual_seed(1)
    config = UMT5Config(vocab_size=8, d_model=TINY.text_width, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "text"))


@pytest.mark.parametrize("prompt", [PROMPT, "", "  a \n cat\t&amp;amp; a   dog "])
def test_embeddings_are_those_of_the_pipeline_of_diffusers(saved, prompt):
    encoder = TextEncoder(saved)
    theirs = UMT5EncoderModel.from_pretrained(saved / "text_encoder").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(saved / "tokenizer")
    pipeline = WanPipeline(tokenizer, theirs, None, None)
    expected = pipeline.encode_prompt(prompt, None, False, max_sequence_length=512, device="cpu")[0][0]
    embeddings = encoder(prompt)
    assert embeddings.shape == (int(expected.any(-1).sum()), encoder.text_width) and not embeddings.requires_grad
    assert_near(embeddings, expected[: len(embeddings)], 1e-5)
    assert (encoder("cat a") - encoder("a cat")).abs().max() > 1e-2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU has no fake one")
def test_weights_visit_a_gpu_and_rest_in_host_memory(saved):
    encoder = TextEncoder(saved)
    before = encoder(PROMPT)
    with fake_cuda() as gpu, gpu.counting() as counts:
        encoder._device = FAKE_GPU
        embeddings = encoder(PROMPT)
        assert embeddings.device == FAKE_GPU and embeddings.shape == before.shape
        layers = [weight_bytes(layer) for layer in encoder._encoder.encoder.block]
        assert gpu.live_bytes < max(layers) < counts.peak_bytes < sum(layers)  # they visit one after the other
    encoder._device = torch.device("cpu")
    assert torch.equal(encoder(PROMPT), before)


def test_a_long_prompt_is_cut_before_its_end_mark(saved):
    short, long = TextEncoder(saved, length=4), TextEncoder(saved)
    assert short("a cat runs a cat").shape == (4, TINY.text_width)
    assert_near(short("a cat runs a cat"), long("a cat runs"), 1e-6)
    assert long("cat " * 600).shape == (512, TINY.text_width)


def test_prompts_are_cleaned():
    assert clean_prompt(" a\n\tcat &amp;lt; dog ") == "a cat < dog"


def test_characters_are_mended_where_ftfy_is_installed(monkeypatch):
    class Ftfy:
        @staticmethod
        def fix_text(text: str) -> str:
            return text.replace("â€™", "'")

    monkeypatch.setitem(sys.modules, "ftfy", Ftfy)
    monkeypatch.setattr(module, "find_spec", lambda name: Ftfy)
    assert clean_prompt("it â€™s") == "it 's"


def test_dtype_and_places(saved, tmp_path):
    half = TextEncoder(saved, dtype="bfloat16")
    assert half(PROMPT).dtype == torch.bfloat16
    words = TextEncoder(saved / "text_encoder", tokenizer=saved / "tokenizer")
    assert torch.equal(words(PROMPT), TextEncoder(saved)(PROMPT))
    both = tmp_path / "both"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(saved / part, both, dirs_exist_ok=True)
    assert torch.equal(TextEncoder(both)(PROMPT), words(PROMPT))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, r"^device: expected a device that this torch can use"),
        ({"dtype": 16}, TypeError, "^dtype: expected .*, got 16"),
        ({"dtype": torch.int8}, ValueError, "^dtype: expected .*, got torch.int8"),
        ({"length": "512"}, TypeError, "^length: expected int, got str"),
        ({"path": "google/umt5-xxl"}, CheckpointError, "^google/umt5-xxl: .*`hf download google/umt5-xxl"),
        ({"path": None}, TypeError, "^path: expected str or PathLike, got NoneType"),
    ],
)
def test_arguments_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        TextEncoder(**{"path": "no folder", **options})


def damaged(folder: Path, change) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


def retyped(folder: Path) -> None:
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "t5"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "text: expected a folder with text_encoder .*, got nothing there"),
        (
            lambda folder: shutil.rmtree(folder / "text_encoder"),
            "text: expected .*, got a folder of folders .tokenizer",
        ),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), r"expected tokenizer\.json .*, got neither; say where"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{"), "tokenizer: expected a tokenizer"),
        (retyped, "config.json: model_type: expected umt5, got t5"),
        (lambda folder: damaged(folder, lambda state: state.pop(KEY)), f"expected key {KEY}, .* got none"),
        (lambda folder: damaged(folder, lambda state: state.pop("shared.weight")), "expected key .*, got none"),
        (
            lambda folder: damaged(folder, lambda state: state.update({KEY: torch.ones(3, 3)})),
            rf"{KEY}: expected shape \[24, 32\], got \[3, 3\]",
        ),
        (
            lambda folder: (folder / "text_encoder" / "model.safetensors").write_bytes(b"x" * 99),
            "text_encoder: expected a UMT5 encoder",
        ),
        (lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(), "expected a UMT5 encoder"),
    ],
)
def test_bad_folders(folder, change, message):
    change(folder)
    with pytest.raises(CheckpointError, match=message) as refusal:
        TextEncoder(folder)
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_of_another_model(folder):
    config = UMT5Config(vocab_size=4, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    with pytest.raises(CheckpointError, match=r"tokenizer: expected at most 4 tokens, .* got 6"):
        TextEncoder(folder)


def test_bad_arguments(saved):
    with pytest.raises(ValueError, match="length: expected at least 2 tokens, got 1"):
        TextEncoder(saved, length=1)
    with pytest.raises(TypeError, match="prompt: expected str, got int"):
        TextEncoder(saved)(3)


def test_without_transformers_it_is_said_what_to_install(saved, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "transformers" else real(name))
    with pytest.raises(ImportError, match=r"transformers: expected to be installed .*: pip install aapt_fast\[text\]"):
        TextEncoder(saved)


# ---- from words to frames ----


@pytest.fixture
def pipeline(saved, tmp_path) -> Path:
    """The folder of a whole pipeline."""
    path = Path(shutil.copytree(saved, tmp_path / "pipeline"))
    torch.manual_seed(2)
    WanTransformer3DModel(**diffusers_config(TINY)).save_pretrained(path / "transformer")
    AutoencoderKLWan(base_dim=8).save_pretrained(path / "vae")
    return path


def test_the_page_runs(pipeline):
    """docs/how-to/stream-a-wan-checkpoint.md, from loading to the decoder alone, with the names of small files."""
    load, stream, switch, schedules, decoder = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    scope: dict = {"path": pipeline}

    def run(block: str) -> None:
        for large, small in SMALL.items():
            block = block.replace(large, small)
        exec(compile(block, PAGE.name, "exec"), scope)

    run(load)
    run(stream)
    frames, model = scope["frames"], scope["model"]
    assert frames.shape == (12, 16, 32, 3) and frames.dtype == torch.uint8
    session = aapt_fast.StreamSession(model, prompt=scope["words"](PROMPT), seed=0)
    assert session.step().shape == (9, 16, 32, 3) and torch.equal(session.step(), frames)
    assert model.embed(PROMPT).shape == (1, 512, TINY.text_width) and not model.embed(PROMPT)[0, 4:].any()
    other = aapt_fast.StreamSession(model, prompt="runs", seed=0)
    other.step()
    assert not torch.equal(other.step(), frames)
    scope["session"] = other
    run(switch)
    assert other.step().shape == (12, 16, 32, 3)
    run(schedules)
    assert scope["session"].step().shape == (1, 16, 32, 3)
    shown: list[tuple] = []
    scope |= {"latents": torch.randn(1, 16, 3, 2, 4), "show": lambda video: shown.append(tuple(video.shape))}
    run(decoder)
    assert shown == [(1, 1, 16, 32, 3), (1, 4, 16, 32, 3), (1, 4, 16, 32, 3)]
