# SPDX-License-Identifier: Apache-2.0
"""The step of a session as CUDA graphs: one for the first frame, one for all others, one for the decoder.

    host    pages and rotations of the next frame -> tables     noise, recycled frame, control -> inputs
    graph   tables and inputs -> frame -> video frames

The graph of the generator covers a window that fills as well as a full one, because the page list always has its full
length. All three are recorded before the first step; replaying them takes the host a few microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aapt_fast.models.aapt.sampling import sample_frame, timesteps
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import DecoderStream, frames_to_uint8, require_output
from aapt_fast.streaming.fixed_cache import FixedPagedCache
from aapt_fast.streaming.pages import PagePool
from aapt_fast.streaming.recording import Recording, record
from aapt_fast.streaming.samplers import FrameSampler, step_noise


class RecordedFrameSampler(FrameSampler):
    """`FrameSampler` whose evaluations are recorded when a run begins. A fork records its own when it is made."""

    _caches: Sequence[FixedPagedCache]
    cache_type = FixedPagedCache
    mark: Callable[[], None] = staticmethod(lambda: None)
    """Called before and after the launch of a recording, for those who take the time."""

    def open(self, pool: PagePool, image: Tensor | None, prompt: Tensor | None) -> None:
        """See `Sampler.open`; image [1, C, 1, h, w], prompt [1, L, text_width]. RuntimeError if recording fails."""
        super().open(pool, image, prompt)
        try:
            self._record()
        except BaseException:
            self.release()
            raise

    def step(self, seed: int, step: int, recycled: Tensor | None, control: Tensor | None) -> Tensor:
        """See `Sampler.step`; recycled [1, C, 1, h, w], control [step_channels, h, w] or None."""
        assert recycled is not None
        self._noise.copy_(step_noise(self.model, seed, [step]))
        self._recycled.copy_(recycled)
        if control is not None:
            self._control.copy_(control[None, :, None])
        self.mark()
        frame = self._recordings[self._caches[0].next_frame == 1].replay().clone()
        self.mark()
        for cache in self._caches:
            cache.finish()
        return frame

    def fork(self, pool: PagePool) -> RecordedFrameSampler:
        """See `Sampler.fork`."""
        other = super().fork(pool)
        try:
            other._record()
        except BaseException:
            other.release()
            raise
        return other

    def _record(self) -> None:
        """Make the inputs and both recordings. What the runs write before is the next frame's, and written again."""
        config, device = self.generator.config, self.model.device
        frame = (1, config.latent_channels, 1, *config.grid)
        self._noise, self._recycled = torch.zeros(2, *frame, dtype=torch.float32, device=device).unbind()
        control = config.control.step_channels if config.control else 0
        self._control = torch.zeros(1, control, 1, *config.grid, dtype=torch.float32, device=device)
        self._levels = timesteps(self.nfe, config.shift).to(device)
        self.prepare()
        wanted = (True, False) if self._caches[0].next_frame == 1 else (False,)
        self._recordings = {first: self._record_one(first) for first in wanted}

    def _record_one(self, first: bool) -> Recording:
        for cache in self._caches:
            cache.records_first = first
        return record(self._evaluate, self.model.device)

    def _evaluate(self) -> Tensor:
        """What is recorded: inputs and tables -> frame [1, C, 1, h, w]."""
        control = self._control if self.generator.config.control else None
        with self.model.autocast():
            return sample_frame(self.generator, self._noise, self._recycled, control, self._caches, self._levels)


class RecordedDecoder:
    """A streaming decoder whose steps are recorded, for latents [1, C, 1, h, w] that follow a first frame.

    Args:
        model: whose decoder it is.
        decoder: has decoded the first frame; it belongs to this object from here on.

    Raises:
        ValueError: the decoder is at its beginning.
        RuntimeError: recording failed.
    """

    def __init__(self, model: StreamModel, decoder: DecoderStream) -> None:
        self._model, self._decoder = model, decoder
        state = decoder.fix()
        dtype = next(iter(model.vae.parameters())).dtype
        self._latents = torch.zeros(1, model.vae.latent_channels, 1, *model.grid, dtype=dtype, device=model.device)
        self._recording = record(lambda: self._decoder.decode(self._latents), model.device, state)

    def decode(self, latents: Tensor, out: str = "float") -> Tensor:
        """The next latents [1, C, 1, h, w] -> four video frames, as `VideoDecoder.decode` gives them.

        "float" ones, [1, 3, 4, H, W], are overwritten by the next call; "uint8" ones, [1, 4, H, W, 3], are not.
        """
        require_output(out)
        self._latents.copy_(latents)
        video = self._recording.replay()
        return video if out == "float" else frames_to_uint8(video)

    def clone(self) -> RecordedDecoder:
        """A decoder that continues from here on its own, bit for bit, with a recording of its own."""
        return RecordedDecoder(self._model, self._decoder.clone())

    def reset(self) -> None:
        """Forget everything decoded so far, and the recording."""
        self._decoder.reset()
