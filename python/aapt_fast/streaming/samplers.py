# SPDX-License-Identifier: Apache-2.0
"""How a session's frames come about: one at a time from the recycled frame, or in blocks over a few levels of noise.

A sampler owns the caches of its session. Noise is Philox from (seed, number), so a step depends on nothing but the
seed, its number and the past.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from aapt_fast.errors import require, require_type
from aapt_fast.models.aapt.config import GeneratorConfig
from aapt_fast.models.aapt.generator import Generator
from aapt_fast.models.aapt.sampling import sample_frame, timesteps
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.wan.sampling import FewStep, remember, sample_block
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.ops import philox_normal
from aapt_fast.streaming.cache_batch import CacheBatch
from aapt_fast.streaming.paged_block_cache import PagedBlockCache, block_pages_needed
from aapt_fast.streaming.paged_cache import PagedCache, TextPages, pages_needed
from aapt_fast.streaming.pages import PagePool

AnySampler = TypeVar("AnySampler", bound="Sampler")
AnyFrameSampler = TypeVar("AnyFrameSampler", bound="FrameSampler")


def session_pages(model: StreamModel | GeneratorConfig, nfe: int = 1, text_length: int = 0) -> int:
    """The pages a session of an AAPT generator reserves: one cache per evaluation, each with its own text pages.

    `model` may be the configuration alone. Raises TypeError for another object, a Wan transformer's among them, whose
    sessions reserve `block_pages_needed`; ValueError for nfe < 1 or text_length < 0.
    """
    require_type("model", model, StreamModel, GeneratorConfig)
    config = model.config if isinstance(model, StreamModel) else model
    if not isinstance(config, GeneratorConfig):
        hint = "see aapt_fast.streaming.block_pages_needed"
        raise TypeError(f"model: expected an AAPT generator's, got one with a Wan transformer: {hint}")
    require_type("nfe", nfe, int)
    require(nfe >= 1, "nfe", "at least 1 evaluation per step", nfe)
    require_type("text_length", text_length, int)
    require(text_length >= 0, "text_length", "at least 0 tokens", text_length)
    return nfe * pages_needed(config.tokens, config.window, text_length)


class Sampler(Protocol):
    """What a session asks of it."""

    nfe: int
    """Network evaluations per step."""

    def pages(self, prompt: Tensor | None) -> int:
        """The pages that `open` reserves for a prompt [1, L, text_width]."""
        ...

    def open(self, pool: PagePool, image: Tensor | None, prompt: Tensor | None) -> None:
        """Begin a run, with the latent frame of an image [1, C, 1, h, w] and a prompt [1, L, text_width], if any."""
        ...

    def prepare(self) -> None:
        """Take the pages of the next step. Raises PoolExhausted, and the step has not begun."""
        ...

    def step(self, seed: int, step: int, recycled: Tensor | None, control: Tensor | None) -> Tensor:
        """The frames [1, C, n, h, w] of a step, counted from 1.

        recycled [1, C, 1, h, w] and control [step_channels, h, w], for models that take them.
        """
        ...

    def fork(self: AnySampler, pool: PagePool) -> AnySampler:
        """One that goes on from here on its own, bit for bit."""
        ...

    def release(self) -> None:
        """Give the pages back. A second call does nothing."""
        ...


class FrameSampler:
    """AAPT: one frame per step from noise, the recycled frame and the control, in `nfe` Euler steps.

    Each evaluation has a cache of its own: what evaluation k attends to was computed at the same timestep t_k.
    """

    cache_type: type[PagedCache] = PagedCache

    def __init__(self, model: StreamModel, nfe: int) -> None:
        assert isinstance(model.generator, Generator)
        self.model, self.generator, self.nfe = model, model.generator, nfe
        self._caches: Sequence[PagedCache] = []

    def pages(self, prompt: Tensor | None) -> int:
        """See `Sampler.pages`; prompt [1, L, text_width] or None."""
        return session_pages(self.generator.config, self.nfe, 0 if prompt is None else prompt.shape[1])

    def open(self, pool: PagePool, image: Tensor | None, prompt: Tensor | None) -> None:
        """See `Sampler.open`. The image [1, C, 1, h, w] is the recycled frame of the first step: no cache has it."""
        config = self.generator.config
        rope = self.generator.rope(*config.grid)

        def open_cache(level: Tensor) -> PagedCache:
            if prompt is None:
                return self.cache_type(pool, rope, config.tokens, config.window)
            with self.model.autocast():
                text = TextPages(pool, self.generator.encode_text(prompt, level[None]))
            try:
                return self.cache_type(pool, rope, config.tokens, config.window, text)
            finally:
                text.release()  # the cache holds it

        levels = timesteps(self.nfe, config.shift).to(self.model.device)[:-1]
        self._caches = _all_or_none(open_cache(level) for level in levels)

    def prepare(self) -> None:
        """See `Sampler.prepare`."""
        for cache in self._caches:
            cache.prepare()

    def step(self, seed: int, step: int, recycled: Tensor | None, control: Tensor | None) -> Tensor:
        """See `Sampler.step`; recycled [1, C, 1, h, w], control [step_channels, h, w] or None."""
        noise = step_noise(self.model, seed, [step])
        inputs = None if control is None else control[None, :, None]
        with self.model.autocast():
            return sample_frame(self.generator, noise, recycled, inputs, self._caches)

    @staticmethod
    def step_together(
        samplers: Sequence[FrameSampler], seeds: Sequence[int], steps: Sequence[int], recycled: Tensor, control: Tensor
    ) -> Tensor:
        """`step` of several samplers of one model, pool and nfe: everything has a row per sampler.

        recycled [B, C, 1, h, w], control [B, step_channels, 1, h, w] (no channels for a model without) ->
        frames [B, C, 1, h, w].
        """
        first = samplers[0]
        noise = noise_of(first.model, seeds, steps)[:, :, None]
        caches = [CacheBatch(of_evaluation) for of_evaluation in zip(*(s._caches for s in samplers), strict=True)]
        with first.model.autocast():
            return sample_frame(first.generator, noise, recycled, control if control.shape[1] else None, caches)

    def fork(self: AnyFrameSampler, pool: PagePool) -> AnyFrameSampler:
        """See `Sampler.fork`."""
        other = copy.copy(self)
        other._caches = _all_or_none(cache.fork(pool) for cache in self._caches)
        return other

    def release(self) -> None:
        """See `Sampler.release`."""
        for cache in self._caches:
            cache.release()
        self._caches = []


class BlockSampler:
    """Self-Forcing: a block of frames per step, in a few evaluations over one cache (`models.wan.sampling`).

    Frame f of the run (from 1, an image not counted) takes noise number (f - 1) K + k + 1 in its evaluation k, where K
    is `FewStep.draws`. Keys and values of the prompt are kept beside the pages, and shared by forks.

    Raises ValueError for a model that takes more than the frames, and for blocks without a window.
    """

    def __init__(self, model: StreamModel, schedule: FewStep) -> None:
        generator = model.generator
        assert isinstance(generator, WanTransformer)
        channels = generator.config.out_channels
        got = generator.config.in_channels
        require(got == channels, "model", f"a generator with {channels} channels in and out", f"{got} in")
        self.model, self.generator, self.schedule, self.nfe = model, generator, schedule, schedule.nfe
        self.blocks = schedule.blocks or generator.config.blocks
        self._pages = block_pages_needed(model.tokens, self.blocks)
        self._cache: PagedBlockCache | None = None

    def pages(self, prompt: Tensor | None) -> int:
        """See `Sampler.pages`; the prompt [1, L, text_width] needs none."""
        return self._pages

    def open(self, pool: PagePool, image: Tensor | None, prompt: Tensor | None) -> None:
        """See `Sampler.open`. The image [1, C, 1, h, w] becomes the first frame of the cache."""
        assert prompt is not None
        rope, generator = self.generator.rope(*self.model.grid), self.generator
        self._context = generator.encode_context(prompt)
        self._cache = PagedBlockCache(pool, rope, self.model.tokens, self.blocks, eps=generator.config.eps)
        if image is not None:
            remember(generator, image, self._context, self._cache, self.schedule.context_noise)

    def prepare(self) -> None:
        """See `Sampler.prepare`."""
        assert self._cache is not None
        self._cache.prepare(self.blocks.frames)

    def step(self, seed: int, step: int, recycled: Tensor | None, control: Tensor | None) -> Tensor:
        """See `Sampler.step`. Neither the recycled frame [1, C, 1, h, w] nor a control [Cc, h, w] is used."""
        assert self._cache is not None
        schedule, draws = self.schedule.first if step == 1 else self.schedule, self.schedule.draws
        frames = range((step - 1) * self.blocks.frames, step * self.blocks.frames)
        noise = [
            step_noise(self.model, seed, [frame * draws + k + 1 for frame in frames])
            for k in range(len(schedule.steps))
        ]
        return sample_block(self.generator, noise, self._context, self._cache, schedule)

    def fork(self, pool: PagePool) -> BlockSampler:
        """See `Sampler.fork`."""
        assert self._cache is not None
        other = copy.copy(self)
        other._cache = self._cache.fork(pool)
        return other

    def release(self) -> None:
        """See `Sampler.release`."""
        if self._cache is not None:
            self._cache.release()
        self._cache = None


def step_noise(model: StreamModel, seed: int, numbers: list[int]) -> Tensor:
    """Normal noise [1, C, n, h, w], frame i from (seed, numbers[i])."""
    return noise_of(model, [seed] * len(numbers), numbers).transpose(0, 1)[None]


def noise_of(model: StreamModel, seeds: Sequence[int], numbers: Sequence[int]) -> Tensor:
    """Normal noise [n, C, h, w], row i from (seeds[i], numbers[i])."""
    seed, number = (torch.tensor(values, device=model.device) for values in (seeds, numbers))
    return philox_normal(seed, number, (model.config.latent_channels, *model.grid))


def _all_or_none(caches: Iterable[PagedCache]) -> list[PagedCache]:
    """The caches as a list; if making one fails, those before it are released."""
    made: list[PagedCache] = []
    try:
        for cache in caches:
            made.append(cache)
    except BaseException:
        for cache in made:
            cache.release()
        raise
    return made
