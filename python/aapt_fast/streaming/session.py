# SPDX-License-Identifier: Apache-2.0
"""One user's stream: an image, then four video frames per step, each under that step's control.

A step draws noise from (seed, step), runs the generator `nfe` times over the cached past, and decodes the new frame.
A Wan transformer makes a block of frames per step instead, from a prompt and maybe an image. Whatever a session
remembers is in its object, so it can be forked, started over and closed at any step.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from aapt_fast.errors import PoolExhausted, SessionClosed, require, require_type
from aapt_fast.models.stream_model import ImageLike, StreamModel
from aapt_fast.models.vae.video_stream import VideoDecoder
from aapt_fast.models.wan.sampling import FewStep
from aapt_fast.models.wan.transformer import WanTransformer
from aapt_fast.streaming.boundary import check_pool, check_start, checked_seed, computing, ordinary, wait_for
from aapt_fast.streaming.controls import step_entries
from aapt_fast.streaming.latency import LatencyCounter
from aapt_fast.streaming.pages import PagePool
from aapt_fast.streaming.recording import RECORDERS
from aapt_fast.streaming.runner import RecordedDecoder, RecordedFrameSampler
from aapt_fast.streaming.samplers import BlockSampler, FrameSampler, Sampler
from aapt_fast.streaming.samplers import session_pages as session_pages


def page_pool(model: StreamModel, pages: int) -> PagePool:
    """A pool of `pages` pages, on the device and in the dtype of `model`, for sessions of that model."""
    config = model.config
    return PagePool(config.layers, pages, config.heads, config.head_dim, model.dtype, model.device)


@dataclass(frozen=True)
class _Start:
    """What a run begins with."""

    image: Tensor | None  # float32 [1, C, 1, h, w]
    control: Tensor | None  # of the image, float32 [entries * entry_channels, h, w]
    prompt: Tensor | None  # [1, L, text_width]
    seed: int


class StreamSession:
    """A stream of video under live control. Not safe to use from several threads at a time.

    Args:
        model: shared by any number of sessions.
        image: the first video frame: a PIL image, uint8 [H, W, 3], or float [3, H, W] in -1..1, of exactly
            `model.video_size`. A Wan transformer can do without: None.
        prompt: embeddings [L, text_width], or a str if the model has a text encoder; None for no text, which a Wan
            transformer cannot do without.
        seed: of the noise, a 64-bit integer.
        nfe: evaluations of an AAPT generator per step.
        few_step: how a Wan transformer makes the blocks of frames of a step; None for `FewStep()`.
        cuda_graph: record the step as CUDA graphs when a run begins, and replay them (`streaming/runner.py`). For AAPT
            generators on a GPU, with the kernels that are on at that time. A fork records its own.
        image_control: one control entry that describes the image, for models whose steps also take the control of the
            step before; zeros without it.
        pool: where the session keeps its past. It reserves `session_pages` pages here and now, so that no later step
            can run out of memory. Without a pool the session makes one of exactly that size for itself.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument with another size, shape, dtype or range, or one that the model has no use for.
        PoolExhausted: the pool has too few pages; it stays as it was.
    """

    latency: LatencyCounter
    """Times since the start or the last reset."""

    def __init__(
        self,
        model: StreamModel,
        image: ImageLike | None = None,
        *,
        prompt: str | Tensor | None = None,
        seed: int = 0,
        nfe: int = 1,
        few_step: FewStep | None = None,
        cuda_graph: bool = False,
        image_control: object = None,
        pool: PagePool | None = None,
    ) -> None:
        begun = time.perf_counter()
        require_type("model", model, StreamModel)
        require_type("cuda_graph", cuda_graph, bool)
        require_type("nfe", nfe, int)
        require(nfe >= 1, "nfe", "at least 1 evaluation per step", nfe)
        if few_step is not None:
            require_type("few_step", few_step, FewStep)
        if pool is not None:
            require_type("pool", pool, PagePool)
            check_pool(pool, model)
        self.model, self._sampler = model, self._choose_sampler(model, nfe, few_step, cuda_graph)
        self._pool, self._owns_pool = pool, pool is None
        self._closed: str | None = None  # why
        self._steps = 0
        with computing(model):
            check_start(model, image, prompt)
            start = _Start(
                model.encode_image(image) if image is not None else None,
                self._image_entries(image_control),
                model.embed(prompt) if prompt is not None else None,
                checked_seed(seed),
            )
            self._begin(start, begun)

    def step(self, control: object = None) -> Tensor:
        """The next four video frames, uint8 [4, H, W, 3] on the device of the model, complete when this returns.

        A block of n frames gives 4 n video frames; the first of a run without an image 4 n - 3.

        Args:
            control: of this step, one entry per video frame or one for all of them: [entries, J, 3] or [J, 3] for
                poses, [entries, C, h, w] or [C, h, w] for maps; a tensor, an array or lists of numbers. None for a
                model without control. Of a joint, x and y are fractions of width and height, from the upper left, and
                the third number is the depth in metres.

        Raises:
            TypeError, ValueError: a bad control. Nothing has changed, the session can go on.
            PoolExhausted: somebody has taken pages of the pool without a reservation. Likewise.
            SessionClosed: the session is closed. Any other error in the middle of a step closes it.
        """
        self._require_open()
        begun = time.perf_counter()
        with computing(self.model):
            entries = self._entries(control)
            self._sampler.prepare()
            try:
                frame = self._sampler.step(self.seed, self._steps + 1, self._frame, self._inputs(entries))
                video = ordinary(self._decode(frame))
                wait_for(video)
            except BaseException as error:
                self._close(f"by {type(error).__name__} in step {self._steps + 1}")
                raise
        self._end_step(frame, entries, begun)
        return video

    def fork(self) -> StreamSession:
        """An independent session that goes on from here, bit for bit like this one under the same controls.

        In a given pool the fork reserves pages like any session, and shares those of the past until one side writes
        to them. A session with a pool of its own gives the fork another such pool, a copy: that always works.
        Raises PoolExhausted if the given pool has too few pages, SessionClosed after `close`.
        """
        self._require_open()
        begun = time.perf_counter()
        assert self._pool is not None
        pool = page_pool(self.model, self._pool.pages) if self._owns_pool else self._pool
        other = copy.copy(self)
        with computing(self.model):
            other._pool, other._sampler = pool, self._sampler.fork(pool)
            try:
                other._decoder = self._decoder.clone()
            except BaseException:
                other._sampler.release()
                raise
        other.latency = LatencyCounter()
        other.latency.first_frame_s = time.perf_counter() - begun
        return other

    def reset(
        self,
        image: ImageLike | None = None,
        *,
        prompt: str | Tensor | None = None,
        seed: int | None = None,
        image_control: object = None,
    ) -> None:
        """Start over, with the arguments of the constructor; what is not given stays as it was.

        So image is a PIL image, uint8 [H, W, 3] or float [3, H, W], and prompt a str or embeddings [L, text_width].
        The control of the image goes with it: a new image without one has none.
        Raises TypeError and ValueError, having changed nothing, as the constructor does. PoolExhausted if a longer
        prompt does not fit the given pool; the session is closed then.
        """
        self._require_open()
        begun, old = time.perf_counter(), self._start
        keeps_control = image is None and image_control is None
        with computing(self.model):
            start = _Start(
                self.model.encode_image(image) if image is not None else old.image,
                old.control if keeps_control else self._image_entries(image_control),
                self.model.embed(prompt) if prompt is not None else old.prompt,
                checked_seed(seed) if seed is not None else old.seed,
            )
            self._sampler.release()
            try:
                self._begin(start, begun)
            except BaseException as error:
                self._close(f"by {type(error).__name__} in reset")
                raise

    def close(self) -> None:
        """Give the pages back. A second call does nothing."""
        self._close("by close()")

    def __enter__(self) -> StreamSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def first_frame(self) -> Tensor | None:
        """The image as the VAE shows it, uint8 [H, W, 3]: the video frame before those of the first step, if any."""
        return None if self._first_frame is None else self._first_frame.clone()

    @property
    def frame(self) -> Tensor:
        """The newest latent frame, float32 [1, C, 1, h, w]: a copy of the recycled frame of the next step.

        For blocks of n frames those of the last step, [1, C, n, h, w]. Raises ValueError while there are none.
        """
        require(self._frame is not None, "frame", "an image or a step before", "neither")
        return self._frame.clone()

    @property
    def nfe(self) -> int:
        """Network evaluations per step."""
        return self._sampler.nfe

    @property
    def recorded(self) -> RecordedFrameSampler | None:
        """What replays the recorded steps of the generator, if `cuda_graph` was asked for."""
        return self._sampler if isinstance(self._sampler, RecordedFrameSampler) else None

    @property
    def steps(self) -> int:
        """Steps taken since the start or the last reset."""
        return self._steps

    @property
    def seed(self) -> int:
        """Of the noise."""
        return self._start.seed

    @property
    def closed(self) -> bool:
        """Whether the session has given its pages back and can no longer be used."""
        return self._closed is not None

    def _choose_sampler(self, model: StreamModel, nfe: int, few_step: FewStep | None, cuda_graph: bool) -> Sampler:
        """The way in which the generator of `model` makes frames."""
        kind = model.device.type
        require(not cuda_graph or kind in RECORDERS, "cuda_graph", f"False: steps on a {kind} are not recorded", True)
        if isinstance(model.generator, WanTransformer):
            require(not cuda_graph, "cuda_graph", "False: blocks of a Wan transformer are not recorded", True)
            require(nfe == 1, "nfe", "1, the default: few_step says how often a Wan transformer is evaluated", nfe)
            return BlockSampler(model, few_step or FewStep())
        require(few_step is None, "few_step", "None: this generator is evaluated nfe times", few_step)
        expected = "an autoregressive generator; to_autoregressive makes one"
        config = model.generator.config
        require(config.autoregressive, "model", expected, "a bidirectional one")
        return RecordedFrameSampler(model, nfe) if cuda_graph else FrameSampler(model, nfe)

    def _begin(self, start: _Start, begun: float) -> None:
        decoder, first_frame = self.model.vae.stream(), None
        if start.image is not None:
            first_frame = self.model.decode(decoder, start.image)[0]
        self._open_caches(start)
        self._decoder: VideoDecoder = decoder
        if self.recorded is not None:
            try:
                self._decoder = RecordedDecoder(self.model, decoder)
            except BaseException:
                self._sampler.release()
                raise
        if first_frame is not None:
            wait_for(first_frame)
        self._start, self._first_frame = start, first_frame
        self._frame, self._previous, self._steps = start.image, start.control, 0
        self.latency = LatencyCounter()
        self.latency.first_frame_s = time.perf_counter() - begun

    def _open_caches(self, start: _Start) -> None:
        pages = self._sampler.pages(start.prompt)
        if self._owns_pool and (self._pool is None or self._pool.pages != pages):
            self._pool = None  # its memory goes first
            self._pool = page_pool(self.model, pages)
        pool = self._pool
        assert pool is not None
        if pages > pool.available:
            raise PoolExhausted(f"session: asked for {pages} pages, {pool.available} of {pool.pages} are available")
        self._sampler.open(pool, start.image, start.prompt)

    def _inputs(self, entries: Tensor | None) -> Tensor | None:
        """What the generator sees of a step's control [entries * entry_channels, h, w]: [step_channels, h, w]."""
        config = self.model.control
        return torch.cat([entries, self._previous]) if config is not None and config.with_previous else entries

    def _end_step(self, frame: Tensor, entries: Tensor | None, begun: float) -> None:
        """Remember what the next step needs: the new frames [1, C, n, h, w] and their control."""
        self._frame, self._previous = frame, entries
        self._steps += 1
        self.latency.record_step(time.perf_counter() - begun)

    def _decode(self, frames: Tensor) -> Tensor:
        """New frames [1, C, n, h, w] -> video; what begins a video goes alone."""
        if self._steps or self._first_frame is not None or frames.shape[2] == 1:
            return self.model.decode(self._decoder, frames)
        parts = [frames[:, :, :1], frames[:, :, 1:]]
        return torch.cat([self.model.decode(self._decoder, part) for part in parts])

    def _entries(self, control: object) -> Tensor | None:
        """A step's control -> float32 [entries * entry_channels, h, w] on the device."""
        config = self.model.control
        if config is None:
            require(control is None, "control", "None: this model has no control", type(control).__name__)
            return None
        return step_entries(control, config, self.model.grid).to(self.model.device, copy=True)

    def _image_entries(self, image_control: object) -> Tensor | None:
        """The control of the image as previous control of step 1, or None where steps do not take it."""
        config = self.model.control
        if config is None or not config.with_previous:
            expected = "None: this model's steps take no previous control"
            require(image_control is None, "image_control", expected, type(image_control).__name__)
            return None
        if image_control is None:
            channels = config.entries * config.entry_channels
            return torch.zeros(channels, *self.model.grid, dtype=torch.float32, device=self.model.device)
        return self._entries(image_control)

    def _close(self, why: str) -> None:
        if self._closed is None:
            self._closed = why
            self._sampler.release()
            self._decoder.reset()
            if self._owns_pool:
                self._pool = None

    def _require_open(self) -> None:
        if self._closed is not None:
            raise SessionClosed(f"session: it was closed {self._closed}")
