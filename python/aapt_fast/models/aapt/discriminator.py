# SPDX-License-Identifier: Apache-2.0
"""The discriminator: the generator's own trunk, and logits that read its tokens after several depths.

AAPT (arXiv 2506.09350) section 2.3: the same causal backbone as the generator, started from stage 1, with a logit per
frame, which sees that frame and those before it. APT (2501.08316) places the heads: a learned query attends to the
tokens after certain depths; the results of all depths are joined and become one logit. Where the papers are silent, the
query of a frame attends to that frame's tokens.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.ops.cache import Cache


class QueryHead(nn.Module):
    """A learned query attends to the tokens of each frame: [B, F, N, d] -> [B, F, d]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.norm = nn.RMSNorm(width)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, F, N, d] -> [B, F, d]."""
        flat = tokens.flatten(0, 1)
        keys, values = self.key_value(self.norm(flat)).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        query = self.query.view(1, self.heads, 1, -1).expand(len(flat), -1, -1, -1).to(keys.dtype)
        attended = F.scaled_dot_product_attention(query, keys.transpose(1, 2), values.transpose(1, 2))
        return self.out(attended.flatten(1)).view(*tokens.shape[:2], -1)


class Discriminator(nn.Module):
    """Logits of real or generated frames, given control and the frames before.

    Args:
        config: of the generator, whose trunk this one repeats.
        depths: numbers of blocks after which a head reads the tokens; None means three, evenly spaced, up to the last.
        whole_clip: True lets every frame attend to all frames of the clip and gives one logit per clip, the mean over
            frames (a "bidirectional, video-level" discriminator); False is the paper's: causal, a logit per frame.
    """

    def __init__(
        self, config: GeneratorConfig, depths: tuple[int, ...] | None = None, whole_clip: bool = False
    ) -> None:
        super().__init__()
        layers = config.layers
        self.depths = depths or tuple(sorted({-(-layers * third // 3) for third in (1, 2, 3)}))
        self.whole_clip = whole_clip
        self.config = dataclasses.replace(config, layers=self.depths[-1])
        self.trunk = Generator(self.config)
        for unused in ("unpatch", "head", "modulation_out", "skip"):  # they make a picture of the tokens
            if hasattr(self.trunk, unused):
                delattr(self.trunk, unused)
        self.heads = nn.ModuleList(QueryHead(config.width, config.heads) for _ in self.depths)
        self.norm = nn.RMSNorm(config.width * len(self.depths))
        self.logit = nn.Linear(config.width * len(self.depths), 1)

    def start_from(self, generator: Generator) -> None:
        """Copy the trunk of a generator (stage 1's, in AAPT); the heads keep their own start."""
        wanted = self.trunk.state_dict()
        self.trunk.load_state_dict({name: value for name, value in generator.state_dict().items() if name in wanted})

    def forward(self, frames: Tensor, previous: Tensor, control: Tensor | None, t: Tensor) -> Tensor:
        """Frames [B, C, F, h, w] in the place of the noise, the frames before them, controls, t [B] in (0, 1].

        Returns float32 logits [B, F], or [B, 1] with `whole_clip`.
        """
        states = self.trunk.hidden_states(frames, previous, control, t, self._new_cache(frames), self.depths)
        joined = torch.cat([head(state) for head, state in zip(self.heads, states, strict=True)], dim=-1)
        with torch.autocast(frames.device.type, enabled=False):  # differences of logits are small: in float32
            logits = self.logit(self.norm(joined.float())).squeeze(-1)
        return logits.mean(1, keepdim=True) if self.whole_clip else logits

    def _new_cache(self, frames: Tensor) -> Cache:
        if self.whole_clip:
            return self.trunk.whole_clip_cache(*frames.shape[-2:])
        return self.trunk.new_cache(*frames.shape[-2:])
