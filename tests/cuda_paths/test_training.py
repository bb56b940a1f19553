# SPDX-License-Identifier: Apache-2.0
"""Every stage of training on a fake GPU: nothing meets a tensor of the other device.

Torch's engine refuses a backward pass there, so gradients are zeros: forward passes, losses and optimisers are tried.
"""

import pytest
import torch

from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.presets import NANO
from aapt_fast.models.vae.mini import MiniVAE, MiniVAEConfig
from aapt_fast.testing.fake_cuda import FAKE_GPU, fake_cuda
from aapt_fast.testing.small_trainings import STAGES
from aapt_fast.training.data import ClipSetConfig
from aapt_fast.training.held_out import HeldOutRollout
from aapt_fast.training.place import Place
from aapt_fast.training.run import UNWATCHED, TrainingRun
from aapt_fast.worlds.person.world import PersonWorld


def no_backward(loss, gradient=None):
    """Zeros as the gradient of all leaves that `loss` is made of."""
    assert loss.device == FAKE_GPU
    open_nodes, seen = [loss.grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        open_nodes += [following for following, _ in node.next_functions]


@pytest.fixture
def without_gradients(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "backward", no_backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, x: [torch.zeros_like(x)])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_on_a_gpu_without_a_mix_of_devices(stage, tmp_path, monkeypatch, without_gradients):
    saved = []
    monkeypatch.setattr(TrainingRun, "save", lambda run: saved.append(run.step))  # fake tensors have no values
    with fake_cuda():
        model = STAGES[stage](tmp_path, Place(FAKE_GPU, recompute=stage == "adversarial"), UNWATCHED)
        assert all(parameter.device == FAKE_GPU for parameter in model.parameters())
    assert saved and (tmp_path / "log.csv").exists()


def test_held_out_clips_are_evaluated_on_the_gpu(tmp_path):
    vae = MiniVAE(MiniVAEConfig(16, (8, 8, 8), (1, 1, 1), (8, 8, 8), (1, 1, 1)))
    with fake_cuda():
        place = Place(FAKE_GPU)
        clips = ClipSetConfig("held-out", PersonWorld(), clips=1, frames=5, size=32)
        evaluation = HeldOutRollout(place.put(vae), NANO, clips, tmp_path / "sheet.png")
        assert "psnr_4" in evaluation(place.put(Generator(NANO)))
    assert (tmp_path / "sheet.png").exists()
