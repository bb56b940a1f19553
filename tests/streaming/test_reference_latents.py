# SPDX-License-Identifier: Apache-2.0
"""Streams of today against latents that commit 6ab22a2 made: a change of structure changes no number.

data/reference_latents.safetensors holds every fourth channel of frames of the bundled models, and all channels of the
tiny ones, in float32, computed with one thread. Tiny models have weights that depend on nothing but parameter names.
`python tests/streaming/test_reference_latents.py FILE` writes the latents of the present code.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aapt_fast import EulerSampler, FewStepSampler, PagePool, SessionBatch, StreamModel, StreamSession, load_gallery
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO_TEXT
from aapt_fast.models.vae.mini import MiniVAE
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.testing.compare import relative_l2
from aapt_fast.testing.streams import SMALL_VAE
from aapt_fast.testing.wan import TINY
from aapt_fast.worlds.person.players import MotionPlayer
from aapt_fast.worlds.person.skeleton import Camera, forward_kinematics

REFERENCE = Path(__file__).parent / "data" / "reference_latents.safetensors"
TOLERANCE = 1e-6  # the number of threads changes 4e-7

Latents = dict[str, Tensor]


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def uniform(name: str, *shape: int) -> Tensor:
    """Numbers in -1..1 that depend on the name alone, float64."""
    bits = numpy.random.Philox(key=zlib.crc32(name.encode()))
    return torch.from_numpy(2 * numpy.random.Generator(bits).random(shape, dtype=numpy.float64) - 1)


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        vector = parameter.dim() == 1
        gain = 1.0 if vector and ("norm" in name or name.endswith("gamma")) else 0.0
        scale = 0.1 if vector else (1.5 / parameter[0].numel()) ** 0.5
        parameter.copy_(gain + scale * uniform(name, *parameter.shape))
    return module.eval().requires_grad_(False)


def picture(model: StreamModel) -> Tensor:
    return uniform("picture", 3, *model.video_size).float()


def controls(first: str, second: str, start: Tensor, steps: int = 12) -> list[Tensor]:
    """Poses of a person who holds still for a step and changes the motion halfway."""
    player, made = MotionPlayer(first, start=start, hold=4), []
    for step in range(steps):
        if step == steps // 2:
            player.play(second)
        made.append(Camera().project(forward_kinematics(player.next(4))))
    return made


def thinned(session: StreamSession) -> Tensor:
    return session.frame[:, ::4].contiguous()


def bundled(name: str, first: str, second: str) -> Latents:
    """A stream through a filling and a full window, and a fork of it."""
    model, start = StreamModel.from_pretrained(name), load_gallery(name)[3]
    poses, made = controls(first, second, start.pose), {}
    with StreamSession(model, start.image, seed=5, pool=PagePool.for_sessions(model, 2)) as session:
        for step, pose in enumerate(poses, 1):
            session.step(pose)
            if step in (1, 4, 6, 7, 12):
                made[f"{name}/step {step}"] = thinned(session)
            if step == 7 and name == "mini-person":
                fork = session.fork()
        if name == "mini-person":
            for pose in poses[2:6]:
                fork.step(pose)
            made["fork/step 11"] = thinned(fork)
    return made


def two_evaluations() -> Latents:
    model, start = StreamModel.from_pretrained("mini-person"), load_gallery("mini-person")[3]
    with StreamSession(model, start.image, seed=5, sampler=EulerSampler(2)) as session:
        for pose in controls("walk", "wave", start.pose)[:8]:
            session.step(pose)
        return {"two evaluations/step 8": thinned(session)}


def batch() -> Latents:
    """Two sessions, one of which has taken two steps before."""
    model, start = StreamModel.from_pretrained("mini-person"), load_gallery("mini-person")[3]
    pool, poses = PagePool.for_sessions(model, 2), controls("walk", "wave", start.pose)
    sessions = [StreamSession(model, start.image, seed=seed, pool=pool) for seed in (5, 6)]
    for pose in poses[:2]:
        sessions[0].step(pose)
    together = SessionBatch(sessions)
    for pose in poses[2:9]:
        together.step([pose, pose])
    return {f"batch/row {row}": thinned(session) for row, session in enumerate(sessions)}


def nano_text() -> Latents:
    model = StreamModel(fill(Generator(NANO_TEXT)), fill(MiniVAE(SMALL_VAE)))
    prompt, made = uniform("prompt", 9, NANO_TEXT.text_width).float(), {}
    with StreamSession(model, picture(model), prompt=prompt, seed=5) as session:
        for step in range(1, 7):
            session.step()
            if step in (1, 2, 3, 6):
                made[f"nano-text/step {step}"] = session.frame
    return made


def few_step_wan() -> Latents:
    model = StreamModel(fill(WanTransformer(TINY)), fill(MiniVAE(SMALL_VAE)), grid=(4, 6))
    prompt, sampler, made = uniform("wan prompt", 5, TINY.text_width).float(), FewStepSampler(steps=(1000, 500)), {}
    for label, image in (("image", picture(model)), ("prompt only", None)):
        with StreamSession(model, image, prompt=prompt, seed=5, sampler=sampler) as session:
            for step in range(1, 6):
                session.step()
                if step in (1, 3, 5):
                    made[f"few-step Wan/{label}, step {step}"] = session.frame.contiguous()
    return made


STREAMS = {
    "mini-person": lambda: bundled("mini-person", "walk", "wave"),
    "mini-anyone": lambda: bundled("mini-anyone", "dance", "kick"),
    "two evaluations": two_evaluations,
    "batch": batch,
    "nano-text": nano_text,
    "few-step Wan": few_step_wan,
}


@pytest.mark.parametrize("stream", STREAMS)
def test_equals_the_latents_of_before(stream):
    reference = load_file(REFERENCE)
    with one_thread():
        made = STREAMS[stream]()
    assert made
    for name, latents in made.items():
        assert relative_l2(latents, reference[name]) < TOLERANCE, name


def test_nothing_recorded_is_left_out():
    streams = {name.split("/")[0] for name in load_file(REFERENCE)}
    assert streams == {*STREAMS, "fork"}


if __name__ == "__main__":
    with one_thread():
        save_file({name: latents for stream in STREAMS.values() for name, latents in stream().items()}, sys.argv[1])
