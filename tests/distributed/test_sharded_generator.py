# SPDX-License-Identifier: Apache-2.0
"""Frames of 1, 2, 4 and 8 ranks against those of one device."""

import copy
import dataclasses
from functools import partial

import pytest
import torch

from aapt_fast.distributed.sharded_generator import shard
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.wan import WanVAE, WanVAEConfig
from aapt_fast.models.wan.config import WanConfig
from aapt_fast.ops.window import WindowRule
from aapt_fast.profiling.inputs import random_controls, random_prompt
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.streams import STREAMS, play, random_model, random_session
from aapt_fast.testing.thread_ranks import on_ranks
from aapt_fast.testing.wan import random_wan

STEPS = 5  # the window of 2 wraps, and the sink moves
WAN = WanConfig(
    heads=8, head_dim=8, layers=2, ffn_width=80, text_width=24, window_rule=WindowRule(frames=2, window=2, sink=1)
)
TOLERANCE = {"rtol": 5e-5, "atol": 5e-5}


def aapt(name):
    return random_model(dataclasses.replace(STREAMS[name], width=64, heads=8))


def wan():
    torch.manual_seed(2)
    vae = WanVAE(WanVAEConfig(base_dim=4, num_res_blocks=1)).eval().requires_grad_(False)
    return StreamModel(random_wan(WAN), vae, grid=(8, 4))


SIZES = (1, 2, 4, 8)
MODELS = {"pose": lambda: aapt("pose"), "text and maps": lambda: aapt("text and maps"), "wan": wan}


def opened(model):
    if model.generator.needs_image:
        return random_session(model)
    return StreamSession(model, prompt=random_prompt(model), seed=7)


def frames_of(model):
    with opened(model) as session:
        frames, video = play(session, random_controls(model, STEPS, seed=3))
        with session.fork() as fork:
            more, _ = play(fork, random_controls(model, 1, seed=4))
        return torch.cat([frames, more], 2), video


def streamed(copies, scheme, transport):
    return frames_of(shard(copies[transport.rank], transport, scheme, whole_decoder=False))


@pytest.mark.parametrize("scheme", ["sp", "tp"])
@pytest.mark.parametrize("kind", MODELS)
def test_frames_are_those_of_one_device(kind, scheme):
    model = MODELS[kind]()
    expected, expected_video = frames_of(model)
    for size in SIZES:
        copies = [copy.deepcopy(model) for _ in range(size)]
        results = on_ranks(size, partial(streamed, copies, scheme))
        for frames, video in results:
            torch.testing.assert_close(frames, expected, **TOLERANCE)
            assert (video.int() - expected_video.int()).abs().max() <= 1  # rounded
            assert torch.equal(frames, results[0][0]) and torch.equal(video, results[0][1])
