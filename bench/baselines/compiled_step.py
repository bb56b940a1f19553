# SPDX-License-Identifier: Apache-2.0
"""A step in plain torch: a contiguous cache, torch's attention and compiler, no op of the package and no pages.

It makes the same frames as a session with one evaluation per step. Controls, noise and decoder are those of a session
and are not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import EulerSampler, levels_of
from aapt_fast.models.sampling import Prepared, Sampler
from aapt_fast.ops import reference
from aapt_fast.ops.cache import Cache, GrowingCache
from bench.baselines.plain_generator import EPS, plain


class CompiledSampler(Sampler):
    """The baseline as a sampler, for one evaluation per step: eager until the window is full, then compiled by torch.

    `compiler` compiles the step with the best options for the device; None: `torch.compile`. Sessions with it keep
    their past in the sampler's context, not in pages, so they cannot be forked.
    """

    def __init__(self, compiler: Callable[..., Any] | None = None) -> None:
        self._compiler = compiler or torch.compile

    def prepare(self, generator: Any, prompt: Tensor | None) -> Prepared:
        """Begin a run under a prompt [1, L, text_width] or None."""
        levels = levels_of(generator.config, 1).to(generator.weight.device)
        text = None if prompt is None else generator.encode_text(prompt, levels[1, :1])
        return Prepared([None], _PlainRun(plain(generator), levels, text, self._compiler))

    def sample(
        self,
        generator: Any,
        noise: Tensor,
        recycled: Tensor | None,
        control: Tensor | None,
        context: Any,
        caches: Sequence[Cache],
        first: bool,
    ) -> Tensor:
        """Make the next frame: noise [1, 1, C, 1, h, w], recycled [1, C, 1, h, w], control [1, Cc, 1, h, w]."""
        return context.step(noise[0], recycled, control)


class _PlainRun:
    """The past of one session with the baseline."""

    def __init__(self, generator: Generator, levels: Tensor, text: Any, compiler: Callable[..., Any]) -> None:
        self._generator, self._levels = generator, levels
        # on a GPU with CUDA graphs of its own
        self._compiled = compiler(self._evaluate, mode="reduce-overhead" if levels.is_cuda else None)
        self._cache: GrowingCache | ContiguousCache = generator.new_cache(text=text)

    def step(self, noise: Tensor, recycled: Tensor | None, control: Tensor | None) -> Tensor:
        if isinstance(self._cache, GrowingCache) and self._cache.next_frame > window_of(self._cache) + 1:
            self._cache = ContiguousCache(self._cache)
        if isinstance(self._cache, GrowingCache):
            return self._evaluate(noise, recycled, control)
        self._cache.prepare()
        frame = self._compiled(noise, recycled, control).clone()
        self._cache.finish()
        return frame

    def _evaluate(self, noise: Tensor, recycled: Tensor | None, control: Tensor | None) -> Tensor:
        """Make a frame [1, C, 1, h, w]. This is the part that is compiled."""
        inputs = (noise[None], recycled, control, self._levels, [self._cache])
        return EulerSampler().sample(self._generator, *inputs, first=False)


def window_of(cache: GrowingCache) -> int:
    """Past frames that the rule of `cache` keeps besides the sink."""
    assert cache.rule.window is not None
    return cache.rule.window


class ContiguousCache:
    """Keys and values of a full window, [1, tokens, Hkv, D] per layer, changed in place: text | sink | ring of frames.

    The frame of a step replaces the one that has left the window. Nothing that Python computes changes from step to
    step, so a compiled step is compiled once.

    Args:
        past: a cache whose window is full and has lost frame 1.
    """

    def __init__(self, past: GrowingCache) -> None:
        self._rope, self._window = past.rope, window_of(past)
        require(past.next_frame > self._window + 1, "past", f"more than {self._window} frames", past.next_frame - 1)
        self.next_frame = past.next_frame
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._sink_keys: list[Tensor] = []
        for layer in range(past.layers):
            text, unrotated, frames = past.kept(layer)
            sink = unrotated[1], frames.pop(1)[1]
            room = torch.zeros_like(sink[0]), torch.zeros_like(sink[1])
            parts = [*([text] if text else []), sink, *frames.values(), room]
            keys, values = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
            self.keys.append(keys)
            self.values.append(values)
            self._sink_keys.append(sink[0].clone())
        self._tokens = self._sink_keys[0].shape[1]
        self._text = self.keys[0].shape[1] - (self._window + 2) * self._tokens
        device = self.keys[0].device
        self._slots = torch.arange(self._tokens, device=device)
        self._own = torch.zeros_like(self._slots)
        self._rotations = torch.zeros(2, 2, self._tokens, self.keys[0].shape[3] // 2, device=device)

    def prepare(self) -> None:
        """Write the slots and the rotations of the next frame: the host's part of a step."""
        place = 1 + (self.next_frame - 2) % (self._window + 1)  # frame 2 follows the sink
        self._own.copy_(self._slots + self._text + place * self._tokens)
        for to, index in zip(self._rotations, (self.next_frame, self.next_frame - self._window - 1), strict=True):
            for rotation, table in zip(to, self._rope(index), strict=True):
                rotation.copy_(table)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None
    ) -> Tensor:
        """Attend as `ops.cache.Cache` does, for one frame: q, k, v [1, 1, N, H or Hkv, D] -> [1, 1, N, H, D]."""
        keys, values, (own, sink) = self.keys[layer], self.values[layer], self._rotations.unbind()
        q = reference.normalise_and_rotate(q[0], q_weight, own[0], own[1], EPS)
        keys.index_copy_(1, self._own, reference.normalise_and_rotate(k[0], k_weight, own[0], own[1], EPS))
        values.index_copy_(1, self._own, v[0])
        start, stop = self._text, self._text + self._tokens
        keys[:, start:stop] = reference.normalise_and_rotate(self._sink_keys[layer], None, sink[0], sink[1], EPS)
        grouped = q.shape[2] != keys.shape[2]
        parts = (x.transpose(1, 2) for x in (q, keys, values))
        return F.scaled_dot_product_attention(*parts, enable_gqa=grouped).transpose(1, 2)[None]

    def advance(self, frames: int) -> None:
        """Do nothing: the host counts in `finish`, outside of the compiled step."""

    def finish(self) -> None:
        """End a step."""
        self.next_frame += 1
