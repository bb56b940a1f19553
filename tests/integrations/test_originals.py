# SPDX-License-Identifier: Apache-2.0
"""The original VAEs and transformers of the Wan family, from checkouts of them (`--originals FOLDER`), with small
random weights: patched against unpatched, and their files loaded here against their own forward pass."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.integrations.originals import Checkout, opened, random_weights

import aapt_fast
from aapt_fast.compat.wan import replaced_in
from aapt_fast.errors import CheckpointError
from aapt_fast.models.vae.infer_wan_config import configuration, facts_of_tensors
from aapt_fast.models.vae.wan import WanVAE
from aapt_fast.models.wan.infer_config import wan_config
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.testing.compare import relative_l2

TOLERANCE = 1e-5

# ---- VAEs ----

VAE_LEVELS = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
VAES = pytest.mark.parametrize(
    ("repository", "module", "name"),
    [
        ("Wan2.1", "vae", "WanVAE"),
        ("Wan2.2", "vae2_1", "Wan2_1_VAE"),
        ("Wan2.2", "vae2_2", "Wan2_2_VAE"),
        ("Self-Forcing", "vae", "WanVAE"),
        ("Causal-Forcing", "vae", "WanVAE"),
    ],
)


def small_vae(original: Checkout, module: str, name: str, folder: Path):
    """(an object of their class, with base 8; the file that it was made from)."""
    theirs = original(f"wan.modules.{module}")
    newer = name == "Wan2_2_VAE"
    sizes = {"dim": 8, "z_dim": 48, "dec_dim": 12} if newer else {"dim": 8, "z_dim": 16}
    raw = theirs.WanVAE_(num_res_blocks=2, attn_scales=[], dropout=0.0, **sizes, **VAE_LEVELS)
    file = folder / ("Wan2.2_VAE.pth" if newer else "Wan2.1_VAE.pth")
    torch.save(random_weights(raw).state_dict(), file)
    sizes = {"dec_dim": 12} if newer else {"dim": 8}
    original.replace(theirs, "_video_vae", partial(theirs._video_vae, **sizes))
    base = {"c_dim": 8} if newer else {}
    return getattr(theirs, name)(vae_pth=str(file), device="cpu", **base), file


@VAES
@torch.no_grad()
def test_vae(original, repository, module, name, tmp_path):
    vae, file = small_vae(original(repository), module, name, tmp_path)
    channels, factor = (48, 16) if name == "Wan2_2_VAE" else (16, 8)
    latents = torch.randn(channels, 4, 4, 6)
    video = torch.rand(3, 9, 4 * factor, 6 * factor) * 2 - 1

    def results() -> dict[str, torch.Tensor]:
        found = {"decode": vae.decode([latents])[0], "encode": vae.encode([video])[0]}
        if hasattr(vae.model, "cached_decode"):
            vae.model.clear_cache()
            pieces = [vae.model.cached_decode(piece[None], vae.scale) for piece in latents.split([1, 2, 1], 1)]
            found["cached"] = torch.cat(pieces, 2)
        return found

    expected = results()
    with aapt_fast.patched(vae) as report:
        assert report.replaced and not report.left_alone
        for what, found in results().items():
            assert relative_l2(found, expected[what]) < TOLERANCE, what
    assert all(torch.equal(found, expected[what]) for what, found in results().items())

    ours = aapt_fast.load_vae(file)
    assert relative_l2(ours.decode(latents[None])[0].clamp(-1, 1), expected["decode"]) < TOLERANCE
    assert relative_l2(ours.encode(video[None])[0], expected["encode"]) < TOLERANCE
    stream = ours.stream()
    streamed = torch.cat([stream.decode(frame[None])[0] for frame in latents.split(1, 1)], 1)
    assert relative_l2(streamed.clamp(-1, 1), expected["decode"]) < TOLERANCE


@pytest.mark.parametrize("repository", ["Self-Forcing", "Causal-Forcing"])
@torch.no_grad()
def test_the_decoder_of_the_demo(original, repository):
    """It has one size, that of the published VAE, and is given its cache with every call."""
    decoder = random_weights(original(repository)("demo_utils.vae_block3").VAEDecoderWrapper())
    latents = torch.randn(1, 4, 16, 2, 3)

    def video() -> torch.Tensor:
        cache, pieces = [None] * 55, []
        for piece in latents.split([1, 3], 1):
            frames, cache = decoder(piece, *cache)
            pieces.append(frames)
        return torch.cat(pieces, 1)

    expected = video()
    with aapt_fast.patched(decoder) as report:
        assert report.replaced and not report.left_alone
        assert relative_l2(video(), expected) < TOLERANCE
    assert torch.equal(video(), expected)


@VAES
def test_vae_of_the_published_size(original, repository, module, name):
    newer = name == "Wan2_2_VAE"
    base = {"dim": 160, "z_dim": 48} if newer else {"dim": 96, "z_dim": 16}
    with torch.device("meta"):
        theirs = original(repository)(f"wan.modules.{module}").WanVAE_(
            num_res_blocks=2, attn_scales=[], dropout=0.0, **base, **VAE_LEVELS
        )
        state = theirs.state_dict()
        ours = WanVAE(configuration(facts_of_tensors(state, "theirs"), {}, "theirs"))
    assert {key: value.shape for key, value in ours.state_dict().items()} == {k: v.shape for k, v in state.items()}


# ---- transformers ----

SMALL = dict(dim=256, num_heads=2, num_layers=2, ffn_dim=192, freq_dim=32, text_dim=24)
TRANSFORMERS = pytest.mark.parametrize(
    ("repository", "kind"),
    [
        *[("Wan2.1", "t2v"), ("Wan2.1", "i2v"), ("Wan2.2", "t2v"), ("Wan2.2", "i2v"), ("Wan2.2", "ti2v")],
        *[("Self-Forcing", "t2v"), ("Causal-Forcing", "t2v")],
    ],
)


@TRANSFORMERS
@torch.no_grad()
def test_transformer(original, repository, kind, tmp_path):
    theirs = original(repository)("wan.modules.model")
    channels, given = (48 if kind == "ti2v" else 16), (20 if kind == "i2v" else 0)
    length = 512 if (repository, kind) == ("Wan2.1", "i2v") else 16  # they split off 512 tokens of text there
    model = theirs.WanModel(kind, in_dim=channels + given, out_dim=channels, text_len=length, **SMALL)
    random_weights(model)
    clip, words = torch.randn(2, channels, 3, 8, 12), [torch.randn(count, 24) for count in (5, 9)]
    # Wan 2.2 takes a timestep per token, and one per sample for a batch of one only.
    timestep = torch.rand(2, 72) * 1000 if repository == "Wan2.2" else torch.tensor([933.0, 250.0])
    pictures = torch.randn(2, given, 3, 8, 12)
    more = {"y": list(pictures)} if given else {}
    image = torch.randn(2, 257, 1280) if length == 512 else None
    if image is not None:
        more["clip_fea"] = image
    with replaced_in("wan", dtype=torch.float32):
        expected = torch.stack(
            list(model(clip if "Forcing" in repository else list(clip), timestep, words, 72, **more))
        )

    model.save_pretrained(tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "file.pth")
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    padded = torch.stack([F.pad(prompt, (0, 0, 0, length - len(prompt))) for prompt in words])
    for source in ("folder", "file.pth", "file.safetensors"):
        for config in (None, {"num_heads": 2, "text_len": length}):
            ours = aapt_fast.load_generator(tmp_path / source, config=config)
            found = ours(torch.cat([clip, pictures], 1), timestep, padded, image)
            assert relative_l2(found, expected) < TOLERANCE, source


SIZES = {
    ("Wan2.1", "wan_t2v_1_3B", "t2v_1_3B"): dict(model_type="t2v"),
    ("Wan2.1", "wan_t2v_14B", "t2v_14B"): dict(model_type="t2v"),
    ("Wan2.1", "wan_i2v_14B", "i2v_14B"): dict(model_type="i2v", in_dim=36),
    ("Wan2.2", "wan_t2v_A14B", "t2v_A14B"): dict(model_type="t2v"),
    ("Wan2.2", "wan_i2v_A14B", "i2v_A14B"): dict(model_type="i2v", in_dim=36),
    ("Wan2.2", "wan_ti2v_5B", "ti2v_5B"): dict(model_type="ti2v", in_dim=48, out_dim=48),
}


@pytest.mark.parametrize(("repository", "module", "name"), SIZES)
def test_transformer_of_the_published_size(original, repository, module, name):
    checkout = original(repository)
    said = getattr(checkout(f"wan.configs.{module}"), name)
    names = ("dim", "ffn_dim", "freq_dim", "num_heads", "num_layers", "cross_attn_norm", "eps")
    model = checkout("wan.modules.model").WanModel
    checkout.replace(model, "init_weights", lambda self: None)
    with torch.device("meta"):
        theirs = model(**{key: said[key] for key in names}, **SIZES[repository, module, name]).state_dict()
        config = wan_config(theirs, "theirs")
        ours = WanTransformer(config).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert (config.heads, config.eps, config.text_length) == (said.num_heads, said.eps, said.text_len)


def test_other_members_of_the_family_are_refused_by_key(original, tmp_path):
    theirs = original("Wan2.1")("wan.modules.model")
    model = theirs.WanModel("flf2v", in_dim=36, out_dim=16, **SMALL)
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=r"expected no key img_emb\.emb_pos, got one"):
        aapt_fast.load_generator(tmp_path / "file.safetensors")


# ---- their attention function over our flash_attn ----

# Their assertion that tensors are on a GPU is left out by -O.
OVER_OURS = """
import sys
from pathlib import Path
import torch
import aapt_fast.compat.flash_attn
sys.modules["flash_attn"] = aapt_fast.compat.flash_attn
from tests.integrations.originals import opened
from aapt_fast.compat import wan
q, k, v = torch.randn(2, 5, 3, 64), torch.randn(2, 7, 3, 64), torch.randn(2, 7, 3, 64)
with opened(Path(sys.argv[1])) as original:
    for options in ({}, {"k_lens": torch.tensor([7, 3])}, {"q_scale": 0.5}, {"version": 2}):
        theirs = original("wan.modules.attention").flash_attention(q, k, v, **options)
        difference = (theirs - wan.flash_attention(q, k, v, **options)).norm() / theirs.norm()
        if not difference < 1e-2:
            sys.exit(f"{options}: {difference}")
"""


@pytest.mark.parametrize("repository", ["Wan2.1", "Wan2.2", "Self-Forcing", "Causal-Forcing"])
def test_their_attention_over_our_flash_attn(original, repository):
    folder = str(original(repository).folder)
    command = [sys.executable, "-O", "-c", OVER_OURS, folder]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


def test_opening_a_checkout_leaves_nothing_behind(original):
    folder = original("Wan2.1").folder
    before = dict(sys.modules), list(sys.path)
    with opened(folder) as checkout:
        assert checkout("wan.modules.attention") is not before[0].get("wan.modules.attention")
    assert (dict(sys.modules), sys.path) == before
