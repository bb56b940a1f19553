# SPDX-License-Identifier: Apache-2.0
"""The way from `StreamSession.step` to the launch of a kernel stays short enough to read in one go."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from aapt_fast.models.aapt.presets import NANO
from aapt_fast.ops.kernels import use_kernels
from aapt_fast.testing.streams import random_controls, random_model, random_session

MOST_FRAMES, MOST_FILES = 11, 8


class Launched(Exception):
    """Ends a step at the launch."""


@pytest.mark.parametrize("op", ["kv_write", "paged_attention", "gate_residual_norm", "channel_concat"])
def test_from_step_to_launch(op):
    frames: list[str] = []

    def launch(*_arguments) -> None:
        frame = sys._getframe()
        while frame is not None:
            if "/aapt_fast/" in frame.f_code.co_filename:
                frames.append(f"{frame.f_code.co_filename.split('/aapt_fast/')[1]}:{frame.f_code.co_name}")
            frame = frame.f_back
        raise Launched

    module = ModuleType("compiled")
    module.build_info = lambda: {"emulated": True, "cuda": False}
    module.Unsupported = type("Unsupported", (ValueError,), {})
    setattr(module, f"{op}_portable", launch)
    model = random_model(NANO)
    session, control = random_session(model), random_controls(model, 1)[0]
    with use_kernels(f"{op}/portable", extension=module), pytest.raises(Launched):
        session.step(control)
    assert frames[-1] == "streaming/session.py:step"
    assert len(frames) <= MOST_FRAMES, "\n".join(frames)
    assert len({frame.split(":")[0] for frame in frames}) <= MOST_FILES
