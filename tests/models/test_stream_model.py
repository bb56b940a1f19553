# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import aapt_fast
import aapt_fast.profiling.systems
from aapt_fast import FirstFrame, StreamSession, load_vae
from aapt_fast.errors import CheckpointError
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO, NANO_TEXT
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.vae.video_stream import ChunkedVAE
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.testing.streams import SMALL_VAE
from aapt_fast.testing.wan import WAN_KINDS, random_wan
from aapt_fast.worlds import WORLDS

ONE_HEAD = WAN_KINDS["one head of 128"]


def make_model(config=NANO, dtype=torch.float32, vae_dtype=torch.float32, **options) -> StreamModel:
    return StreamModel(Generator(config).to(dtype), MiniVAE(SMALL_VAE).to(vae_dtype), **options)


def test_what_sessions_need_to_know():
    model = make_model(NANO_TEXT, torch.bfloat16, name="nano text")
    assert (model.config, model.control, model.name) == (NANO_TEXT, None, "nano text")
    assert model.video_size == (32, 48) and model.dtype == torch.bfloat16 and model.device == torch.device("cpu")
    assert make_model().control == NANO.control


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_generator_in_half_precision_is_autocast(dtype):
    with make_model(dtype=dtype).autocast():
        assert torch.is_autocast_enabled("cpu") == (dtype == torch.bfloat16)


def test_casts_of_weights_are_made_anew_in_every_evaluation():
    """A CUDA graph must not read a cast from a warm-up. Torch keeps casts until the outermost autocast ends."""
    model, layer = make_model(dtype=torch.bfloat16), torch.nn.Linear(4, 4, bias=False)  # in float32
    x = torch.ones(1, 4)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        with model.autocast():
            layer(x)
        layer.weight.fill_(2.0)
        with model.autocast():
            assert layer(x).tolist() == [[8.0] * 4]


@torch.inference_mode()
def test_every_kind_of_image():
    model = make_model()
    pixels = numpy.random.randint(0, 256, (32, 32, 3), dtype=numpy.uint8)
    as_float = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    expected = model.vae.encode(as_float[None, :, None])
    for image in (pixels, torch.from_numpy(pixels), Image.fromarray(pixels), as_float, as_float.double()):
        assert torch.equal(model.encode_image(image), expected)
    grey = Image.fromarray(pixels[..., 0])
    assert torch.equal(model.encode_image(grey), model.encode_image(numpy.array(grey.convert("RGB"))))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(3, 32, 40), ValueError, r"image: expected shape \[3, 32, 32\], got \[3, 32, 40\]"),
        (numpy.zeros((8, 32, 3), numpy.uint8), ValueError, r"image: expected shape \[32, 32, 3\], got \[8, 32, 3\]"),
        (Image.new("RGB", (40, 32)), ValueError, r"image: expected shape \[32, 32, 3\], got \[32, 40, 3\]"),
        (torch.full((3, 32, 32), 255.0), ValueError, r"image: expected values in -1..1 \(.*\), got 255 to 255"),
        (torch.full((3, 32, 32), torch.nan), ValueError, r"image: expected values in -1..1 \(.*\), got nan to nan"),
        (torch.zeros(3, 32, 32).long(), ValueError, r"image: expected uint8 \[H, W, 3\] or float"),
        (numpy.zeros((32, 32, 3), object), ValueError, r"image: expected uint8 .*, got an array of dtype object"),
        (
            torch.zeros(3, 32, 32, device="meta"),
            TypeError,
            "image: expected a tensor with real numbers in memory, got one",
        ),
        ("a.png", TypeError, r"image: expected a PIL image, uint8 \[H, W, 3\] or float \[3, H, W\], got str"),
    ],
)
def test_bad_images(image, error, message):
    with pytest.raises(error, match=message):
        make_model().encode_image(image)


