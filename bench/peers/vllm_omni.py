# SPDX-License-Identifier: Apache-2.0
"""vLLM-Omni (github.com/vllm-project/vllm-omni, read at 02152a4): Wan 2.1 1.3B, whole clips. Never run.

Its `Omni.generate` makes a clip from a prompt: a step is such a clip, of 50 denoising steps with guidance, two
evaluations each. It may work in other processes, which return frames on the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.peers.peer import PROMPT, Geometry, Step, imported

SYSTEM = "vLLM-Omni"
DENOISING_STEPS, GUIDANCE = 50, 5.0


class VllmOmni:
    """Clips of a Wan model in diffusers' form, by its name or folder."""

    geometry = Geometry(832, 480, 81, 21, None, 2 * DENOISING_STEPS, "Wan 2.1", whole_clip=True)
    filling = 1

    def __init__(self, model: str | None = None) -> None:
        self._model = model or "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"

    def load(self, device: torch.device) -> Step:
        """Start the engine. Raises ImportError where it is not installed."""
        omni = imported(SYSTEM, "vllm_omni.entrypoints.omni").Omni(model=self._model)
        parameters = imported(SYSTEM, "vllm_omni.inputs.data").OmniDiffusionSamplingParams
        prompt = {"prompt": PROMPT, "negative_prompt": "", "modalities": ["video"]}

        def step() -> Tensor:
            choice = parameters(
                height=self.geometry.height,
                width=self.geometry.width,
                num_frames=self.geometry.video_frames,
                num_inference_steps=DENOISING_STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator(device=device).manual_seed(0),
            )
            return frames_of(omni.generate(prompt, choice))

        return step


def frames_of(answer: Any) -> Tensor:
    """Find the video in an answer of the engine -> [F, H, W, 3] or [F, 3, H, W].

    The engine wraps it in a list of requests, whose `images` hold frames, a whole video [1, F, H, W, 3] or
    [1, 3, F, H, W], or a video and its sound. Raises ValueError for an answer without frames.
    """
    found = answer[0] if isinstance(answer, list) and answer else answer
    found = getattr(found, "images", found)
    while isinstance(found, tuple | dict) or (isinstance(found, list) and len(found) == 1):
        found = found.get("frames", found.get("video")) if isinstance(found, dict) else found[0]
    if isinstance(found, list) and found:
        found = torch.stack([torch.as_tensor(np.asarray(frame)) for frame in found])
    if not isinstance(found, torch.Tensor | np.ndarray):
        raise ValueError(f"answer: expected video frames, got {type(found).__name__}")
    video = torch.as_tensor(found)
    video = video[0] if video.dim() == 5 else video
    return video.transpose(0, 1) if video.shape[0] == 3 else video
