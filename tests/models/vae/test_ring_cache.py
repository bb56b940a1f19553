# SPDX-License-Identifier: Apache-2.0
"""Decoders with their frames in rings against the same decoders with a `FeatureCache`."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from aapt_fast import ops
from aapt_fast.models.vae import ring_cache, video_stream
from aapt_fast.models.vae.aapt import AAPTVAE, AAPTVAEConfig
from aapt_fast.models.vae.feature_cache import FeatureCache
from aapt_fast.models.vae.layers import CausalConv3d
from aapt_fast.models.vae.packed_weights import PackedWeights
from aapt_fast.models.vae.ring_cache import RingCache
from aapt_fast.models.vae.video_stream import DecoderStream, frames_to_uint8, ring_plan
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.vae.wan_layers import RMSNorm
from aapt_fast.ops.calls import observe_ops
from aapt_fast.streaming import graph
from aapt_fast.streaming.graph import RecordedDecoder
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.recorder import record_on_cpu

WIDTHS = (4, 8, 8, 12)
VAES = {
    "light": partial(AAPTVAE, AAPTVAEConfig(encoder_widths=WIDTHS, decoder_widths=WIDTHS, norm_num_groups=4)),
    "wan 2.1": partial(WanVAE, WanVAEConfig(base_dim=4, num_res_blocks=1)),
    "wan 2.2": partial(
        WanVAE, WanVAEConfig(base_dim=4, decoder_base_dim=6, num_res_blocks=1, is_residual=True, patch_size=2)
    ),
}
STEPS = 6
"""Rings have 3, 4 and 6 slots, of which 1, 2 and 4 are written per step: every layer begins at every slot it can."""


def make(name: str, dtype: torch.dtype = torch.float32) -> AAPTVAE | WanVAE:
    torch.manual_seed(4)
    return VAES[name]().to(dtype).eval().requires_grad_(False)


@pytest.fixture(params=VAES)
def vae(request) -> AAPTVAE | WanVAE:
    return make(request.param)


def in_rings(vae: AAPTVAE | WanVAE) -> DecoderStream:
    return DecoderStream(vae, lambda: RingCache(vae.packed_weights))


def random_frames(count: int, batch: int = 1, size: tuple[int, int] = (2, 3)) -> tuple[Tensor, ...]:
    return torch.randn(batch, 16, count, *size).split(1, 2)


def test_many_steps_of_two_sessions_at_once(vae):
    plain, rings = vae.stream(), in_rings(vae)
    for frame in random_frames(STEPS, batch=2):
        expected = plain.decode(frame)
        assert_near(rings.decode(frame), expected, 5e-5)
    assert expected.shape[2] == 4 and expected.std() > 0.05


@pytest.mark.parametrize("name", VAES)
def test_half_precision(name):
    """The norms round once in rings, up to three times in a `FeatureCache`."""
    expected, vae = make(name), make(name, torch.bfloat16)
    plain, rings = expected.stream(), in_rings(vae)
    for frame in random_frames(4):
        video, wide = rings.decode(frame), plain.decode(frame)
        assert video.dtype == torch.bfloat16
        assert torch.linalg.vector_norm(video.float() - wide) < 0.05 * torch.linalg.vector_norm(wide)


def test_a_chunk_of_frames_is_one_frame_after_the_other(vae):
    one, more, frames = in_rings(vae), in_rings(vae), random_frames(4)
    expected = torch.cat([one.decode(frame) for frame in frames], 2)
    lengths = (1, 3)
    pieces = [more.decode(piece) for piece in torch.cat(frames, 2).split(lengths, 2)]
    assert [piece.shape[2] for piece in pieces] == [1, 12]
    assert torch.equal(torch.cat(pieces, 2), expected)


@pytest.mark.parametrize("after", range(3))
def test_a_clone_continues_bit_for_bit(vae, after):
    stream, frames = in_rings(vae), random_frames(after + 2)
    for frame in frames[:after]:
        stream.decode(frame)
    clone = stream.clone()
    if after:
        stream.clone().decode(torch.randn(1, 16, 1, 2, 3))  # its own way must not show in the others
    for frame in frames[after:]:
        assert torch.equal(clone.decode(frame), stream.decode(frame))


@pytest.mark.parametrize("memory", ["rings", "features"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_state_goes_on_in_this_stream_and_in_a_new_one(vae, memory, after):
    streams = [in_rings(vae) if memory == "rings" else vae.stream() for _ in range(2)]
    frames = random_frames(after + 2)
    for frame in frames[:after]:
        streams[0].decode(frame)
    state = streams[0].state()
    expected = [streams[0].decode(frame) for frame in frames[after:]]
    for stream in (*streams, vae.stream()) if after else streams:  # a state makes its kind of memory
        stream.restore(state, torch.device("cpu"))
        again = [stream.decode(frame) for frame in frames[after:]]
        assert all(torch.equal(one, two) for one, two in zip(again, expected, strict=True))


@pytest.mark.parametrize("memory", ["rings", "features"])
def test_a_recorded_decoder_goes_back_to_its_state_alone(vae, memory, monkeypatch):
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
    model = SimpleNamespace(vae=vae, grid=(2, 3), device=torch.device("cpu"))
    streams = [in_rings(vae), vae.stream()]
    mine, other = streams if memory == "rings" else streams[::-1]
    first, second, third = random_frames(3)
    for stream in streams:
        stream.decode(first)
    recorded, foreign = RecordedDecoder(model, mine), other.state()
    state = recorded.state()
    expected = [recorded.decode_uint8(frame) for frame in (second, third)]
    with pytest.raises(ValueError, match="stream: expected one that goes on with the same kernels off or on"):
        recorded.restore(foreign, model.device)
    recorded.restore(state, model.device)
    assert all(
        torch.equal(recorded.decode_uint8(frame), each) for frame, each in zip((second, third), expected, strict=True)
    )


def test_a_reset_starts_a_video_of_another_size(vae):
    stream = in_rings(vae)
    for frame in random_frames(3):
        stream.decode(frame)
    stream.reset()
    plain = vae.stream()
    for frame in random_frames(3, size=(3, 1)):
        assert_near(stream.decode(frame), plain.decode(frame), 5e-5)


def test_both_ops_do_all_the_work(vae):
    stream, (first, second) = in_rings(vae), random_frames(2)
    stream.decode(first)
    with observe_ops() as calls:
        stream.decode(second)
    assert set(calls.what_ran()) == {"ring_conv3d", "norm_silu"}


# ---- what a convolution does with its result ----


def recorded_calls(monkeypatch, stream: DecoderStream, frame: Tensor, out: str) -> tuple[list[dict], list[tuple]]:
    """The arguments that say where results go, of each `ring_conv3d` of a step, and the shapes for each `norm_silu`."""
    convolutions, norms = [], []

    def convolve(*arguments: object, **more: object) -> None:
        convolutions.append(more)
        ops.ring_conv3d(*arguments, **more)

    def normalise(x: Tensor, *arguments: object) -> None:
        norms.append(tuple(x.shape))
        ops.norm_silu(x, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ring_cache, "ring_conv3d", convolve)
        patch.setattr(ring_cache, "norm_silu", normalise)
        stream.decode(frame, out)
    return convolutions, norms


def test_norms_of_pixels_are_taken_where_convolutions_end(monkeypatch):
    """Wan 2.1 with a residual block per level and one more: two in the middle, two at each of four levels."""
    stream, (first, second) = in_rings(make("wan 2.1")), random_frames(2)
    stream.decode(first)
    convolutions, norms = recorded_calls(monkeypatch, stream, second, "float")
    with_norm = [call for call in convolutions if call.get("normed") is not None]
    # Of 10 blocks, the first norm of one follows attention; then the norm at the end.
    assert len(norms) == 1 and len(with_norm) == 2 * 10 - 1 + 1
    assert sum(call["out"] is None for call in with_norm) == 10 + 1, "a block needs what it begins with as a residual"


def test_norms_of_more_channels_than_a_kernel_has_at_once_are_left_to_norm_silu(monkeypatch):
    monkeypatch.setattr(ring_cache, "most_normed", lambda device: 8)
    vae = make("wan 2.1")
    stream, plain, (first, second, third) = in_rings(vae), vae.stream(), random_frames(3)
    assert_near(stream.decode(first), plain.decode(first), 5e-5)
    convolutions, norms = recorded_calls(monkeypatch, stream, second, "float")
    plain.decode(second)
    assert_near(stream.decode(third), plain.decode(third), 5e-5)
    assert {shape[4] for shape in norms} == {16}
    assert {call["normed"].shape[4] for call in convolutions if call.get("normed") is not None} == {4, 8}


def test_norms_of_whole_frames_are_left_to_norm_silu(monkeypatch):
    stream, (first, second) = in_rings(make("light")), random_frames(2)
    stream.decode(first)
    convolutions, norms = recorded_calls(monkeypatch, stream, second, "float")
    assert len(norms) > 10 and not any("normed" in call for call in convolutions)


def test_frames_are_gone_after_their_last_use():
    cache = RingCache(PackedWeights())
    norm, conv = RMSNorm(4), CausalConv3d(4, 4, 3)
    x = cache.conv(torch.randn(1, 4, 1, 2, 3), CausalConv3d(4, 4, 1))
    with torch.no_grad():
        cache.norm_conv(x, norm, conv)
        assert x.tensor(torch.empty(0)).shape == (1, 1, 2, 3, 4)
        cache.norm_conv(x, norm, conv, last_use=True)
        with pytest.raises(ValueError, match="x: expected frames that are still there, got those of a norm_conv with"):
            cache.norm_conv(x, norm, conv)


def test_the_last_convolution_makes_the_colours(vae, monkeypatch):
    streams, frames = (in_rings(vae), in_rings(vae), vae.stream()), random_frames(3)
    for frame in frames:
        colours, *others = (stream.decode(frame, "uint8") for stream in (streams[0], streams[2]))
        expected = frames_to_uint8(streams[1].decode(frame))
        assert torch.equal(colours, expected) and colours.is_contiguous()
        assert all((other.int() - colours.int()).abs().max() <= 1 for other in others)
    convolutions, _ = recorded_calls(monkeypatch, streams[0], frames[0], "uint8")
    assert [call["out"].dtype for call in convolutions if call["out"] is not None][-1] == torch.uint8


def test_a_step_stays_in_the_same_tensors(vae):
    cache = RingCache(vae.packed_weights)
    places = []
    for frame in random_frames(3):
        vae.decode_chunk(frame, cache)
        places.append([ring.data_ptr() for ring in (*cache._rings.values(), *cache.to_restore())])
    assert places[0] == places[1] == places[2]


def test_a_recorded_decoder(vae, monkeypatch):
    """Recording runs steps that do not count, and brings back the slots only."""
    monkeypatch.setitem(graph.RECORDERS, "cpu", record_on_cpu)
    model = SimpleNamespace(vae=vae, grid=(2, 3), device=torch.device("cpu"))
    frames, plain, stream = random_frames(6), in_rings(vae), in_rings(vae)
    assert torch.equal(plain.decode(frames[0]), stream.decode(frames[0]))
    recorded = RecordedDecoder(model, stream)
    for number, frame in enumerate(frames[1:]):
        assert torch.equal(recorded.decode_uint8(frame), plain.decode_uint8(frame))
        if number == 2:
            recorded = recorded.clone()


def test_the_plan_knows_the_bytes(vae):
    plan = ring_plan(vae, 16, (2, 2, 3))
    cache = RingCache(vae.packed_weights)
    for frame in random_frames(2, batch=2):
        vae.decode_chunk(frame, cache)
    assert cache.bytes() == plan.bytes() > 0
    assert vae.packed_weights.bytes() == plan.weight_bytes > 0


def test_weights_are_packed_once_and_again_when_they_change(vae):
    first, second = random_frames(2)
    streams = in_rings(vae), in_rings(vae)
    for stream in streams:
        stream.decode(first)
    packed = vae.packed_weights.bytes()
    conv = next(module for module in vae.decoder.modules() if isinstance(module, CausalConv3d))
    before = vae.packed_weights.of(conv, "same")
    assert vae.packed_weights.of(conv, "same") is before and vae.packed_weights.bytes() == packed
    conv.weight.mul_(2)
    changed, plain = in_rings(vae), vae.stream()
    assert torch.equal(streams[0].decode(second), streams[1].decode(second)), "a stream keeps its weights"
    for frame in (first, second):
        assert_near(changed.decode(frame), plain.decode(frame), 5e-5)
    half = copy.deepcopy(vae).to(torch.float64)
    assert half.packed_weights.bytes() == 0
    in_rings(half).decode(first)
    assert next(iter(half.packed_weights._made.values())).weight.dtype == torch.float64
    assert pickle.loads(pickle.dumps(vae)).packed_weights.bytes() == 0


def test_a_stream_begun_in_inference_mode_continues_outside(vae):
    frames, stream, plain = random_frames(3), in_rings(vae), in_rings(vae)
    with torch.inference_mode():
        stream.decode(frames[0])
        clone = stream.clone()
    for frame in frames:
        expected = plain.decode(frame)
        if frame is not frames[0]:
            assert torch.equal(stream.decode(frame), expected) and torch.equal(clone.decode(frame), expected)


# ---- which memory, and whether there is room ----


@pytest.fixture
def kernels_everywhere(monkeypatch) -> None:
    monkeypatch.setattr(video_stream, "kernels_run", lambda device, dtype: True)


def memory_of(stream: DecoderStream) -> object:
    stream.decode(random_frames(1)[0])
    return stream._cache


def test_rings_are_taken_where_kernels_of_both_ops_run(vae, monkeypatch):
    assert isinstance(memory_of(vae.stream()), FeatureCache)
    monkeypatch.setattr(video_stream, "kernels_run", lambda device, dtype: dtype == torch.float32)
    assert isinstance(memory_of(vae.stream()), RingCache)
    vae.double()
    assert isinstance(memory_of(vae.stream()), FeatureCache)


def test_no_room_is_said_before_anything_is_allocated(vae, kernels_everywhere, monkeypatch):
    (frame, second), plan = random_frames(2), ring_plan(vae, 16, (1, 2, 3))
    needed = plan.bytes() + plan.weight_bytes
    monkeypatch.setattr(video_stream, "memory_left", lambda device: needed - 1)
    stream, other = vae.stream(), vae.stream()
    with pytest.raises(ValueError, match=r"latents: expected a size whose decoder fits into the .* left on cpu, got"):
        stream.decode(frame)
    assert vae.packed_weights.bytes() == 0
    monkeypatch.setattr(video_stream, "memory_left", lambda device: needed)
    expected = other.decode(frame)
    other.decode(second)
    monkeypatch.setattr(video_stream, "memory_left", lambda device: plan.bytes())  # the weights are there already
    assert torch.equal(stream.decode(frame), expected)


# ---- bad input, for both memories ----


@pytest.fixture(params=["rings", "features"])
def stream(request) -> DecoderStream:
    vae = make("wan 2.1")
    return in_rings(vae) if request.param == "rings" else vae.stream()


BAD_LATENTS = {
    "another size": (torch.zeros(1, 16, 1, 3, 2), r"batch, height and width \(1, 2, 3\) as before, got \(1, 3, 2\)"),
    "another batch": (torch.zeros(2, 16, 1, 2, 3), r"batch, height and width \(1, 2, 3\) as before"),
    "no frames": (torch.zeros(1, 16, 0, 2, 3), "at least one element in every dimension"),
    "integers": (torch.zeros(1, 16, 1, 2, 3, dtype=torch.int32), "a floating-point dtype"),
}


@pytest.mark.parametrize("case", BAD_LATENTS)
def test_bad_latents_change_nothing(stream, case):
    latents, message = BAD_LATENTS[case]
    frames = random_frames(3)
    stream.decode(frames[0])
    clone = stream.clone()
    stream.decode(frames[1])
    with pytest.raises(ValueError, match=f"latents: expected {message}"):
        stream.decode(latents)
    clone.decode(frames[1])
    assert torch.equal(stream.decode(frames[2]), clone.decode(frames[2]))


def test_nan_stays_nan_and_is_said_once(stream):
    frames = random_frames(4)
    stream.decode(frames[0])
    other = stream.clone()
    bad = frames[1].clone()
    bad[0, 0, 0, 0, 0] = torch.nan
    with pytest.warns(UserWarning, match="latents: expected finite numbers, got nan or inf") as caught:
        video = stream.decode(bad)
        assert stream.decode(bad).isnan().any()
    assert len(caught) == 1 and video.isnan().any()
    for frame in frames[1:]:
        assert other.decode(frame).isfinite().all(), "another stream is not touched"
    stream.reset()
    assert stream.decode(frames[0]).isfinite().all()


def test_a_closed_stream_says_so(stream):
    frame = random_frames(1)[0]
    stream.decode(frame)
    clone = stream.clone()
    stream.close()
    for use in (lambda: stream.decode(frame), stream.clone):
        with pytest.raises(ValueError, match="stream: expected an open one, got one that has been closed"):
            use()
    assert clone.decode(frame).isfinite().all()