def test_a_float_picture_that_is_probably_in_0_to_1_is_warned_of():
    model, picture = make_model(), torch.linspace(0, 1, 3 * 32 * 32).view(3, 32, 32)
    expected = r"image: expected values in -1..1, got 0 to 1; .* \(for values in 0..1 pass 2 \* image - 1"
    for image in (picture, picture.numpy(), FirstFrame(picture)):
        with pytest.warns(UserWarning, match=expected) as caught:
            StreamSession(model, image)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamSession(model, 2 * picture - 1)


@torch.inference_mode()
def test_dtypes_meet_at_the_edges():
    """Latent frames are float32 outside, whatever the dtype of the VAE; embeddings follow the generator."""
    model = make_model(NANO_TEXT, torch.bfloat16, vae_dtype=torch.bfloat16)
    frame = model.encode_image(-torch.ones(3, 32, 48))
    assert frame.dtype == torch.float32 and frame.shape == (1, 16, 1, 4, 6)
    assert model.embed(torch.zeros(5, 12)).dtype == torch.bfloat16
    assert model.decode(model.vae.stream(), frame).shape == (1, 32, 48, 3)


@pytest.mark.parametrize(("level", "byte"), [(-1.0, 0), (1.0, 255), (0.0, 128), (-0.5, 64), (1.7, 255)])
def test_decoded_pixels_are_rounded_to_bytes(level, byte):
    class Flat(ChunkedVAE):
        latent_channels = 16

        def decode_chunk(self, latents, cache):
            return torch.full((1, 3, 4, 2, 2), level)

    video = make_model().decode(Flat().stream(), torch.zeros(1, 16, 1, 4, 4))
    assert video.dtype == torch.uint8 and video.shape == (4, 2, 2, 3) and video.eq(byte).all()


def test_a_preset_has_no_weights_to_load_and_can_be_made_as_the_message_says():
    with pytest.raises(ValueError, match=r"path: expected a bundled model .*, got nano: a preset without") as caught:
        StreamModel.from_pretrained("nano")
    advice = re.search(r"; (aapt_fast\S+\('.*\)) makes one", str(caught.value))[1]
    scope = {"aapt_fast": aapt_fast, "device": torch.device("cpu"), "dtype": torch.float32}
    assert isinstance(eval(advice, scope), StreamModel)


def test_prompts_in_words_go_through_the_encoder():
    embeddings = torch.randn(5, 12)
    model = make_model(NANO_TEXT, text_encoder={"a cat": embeddings}.__getitem__)
    assert torch.equal(model.embed("a cat"), embeddings[None])
    assert torch.equal(model.embed(embeddings), embeddings[None])


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("a cat", ValueError, "prompt: expected embeddings: this model has no text encoder, got a str"),
        (
            torch.zeros(3, 12).to_sparse(),
            TypeError,
            "prompt: expected a tensor with real numbers in memory, got one of",
        ),
        (torch.zeros(3, 11), ValueError, r"prompt: expected shape \[L, 12\], got \[3, 11\]"),
        (torch.zeros(1, 3, 12), ValueError, r"prompt: expected shape \[L, 12\], got \[1, 3, 12\]"),
        (torch.zeros(0, 12), ValueError, "prompt: expected at least one token"),
        (torch.full((3, 12), torch.nan), ValueError, "prompt: expected finite values"),
        (torch.zeros(3, 12).long(), ValueError, "prompt: expected a floating-point tensor"),
        ([0.0], TypeError, "prompt: expected Tensor, got list"),
    ],
)
def test_bad_prompts(prompt, error, message):
    with pytest.raises(error, match=message):
        make_model(NANO_TEXT).embed(prompt)


def test_parts_that_do_not_fit():
    generator = Generator(NANO)
    with pytest.raises(ValueError, match="vae: expected 16 latent channels, got 8"):
        StreamModel(generator, MiniVAE(dataclasses.replace(SMALL_VAE, latent_channels=8)))
    with pytest.raises(ValueError, match="text_encoder: expected none"):
        StreamModel(generator, MiniVAE(SMALL_VAE), text_encoder=lambda words: torch.zeros(1, 12))
    with pytest.raises(ValueError, match="prompt: expected none: this model has no text stream"):
        make_model().embed(torch.zeros(3, 12))


