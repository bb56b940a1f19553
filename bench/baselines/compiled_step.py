# SPDX-License-Identifier: Apache-2.0
"""A step in plain torch: a contiguous cache, torch's attention and compiler, no op of the package and no pages.

It makes the same frames as a session with one evaluation per step. Controls, noise and decoder are those of a session
and are not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import sample_frame, timesteps
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.wan.sampling import FewStep
from aapt_fast.ops import reference
from aapt_fast.ops.cache import GrowingCache
from aapt_fast.streaming.pages import PagePool
from aapt_fast.streaming.samplers import Sampler, step_noise
from aapt_fast.streaming.session import StreamSession
from bench.baselines.plain_generator import EPS, plain


class CompiledSession(StreamSession):
    """A `StreamSession` whose steps are the baseline's: eager until the window is full, then compiled by torch.

    `compiler` compiles the step, with the best options for the device unless another one is set on a subclass.
    """

    compiler: Callable[..., Any] = staticmethod(torch.compile)

    def _choose_sampler(self, model: StreamModel, nfe: int, few_step: FewStep | None, cuda_graph: bool) -> Sampler:
        require(nfe == 1 and not few_step and not cuda_graph, "nfe", "1, and no other option", nfe)
        return CompiledSampler(model, self.compiler)


class CompiledSampler:
    """`streaming.samplers.Sampler` of the baseline, for one evaluation per step. It cannot be forked."""

    nfe = 1

    def __init__(self, model: StreamModel, compiler: Callable[..., Any]) -> None:
        assert isinstance(model.generator, Generator)
        self.model, self.generator = model, plain(model.generator)
        self._levels = timesteps(1, model.generator.config.shift).to(model.device)
        # on a GPU with CUDA graphs of its own
        mode = "reduce-overhead" if model.device.type == "cuda" else None
        self._compiled = compiler(self._evaluate, mode=mode)
        self._cache: GrowingCache | ContiguousCache | None = None

    def pages(self, prompt: Tensor | None) -> int:
        """Return 1, the fewest that a pool has; no page is used. prompt [1, L, text_width] or None."""
        return 1

    def open(self, pool: PagePool, image: Tensor | None, prompt: Tensor | None) -> None:
        """Begin a run with image [1, C, 1, h, w] and prompt [1, L, text_width]."""
        text = None
        if prompt is not None:
            with self.model.autocast():
                text = self.model.generator.encode_text(prompt, self._levels[:1])
        self._cache = self.generator.new_cache(text=text)

    def prepare(self) -> None:
        """Do nothing: a step needs no page."""

    def step(self, seed: int, step: int, recycled: Tensor | None, control: Tensor | None) -> Tensor:
        """Make the next frame from recycled [1, C, 1, h, w] and control [step_channels, h, w] or None."""
        assert self._cache is not None and recycled is not None
        noise = step_noise(self.model, seed, [step])
        inputs = None if control is None else control[None, :, None]
        if isinstance(self._cache, GrowingCache) and self._cache.next_frame > self._cache.window + 1:
            self._cache = ContiguousCache(self._cache)
        if isinstance(self._cache, GrowingCache):
            return self._evaluate(noise, recycled, inputs)
        self._cache.prepare()
        frame = self._compiled(noise, recycled, inputs).clone()
        self._cache.finish()
        return frame

    def fork(self, pool: PagePool) -> CompiledSampler:
        """Raises RuntimeError."""
        raise RuntimeError("fork: the baseline cannot be forked")

    def release(self) -> None:
        """Drop the cache."""
        self._cache = None

    def _evaluate(self, noise: Tensor, recycled: Tensor, control: Tensor | None) -> Tensor:
        """Make a frame; all frames [1, C, 1, h, w]. This is the part that is compiled."""
        assert self._cache is not None
        with self.model.autocast():
            return sample_frame(self.generator, noise, recycled, control, [self._cache], self._levels)


class ContiguousCache:
    """Keys and values of a full window, [1, tokens, Hkv, D] per layer, changed in place: text | sink | ring of frames.

    The frame of a step replaces the one that has left the window. Nothing that Python computes changes from step to
    step, so a compiled step is compiled once.

    Args:
        past: a cache whose window is full and has lost frame 1.
    """

    def __init__(self, past: GrowingCache) -> None:
        require(past.next_frame > past.window + 1, "past", f"more than {past.window} frames", past.next_frame - 1)
        self._rope, self._window = past.rope, past.window
        self.next_frame = past.next_frame
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._sink_keys: list[Tensor] = []
        for layer in range(past.layers):
            text, sink, window = past.kept(layer)
            assert sink is not None
            room = torch.zeros_like(sink[0]), torch.zeros_like(sink[1])
            parts = [*([text] if text else []), sink, *window, room]
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
