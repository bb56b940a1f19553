# SPDX-License-Identifier: Apache-2.0
"""Sessions whose steps are CUDA graphs, on a GPU; tests/streaming/test_graph.py has what needs none."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import aapt_fast
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.profiling.inputs import random_image
from aapt_fast.streaming.session import StreamSession
from aapt_fast.testing.compare import assert_near
from aapt_fast.testing.streams import random_model

STEPS = 10  # the window of mini-person is 5, of the other model 2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: recordings were replayed on the CPU")


def mini_person() -> tuple[StreamModel, torch.Tensor]:
    """The bundled model, whose heads no attention kernel takes."""
    model = StreamModel.from_pretrained("mini-person", device="cuda", dtype=torch.bfloat16)
    return model, aapt_fast.load_gallery("mini-person")[0].image


def heads_of_64() -> tuple[StreamModel, torch.Tensor]:
    """A small model with random weights, for which every op has a kernel."""
    on_cpu = random_model(dataclasses.replace(NANO, width=128), torch.bfloat16)
    model = StreamModel(on_cpu.generator.cuda(), on_cpu.vae.cuda())
    return model, random_image(model)


@pytest.mark.parametrize("kernels", ["none", "auto", "all"])
@pytest.mark.parametrize("make", [mini_person, heads_of_64])
def test_a_recorded_stream_is_that_of_eager_launches(make, kernels):
    (model, image), control = make(), torch.zeros(19, 3)
    with aapt_fast.use_kernels(kernels):
        recorded, eager = (StreamSession(model, image, seed=3, cuda_graph=graph) for graph in (True, False))
        for step in range(STEPS):
            video, expected = recorded.step(control), eager.step(control)
            assert_near(video.float(), expected.float(), 2 / 255)  # two levels of 255
            if step == 3:
                recorded, eager = recorded.fork(), eager.fork()


def test_recordings_that_come_and_go_leave_others_as_they_are():
    """More of them than torch has streams, whose cuBLAS work space would be shared; and no memory stays behind."""
    model = aapt_fast.StreamModel.from_pretrained("mini-person", device="cuda", dtype=torch.bfloat16)
    image, control = aapt_fast.load_gallery("mini-person")[0].image, torch.zeros(19, 3)
    recorded, eager = (StreamSession(model, image, seed=3, cuda_graph=graph) for graph in (True, False))
    before = torch.cuda.memory_allocated()
    for number in range(36):
        with StreamSession(model, image, seed=number, cuda_graph=True) as other:
            other.step(control), other.step(control)
        if number % 12 == 0:
            other = StreamSession(model, image, seed=number, cuda_graph=True)
            other.reset(), other.close()
            assert_near(recorded.step(control).float(), eager.step(control).float(), 2 / 255)
    del other
    assert torch.cuda.memory_allocated() < before + 2**24