# ---- from files ----


@pytest.fixture
def wan_files(tmp_path) -> tuple[Path, Path]:
    torch.manual_seed(1)
    files = (tmp_path / "wan.safetensors", tmp_path / "vae.safetensors")
    for file, module in zip(files, (random_wan(ONE_HEAD), WanVAE(WanVAEConfig(base_dim=4))), strict=True):
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, file)
    return files


def test_a_generator_and_a_vae_from_files(wan_files):
    path, vae = wan_files

    def words(prompt: str) -> torch.Tensor:
        return torch.full((2, ONE_HEAD.text_width), float(len(prompt)))

    model = StreamModel.from_pretrained(path, vae=vae, dtype=torch.bfloat16, grid=(4, 6), text_encoder=words)
    assert isinstance(model.generator, WanTransformer) and isinstance(model.vae, WanVAE)
    assert (model.name, model.grid, model.dtype) == ("wan.safetensors", (4, 6), torch.bfloat16)
    assert next(model.vae.parameters()).dtype == torch.bfloat16
    assert torch.equal(model.embed("cat")[0, :2], words("cat").bfloat16())
    loaded = load_vae(vae)
    model = StreamModel.from_pretrained(path, loaded, grid=(4, 6))
    assert model.vae is loaded and model.dtype == torch.float32


def test_another_vae_than_that_of_the_file(tmp_path):
    make_model(name="nano").save_pretrained(tmp_path / "nano.safetensors")
    vae = MiniVAE(SMALL_VAE)
    model = StreamModel.from_pretrained(str(tmp_path / "nano.safetensors"), vae)
    assert model.vae is vae and model.config == NANO
    with pytest.raises(ValueError, match=r"got nano.safetensors without one"):
        _ = model.world


def test_another_vae_leaves_the_world_of_the_gallery(tmp_path):
    """The name of a bundled model decides nothing: a world comes with the gallery beside the weights."""
    model = make_model(name="mini-person")
    model.save_pretrained(tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"got mini-person without one; save_pretrained and convert write none: copy the gallery.json"
    ):
        _ = StreamModel.from_pretrained(tmp_path).world
    (tmp_path / "gallery.json").write_text('{"world": "person", "first_frames": []}')
    for options in ({}, {"vae": MiniVAE(SMALL_VAE)}):
        assert StreamModel.from_pretrained(tmp_path, **options).world is WORLDS["person"]


def test_the_native_grid_may_be_named():
    for grid in (None, NANO.grid, list(NANO.grid)):
        assert make_model(grid=grid).grid == NANO.grid
    for grid in ((4, 5), (4,), 4, "44"):
        with pytest.raises(ValueError, match=r"grid: expected None or \(4, 4\), the native grid of the generator, got"):
            make_model(grid=grid)


def test_parts_that_do_not_fit_are_refused(wan_files, tmp_path):
    path, vae = wan_files
    with pytest.raises(CheckpointError, match=r"wan.safetensors: .*got a Wan transformer without a VAE; .* in vae="):
        StreamModel.from_pretrained(path)
    with pytest.raises(ValueError, match=r"grid: expected two positive multiples of 2, got \(4, 5\)"):
        StreamModel.from_pretrained(path, vae, grid=(4, 5))
    with pytest.raises(ValueError, match="vae: expected 16 latent channels, got 8"):
        StreamModel.from_pretrained(path, MiniVAE(dataclasses.replace(SMALL_VAE, latent_channels=8)))
    with pytest.raises(ValueError, match="text_encoder: expected none"):
        StreamModel.from_pretrained("mini-person", text_encoder=lambda prompt: torch.zeros(1, 12))
    with pytest.raises(TypeError, match=r"model\.generator: expected Generator, got WanTransformer"):
        StreamModel.from_pretrained(path, vae).save_pretrained(tmp_path / "x.safetensors")
