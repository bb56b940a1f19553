# SPDX-License-Identifier: Apache-2.0
"""Steps ahead: the generator of step k + 1 runs while the decoder makes the video of step k.

    generator   [ frame 1 ][ frame 2 ][ frame 3 ] ...      a thread with one of torch's threads
    decoder                [ video 1 ][ video 2 ] ...      another one
    caller      control 1  control 2  control 3   ...      takes each control when its generator can begin

Both depend on latent frame k only. On a CPU this makes more video per second than two threads that share each operator,
and much more beside other busy programs, since two threads of one operator wait for each other at its end.

A frame that is computed ahead is not part of the run before its video is wanted. Whatever else is done with the session
meanwhile takes it back (`Ahead.withdraw`), and it is computed again later, from the same control.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor

from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.boundary import computing
from aapt_fast.streaming.step import Computed, Step

T = TypeVar("T")
OnStage = Callable[[str], None]


class OneThread:
    """A Python thread whose operators use one of torch's threads each; operators of other threads keep theirs.

    Args:
        name: of the thread, for debuggers.
        model: whose steps, or parts of them, it computes.
    """

    def __init__(self, name: str, model: StreamModel) -> None:
        self._model = model
        self._executor = ThreadPoolExecutor(1, f"aapt_fast-{name}")
        threads = torch.get_num_threads()
        self._executor.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(threads)  # else threads that torch has not seen yet would begin with one, too

    def start(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Compute `function(*arguments)` there, with the kernels and observers that are on in the calling thread."""
        context = contextvars.copy_context()

        def compute() -> T:
            with computing(self._model):
                return function(*arguments)

        return self._executor.submit(context.run, compute)

    def close(self) -> None:
        """End the thread, after what it computes now."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class Ahead:
    """Takes the steps of one session, the frames of the next one ahead of its video.

    Args:
        model: of the session.
        controls: one per step; each is taken when its generator can begin.
        check: makes the argument of `Step.compute`, float32 [entries, J, 3] or [entries, C, h, w], of a control, and
            takes the pages of the step.
    """

    def __init__(
        self, model: StreamModel, controls: Iterator[object], check: Callable[[Step, object], list[Tensor]]
    ) -> None:
        self._controls, self._check = controls, check
        self._generator, self._decoder = OneThread("generator", model), OneThread("decoder", model)
        self._error: Exception | None = None  # of taking or checking `unused`, for when its video is wanted
        self._begun: tuple[Step, list[Tensor], Future[Computed]] | None = None
        self.unused: list[object] = []
        """The control, if any, that has been taken and whose step is not part of the run."""

    def prepare(self, step: Step, on_stage: OnStage | None) -> None:
        """Begin to compute the next frames of `step`, unless that has been done. `on_stage` as in `Step.take`.

        Raises StopIteration after the last control, and the errors of taking and checking one, for example those of a
        bad control. No step has begun then.
        """
        if self._begun is not None and self._begun[0] is not step:
            self.withdraw()  # of a run that was reset
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._begun is None:
            if not self.unused:
                self.unused = [next(self._controls)]
            control, self.unused = self.unused[0], []  # a bad one is not tried again
            values = self._check(step, control)
            self.unused = [control]
            self._begun = step, values, self._generator.start(step.compute, values, on_stage)

    def take(self, on_stage: OnStage | None) -> tuple[list[Tensor], Tensor]:
        """Take the prepared step, and prepare the one after it.

        Returns the values of its control, as `check` made them, [entries, ...], and the video, uint8 [F, H, W, 3]. Any
        error is one in the middle of a step.
        """
        assert self._begun is not None
        step, values, frames = self._begun
        computed = frames.result()
        self._begun, self.unused = None, []
        step.adopt(computed)
        decoded = self._decoder.start(step.decode, computed, on_stage)
        try:
            try:
                self.prepare(step, on_stage)
            except Exception as error:
                self._error = error
            [video] = decoded.result()
        except BaseException:
            wait([decoded])  # after Ctrl-C: nothing may be released under its hands
            raise
        step.remember()
        return values, video

    def withdraw(self) -> None:
        """Take back the frames that are computed ahead, if there are any; `prepare` computes them again."""
        begun, self._begun = self._begun, None
        if begun is not None:
            step, _, frames = begun
            frames.exception()  # waits
            step.drop()

    def close(self) -> None:
        """Take back the frames that are computed ahead, and end the threads after what they compute now."""
        self.withdraw()
        self._generator.close()
        self._decoder.close()
