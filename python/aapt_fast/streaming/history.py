# SPDX-License-Identifier: Apache-2.0
"""The last steps of a run, so that it can go back to any of them.

    state after step     s - 7   s - 6   s - 5   ...   s      the newest
    frame, control         x       x       x            x     of every step, small
    pages                  x       x       x            x     kept by the caches (`CacheRow.rewind`)
    decoder                x                     x            a copy on the host after every sixth step

To go back, the decoder takes the last copy before the step, and decodes the frames in between once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.vae.video_stream import DecoderState, VideoDecoder

STEPS_PER_COPY = 6


@dataclass(frozen=True)
class Moment:
    """The state after a step, without its pages."""

    steps: int  # taken
    frame: Tensor | None  # newest, float32 [1, C, n, h, w]
    control: Tensor | None  # of the newest step, float32 [entries * entry_channels, h, w]
    decoder: DecoderState | None  # of some moments


class History:
    """Moments of a run, for `rewind`.

    Args:
        steps: to go back at most; 0 keeps nothing.
        device: of the decoder.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self._device = steps, device
        self._moments: deque[Moment] = deque()
        self._lowest = 0  # the earliest step to go back to

    def add(self, steps: int, frame: Tensor | None, control: Tensor | None, decoder: VideoDecoder) -> None:
        """Keep the state after so many steps: frame [1, C, n, h, w], control [entries * entry_channels, h, w]."""
        if not self.steps:
            return
        copy = decoder.state() if not self._moments or steps % STEPS_PER_COPY == 0 else None
        self._lowest = max(self._lowest, steps - self.steps) if self._moments else steps
        self._moments.append(Moment(steps, frame, control, copy))
        copies = [moment.steps for moment in self._moments if moment.decoder is not None]
        first_needed = max(copied for copied in copies if copied <= self._lowest)
        while self._moments[0].steps < first_needed:
            self._moments.popleft()

    def oldest(self, newest: int) -> int:
        """The earliest step to go back to; `newest` where nothing is kept."""
        return self._lowest if self._moments else newest

    def check(self, to_step: int) -> None:
        """Raise ValueError unless `rewind` can go back to `to_step`."""
        require(self.steps > 0, "to_step", "none: the session was opened with history=0", to_step)
        newest = self._moments[-1].steps
        require(self._lowest <= to_step <= newest, "to_step", f"{self._lowest}..{newest}", to_step)

    def rewind(self, to_step: int, decoder: VideoDecoder, decode: Callable[[Tensor, bool], object]) -> Moment:
        """Forget the steps after `to_step`, and bring the decoder to where it was then; returns that moment.

        `decode` decodes the frames [1, C, n, h, w] of a step; its second argument is True for the first step of a run.
        """
        while self._moments[-1].steps > to_step:
            self._moments.pop()
        moments = list(self._moments)
        copied = max(place for place, moment in enumerate(moments) if moment.decoder is not None)
        state = moments[copied].decoder
        assert state is not None
        decoder.restore(state, self._device)
        for moment in moments[copied + 1 :]:
            assert moment.frame is not None
            decode(moment.frame, moment.steps == 1)
        return moments[-1]

    def forget(self) -> None:
        """Keep no step: the run goes on from a state that was not its own."""
        self._moments.clear()

    def fork(self) -> History:
        """The same moments for another run: nobody writes to their tensors."""
        other = History(self.steps, self._device)
        other._moments, other._lowest = deque(self._moments), self._lowest
        return other
