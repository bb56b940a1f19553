# SPDX-License-Identifier: Apache-2.0
"""A rank reads its part of a file of weights, and no more; its memory holds no more, either."""

import dataclasses
from functools import partial

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from aapt_fast.distributed.layout import layout_of
from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.files.write import write_safetensors
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.profiling.inputs import random_controls
from aapt_fast.profiling.memory import LiveBytes
from aapt_fast.testing.streams import play, random_model, random_session
from aapt_fast.testing.thread_ranks import EchoTransport, on_ranks
from aapt_fast.testing.wan import random_wan

RANKS = 4
LARGE = dataclasses.replace(NANO, width=256, heads=8, layers=3)
WAN = WanConfig(heads=4, layers=1, ffn_width=640, text_width=24)


class Reading(TorchDispatchMode):
    """Counts the bytes of tensors that are copied, and those of new tensors."""

    def __init__(self):
        super().__init__()
        self.copied, self.bytes = 0, LiveBytes()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default and not args[0].is_meta:
            self.copied += args[1].numel() * args[1].element_size()
        mapped = func is torch.ops.aten.set_.source_Storage  # the file itself
        if isinstance(result, torch.Tensor) and not (func.is_view or result.is_meta or mapped):
            self.bytes.add(result)
        return result


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    model = random_model(LARGE)
    model.generator.requires_grad_(False)
    model.save_pretrained(path, torch.float32)
    return path


@pytest.fixture(scope="module")
def wan_file(tmp_path_factory):
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    write_safetensors(path, dict(random_wan(WAN).state_dict()), {})
    return path


def small_vae():
    torch.manual_seed(2)
    return WanVAE(WanVAEConfig(base_dim=4, num_res_blocks=1)).eval().requires_grad_(False)


def nbytes(module):
    return sum(each.nbytes for each in module.parameters())


@pytest.mark.parametrize("scheme", ["sp", "tp"])
@pytest.mark.parametrize("kind", ["own", "wan"])
def test_bytes_that_a_rank_reads(kind, scheme, own_file, wan_file):
    path, options = (own_file, {}) if kind == "own" else (wan_file, {"vae": small_vae(), "grid": (8, 4)})
    with Reading() as whole:
        all_of_it = StreamModel.from_pretrained(path, **options)
    with Reading() as reading:
        model = shard(path, EchoTransport(1, RANKS), scheme, whole_decoder=True, **options)
    read_vae = 0 if "vae" in options else nbytes(model.vae)
    kept, all_weights = nbytes(model.generator.whole), nbytes(all_of_it.generator)
    slack = 0.02 * all_weights  # a fingerprint, which looks at a few numbers; biases of which other ranks keep nothing
    regrouped = 3 * 256**2 * 4 / RANKS if kind == "own" else 0  # q, k and v of one matrix, put together
    assert kept + read_vae <= reading.copied <= kept + read_vae + slack + 3 * regrouped
    assert reading.bytes.peak <= kept + read_vae + regrouped + slack
    if scheme == "tp":
        layout, weights = layout_of(all_of_it.generator), dict(all_of_it.generator.named_parameters())
        cut = sum(weights[name].nbytes for name, each in layout.shards.items() if not each.first_only)
        assert kept == all_weights - cut * (RANKS - 1) // RANKS
        assert whole.bytes.peak - reading.bytes.peak >= all_weights - kept - regrouped - slack > 0.2 * all_weights


@pytest.mark.parametrize("scheme", ["sp", "tp"])
def test_parts_of_a_file_are_parts_of_the_model(own_file, scheme):
    controls = random_controls(random_model(LARGE), 2, seed=3)

    def frames(make, transport):
        with random_session(shard(make(), transport, scheme)) as session:
            return play(session, controls)[0]

    from_file = on_ranks(2, partial(frames, lambda: own_file))
    loaded = on_ranks(2, partial(frames, lambda: StreamModel.from_pretrained(own_file)))
    assert all(torch.equal(one, other) for one, other in zip(from_file, loaded, strict=True))


def test_files_of_other_weights_are_refused_on_every_rank(own_file, tmp_path):
    other = tmp_path / "other.safetensors"
    changed = random_model(LARGE)
    changed.generator.requires_grad_(False).blocks[0].video.up.weight.zero_()
    changed.save_pretrained(other, torch.float32)

    def refused(transport):
        with pytest.raises(ValueError) as raised:
            shard((own_file, other)[transport.rank], transport, "tp")
        return str(raised.value)

    said = on_ranks(2, refused)
    assert said[0] == said[1] and said[0].startswith("weights: expected the same on every rank, got ")


def test_a_damaged_file_is_refused_before_it_is_cut(own_file, tmp_path):
    with safe_open(own_file, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["generator.blocks.0.video.up.weight"] = tensors["generator.blocks.0.video.up.weight"][:4].clone()
    damaged = tmp_path / "damaged.safetensors"
    write_safetensors(damaged, tensors, metadata)
    with pytest.raises(ValueError, match=r"blocks.0.video.up.weight: expected shape \[1024, 256\], got \[4, 256\]"):
        shard(damaged, EchoTransport(1, RANKS), "tp")


def test_options_are_for_paths(own_file):
    with pytest.raises(TypeError, match="options: expected none beside a model that is loaded, got dtype"):
        shard(random_model(LARGE), EchoTransport(0, 2), dtype="bfloat16")
