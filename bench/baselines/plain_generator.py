# SPDX-License-Identifier: Apache-2.0
"""The AAPT generator without the package's ops: torch's own operators, which torch.compile can fuse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import GATE1, GATE2, SCALE1, SCALE2, SHIFT1, SHIFT2, Block, Generator
from aapt_fast.ops import reference
from aapt_fast.ops.cache import Cache

EPS = 1e-6


def plain(generator: Generator) -> PlainGenerator:
    """Make a plain generator that shares the weights of `generator`."""
    with torch.device("meta"):
        made = PlainGenerator(generator.config)
    made.load_state_dict(generator.state_dict(), assign=True)
    return made.eval().requires_grad_(False)


class PlainBlock(Block):
    """A block in torch's own operators."""

    def forward(
        self, x: Tensor, update: Tensor | None, gate: Tensor | None, modulation: Tensor | None, cache: Cache, layer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute `Block.forward` for tokens x [B, F, N, d]."""
        stream, shape = self.video, x.shape
        m = stream.modulate(modulation, x.dtype)
        x, normed = _add_and_norm(x, update, gate, m[SCALE1], m[SHIFT1])
        q, k, v = stream.project(normed.view(shape))
        attended = cache.attend(layer, q, k, v, stream.q_norm, stream.k_norm).reshape(x.shape)
        x, normed = _add_and_norm(x, stream.out(attended), m[GATE1], m[SCALE2], m[SHIFT2])
        return x.view(shape), stream.mlp(normed).view(shape), m[GATE2]


class PlainGenerator(Generator):
    """A generator in torch's own operators, for one frame at a time."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(PlainBlock(config, last=i == config.layers - 1) for i in range(config.layers))

    def forward(
        self, noised: Tensor, recycled: Tensor | None, control: Tensor | None, t: Tensor, cache: Cache
    ) -> Tensor:
        """Compute `Generator.forward` for frames [B, C, 1, h, w] and t [B]."""
        inputs = self._inputs(noised, recycled, control, t)
        modulation = self.timestep(t)
        sources = torch.cat([source.to(inputs[0].dtype) for source in inputs], 1)
        patches = F.pixel_unshuffle(sources, self.config.patch).flatten(2).mT
        x, update, gate = self.patch_embed(patches)[:, None], None, None
        for layer, block in enumerate(self.blocks):
            x, update, gate = block(x, update, gate, modulation, cache, layer)
        cache.advance(1)
        shift, scale = (self.modulation_out + modulation[:, :2]).to(x.dtype)[:, :, None].unbind(1)
        _, normed = _add_and_norm(x, update, gate, scale, shift)
        picture = self._picture(self.unpatch(normed), inputs).float()[:, :, None]
        if self.config.prediction == "velocity":
            return noised.float() - t.float().view(-1, 1, 1, 1, 1) * picture
        picture = picture + self.skip[0] * noised.float()
        return picture if recycled is None else picture + self.skip[1] * recycled.float()


def _add_and_norm(
    x: Tensor, update: Tensor | None, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens x and update [B, ..., d] -> sum and modulated norm [B, N, d]; under autocast the sum is in float32."""
    tokens = x.flatten(1, -2)
    tokens = tokens.float() if torch.is_autocast_enabled(x.device.type) else tokens
    pending = None if update is None else update.flatten(1, -2)
    return reference.gate_residual_norm(tokens, pending, gate, scale, shift, EPS)
