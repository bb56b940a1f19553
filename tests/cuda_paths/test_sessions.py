# SPDX-License-Identifier: Apache-2.0
"""Steps of sessions on the fake GPU against budgets: copies, waits, launches and memory. They may only fall.

A step makes one copy from the host (all numbers that it gives to the device) and one wait (for its video), for any
model, alone or in a batch, recorded or not. Models have two layers here; each further layer of the preset adds `layer`
launches to an eager step and none to a recorded one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from aapt_fast import FewStepSampler, PagePool, SessionBatch, StreamSession
from aapt_fast.models.aapt.presets import generator_preset
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.ops import registry
from aapt_fast.ops.calls import observe_ops
from aapt_fast.profiling.inputs import random_controls, random_image, random_prompt
from aapt_fast.profiling.systems import find_system
from aapt_fast.testing.fake_gpu import Counts, FakeGPU
from aapt_fast.testing.fake_kernels import fake_kernels
from aapt_fast.testing.fake_models import aapt_model, wan_model

MIB, LAYERS = 2**20, 2
OTHER_GPU = torch.device("cuda:1")
"""Sessions run here, while another GPU is current and stays unopened."""


@dataclasses.dataclass
class Launches:
    """Launches of a step outside of CUDA graphs, and its memory beside weights and pages."""

    inputs: int
    """Until the generator begins: what the copy brought is put in its places, and the control is drawn."""
    generator: int
    """Noise and all evaluations; in a recorded step a replay, and a copy of its result."""
    layer: int
    """Those of the generator that the second layer makes, per evaluation."""
    decoder: int
    """From latent frames to the video, uint8, and the copy that the caller gets."""
    mib: int
    """Most memory at a time, weights and pages left out. Recordings keep theirs all the time."""


@dataclasses.dataclass
class Kind:
    """A kind of session with its budgets."""

    model: Callable[[], StreamModel]
    eager: Launches
    recorded: Launches


def small(preset: str, dtype: torch.dtype) -> StreamModel:
    return aapt_model(dataclasses.replace(generator_preset(preset), layers=LAYERS), dtype, device=OTHER_GPU)


def aapt_8b() -> StreamModel:
    system = find_system("aapt-8b", (736, 416))
    return aapt_model(dataclasses.replace(system.config, layers=LAYERS), vae=system.vae, device=OTHER_GPU)


KINDS = {
    # Limb maps are drawn by some 40 operators on few numbers. The layer casts tokens around every linear layer
    # (autocast). Noise: 100 operators, once per step; so are the 25 that pack the page table.
    "mini-person": Kind(
        lambda: small("mini-person", torch.bfloat16),
        eager=Launches(inputs=47, generator=299, layer=45, decoder=148, mib=7),
        recorded=Launches(inputs=47, generator=2, layer=0, decoder=10, mib=4),
    ),
    # Without control and casts.
    "nano-text": Kind(
        lambda: small("nano-text", torch.float32),
        eager=Launches(inputs=7, generator=233, layer=30, decoder=139, mib=2),
        recorded=Launches(inputs=7, generator=2, layer=0, decoder=8, mib=2),
    ),
    # At 736x416. 228 MiB of keys and as much of values are gathered per layer; the decoder is AAPT's light one, whose
    # state takes 1.04 GiB; of each of its norms, 10 operators are on a few numbers. Recorded, the state is written in
    # place, and step and decoder share their memory.
    "aapt-8b": Kind(
        aapt_8b,
        eager=Launches(inputs=7, generator=278, layer=47, decoder=446, mib=2355),
        recorded=Launches(inputs=7, generator=2, layer=0, decoder=10, mib=1506),
    ),
    # At 832x480, blocks of three frames, two evaluations (each further one adds as much). LayerNorm and modulation in
    # float32 by single operators. Without an image the decoder is not recorded.
    "wan-1.3b": Kind(
        lambda: wan_model(dataclasses.replace(WanConfig(), layers=LAYERS), device=OTHER_GPU),
        eager=Launches(inputs=4, generator=517, layer=75, decoder=242, mib=5649),
        recorded=Launches(inputs=4, generator=2, layer=0, decoder=242, mib=5962),
    ),
}


def open_session(model: StreamModel, **options) -> StreamSession:
    if model.generator.needs_image:
        return StreamSession(model, random_image(model), prompt=random_prompt(model), **options)
    sampler, prompt = FewStepSampler(steps=(1000,)), torch.randn(20, model.config.text_width)
    return StreamSession(model, prompt=prompt, sampler=sampler, **options)


def launches_of_a_step(gpu: FakeGPU, session: StreamSession, control: object) -> Launches:
    """Take a step that is not the first."""
    with ExitStack() as open_counts:
        stages = [open_counts.enter_context(gpu.counting())]
        session.on_stage = lambda _: stages.append(open_counts.enter_context(gpu.counting()))
        with counted_calls(gpu, session.model.generator.blocks[1]) as calls:
            live = gpu.live_bytes
            video = session.step(control)
        session.on_stage = None
    assert (
        video.device == OTHER_GPU and video.dtype == torch.uint8 and video.shape[1:] == (*session.model.video_size, 3)
    )
    assert stages[0].uploads.total() == 1, stages[0].uploads
    assert stages[0].syncs.total() == 1, stages[0].syncs
    whole, after_inputs, decoder = (counts.operators.total() for counts in stages)
    layer = max((counts.operators.total() for counts in calls), default=0)
    weights = sum(x.nbytes for part in parts_of(session.model) for x in part.parameters())
    assert session._pool is not None
    beside = max(stages[0].peak_bytes, live) - weights - session._pool.bytes
    return Launches(whole - after_inputs, after_inputs - decoder, layer, decoder, -(-beside // MIB))


@contextmanager
def counted_calls(gpu: FakeGPU, module: torch.nn.Module) -> Iterator[list[Counts]]:
    """Count each call of `module` inside the `with` block."""
    calls: list[Counts] = []
    open_call = ExitStack()

    def begin(*_: object) -> None:
        calls.append(open_call.enter_context(gpu.counting()))

    def end(*_: object) -> None:
        open_call.close()

    with module.register_forward_pre_hook(begin), module.register_forward_hook(end):
        yield calls


def parts_of(model: StreamModel) -> tuple[torch.nn.Module, torch.nn.Module]:
    return model.generator, model.vae


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_session(kind, gpu):
    """Eager and recorded; afterwards everything but the weights is given back, without garbage collection."""
    model, before = kind.model(), gpu.live_bytes
    controls = random_controls(model, 2)
    for recorded, budget in ((False, kind.eager), (True, kind.recorded)):
        with observe_ops() as calls:
            session = open_session(model, cuda_graph=recorded)
            session.step(controls[0])
        assert calls.what_ran()["paged_attention"] == registry.FUSED
        counted = launches_of_a_step(gpu, session, controls[1])
        for name, most in dataclasses.asdict(budget).items():
            assert getattr(counted, name) <= most, f"{name} of {counted}"
        live = gpu.live_bytes
        if recorded:
            session.reset()
            assert gpu.live_bytes <= live  # not two runs, nor two recordings
        session.close()
        assert gpu.live_bytes - before <= bytes_that_stay(session) + 2**16
    assert gpu.contexts == {OTHER_GPU.index}


def bytes_that_stay(session: StreamSession) -> int:
    """Bytes of the inputs and the newest frame of a closed session."""
    run = session._run
    tensors = (run.start.image, run.start.control, run.start.prompt, run.frame, run.control, run.first_frame)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def test_a_session_with_kernels(gpu):
    """Heads of 56, those of the bundled models: every op with kernels runs one; without, the table has 299 and 45."""
    model = small("mini-person", torch.bfloat16)
    controls = random_controls(model, 2)
    with fake_kernels(gpu), observe_ops() as calls, open_session(model) as session:
        session.step(controls[0])
        counted = launches_of_a_step(gpu, session, controls[1])
    with_kernels = {"channel_concat", "gate_residual_norm", "kv_write", "paged_attention", "philox_normal"}
    assert {op for op, words in calls.what_ran().items() if words == f"{op}/portable"} == with_kernels
    assert counted.generator <= 110 and counted.layer <= 24, counted


@pytest.mark.parametrize(("recorded", "launches"), [(False, 660), (True, 348)], ids=["eager", "recorded"])
def test_a_batch(recorded, launches, gpu):
    """Two sessions of a small model. Their decoders run one after the other."""
    model = small("nano", torch.bfloat16)
    pool = PagePool.for_sessions(model, 2)
    sessions = [StreamSession(model, random_image(model), seed=seed, pool=pool) for seed in range(2)]
    batch = SessionBatch(sessions, cuda_graph=recorded)
    batch.step(random_controls(model, 2))  # another computation
    with gpu.counting() as counts:
        batch.step(random_controls(model, 2))
    assert counts.syncs.total() == 1 and counts.uploads.total() == 1
    assert counts.operators["replay"] == recorded
    assert counts.operators.total() <= launches
    assert len(gpu.pools) == recorded
    sessions[1].close()
    assert not gpu.pools  # the batch is still there, its recording is not
