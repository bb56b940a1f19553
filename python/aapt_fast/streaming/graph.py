# SPDX-License-Identifier: Apache-2.0
"""A step recorded once as a CUDA graph and launched as a whole from then on.

A recording knows the addresses of its tensors and the numbers that Python computed while it was made. So everything
that differs from step to step must be in tensors that stay where they are, and the host writes to them between steps.

A recording lives as long as the run that it reads: `close` and `reset` free it, and a run after a reset is recorded
anew. So a session never holds the memory of two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import DecoderState, DecoderStream

WARM_UPS = 2  # libraries load kernels and take work space in the first runs, which a recording must not see

_ONE_RECORDING = threading.Lock()
"""Held while something is recorded: torch records one CUDA graph at a time in a process."""


class GraphMemory:
    """Memory that the recordings of one session, or of one batch, share.

    Temporary tensors of one recording lie where those of another do. That is right for the two recordings of a session:
    the decoder replays after the step, on the same stream, and the result of each is copied before the next replay.
    Sessions may step in threads of their own, so each has its own.

    Args:
        device: of all tensors of the recordings.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def pool(self) -> Any:
        """Torch's handle of the memory. Torch gives the memory back when the last recording in it is gone."""
        return torch.cuda.graph_pool_handle()

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream on which all of them are recorded: torch reuses memory within a stream only."""
        return torch.cuda.Stream(self.device)


class Recording:
    """A recorded function: `replay` computes it again, into a tensor [...] that stays where it is."""

    def __init__(self, replay: Callable[[], None], output: Tensor) -> None:
        self._recorded: tuple[Callable[[], None], Tensor] | None = (replay, output)

    def replay(self) -> Tensor:
        """The result [...], overwritten by the next replay. Launched, not waited for.

        Raises ValueError after `free`.
        """
        require(self._recorded is not None, "recording", "one of a run that has not ended", "one that has been freed")
        assert self._recorded is not None
        launch, output = self._recorded
        launch()
        return output

    def free(self) -> None:
        """Give its memory back. A second call does nothing."""
        self._recorded = None


def record(function: Callable[[], Tensor], memory: GraphMemory, state: Sequence[Tensor] = ()) -> Recording:
    """Record what `function` launches, after running it a few times. One thread of the process records at a time.

    Args:
        function: computes a tensor [...] from tensors that stay where they are.
        memory: for everything that it allocates; the type of its device is one of `RECORDERS`.
        state: tensors that it changes and reads; every run finds them as they were, and they end up so, also if it
            cannot be recorded.

    Raises:
        RuntimeError: it cannot be recorded, for example because it waits for a result.
    """
    kept = [tensor.clone() for tensor in state]

    def restore() -> None:
        for tensor, before in zip(state, kept, strict=True):
            tensor.copy_(before)

    try:
        with _ONE_RECORDING:
            return RECORDERS[memory.device.type](function, memory, restore)
    except RuntimeError as error:
        raise RuntimeError(f"cuda_graph: recording a step failed, cuda_graph=False does without: {error}") from error
    finally:
        restore()


def _record_on_cuda(function: Callable[[], Tensor], memory: GraphMemory, restore: Callable[[], None]) -> Recording:
    """Warm up, with the state restored after each run, then capture, on the stream of `memory`.

    The device is current throughout: torch's contexts for streams and graphs would otherwise wait for the device that
    was current before, and open it. The context of the stream is outside of the capture, because torch stays on the
    capturing stream when a capture fails.
    """
    before = torch.cuda.current_stream(memory.device)
    with torch.cuda.device(memory.device), torch.cuda.stream(memory.stream):
        memory.stream.wait_stream(before)
        for _ in range(WARM_UPS):
            function()
            restore()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may copy, wait and allocate meanwhile
        capture = torch.cuda.graph(graph, memory.pool, memory.stream, capture_error_mode="thread_local")
        with _own_workspaces(), capture:
            output = function()
    before.wait_stream(memory.stream)
    return Recording(graph.replay, output)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its work space from the memory of what is recorded inside, and forget it afterwards.

    Torch keeps work space by thread and stream. A recording would use the space of the warm-ups or of an earlier
    recording on its stream, which torch 2.13 gives back when that one dies (pytorch issue 193402).
    """
    forget = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)  # a private name: it may go
    forget()
    try:
        yield
    finally:
        forget()


Recorder = Callable[[Callable[[], Tensor], GraphMemory, Callable[[], None]], Recording]

RECORDERS: dict[str, Recorder] = {"cuda": _record_on_cuda}
"""Recorders by type of device. Their last argument restores the state that a run of the function changes."""


class RecordedDecoder:
    """A streaming decoder whose steps are recorded, for latents [1, C, n, h, w] that follow a first frame.

    Args:
        model: owner of the VAE.
        decoder: has decoded the first frame; it belongs to this object from here on.
        frames: n.
        memory: for the recording; None for memory of its own.

    Raises:
        ValueError: the decoder is at its beginning.
        RuntimeError: recording failed.
    """

    def __init__(
        self, model: StreamModel, decoder: DecoderStream, frames: int = 1, memory: GraphMemory | None = None
    ) -> None:
        self._model, self._decoder, self._frames = model, decoder, frames
        state = decoder.fix()
        dtype = next(iter(model.vae.parameters())).dtype
        shape = (1, model.vae.latent_channels, frames, *model.grid)
        self._latents = torch.zeros(shape, dtype=dtype, device=model.device)
        step = partial(decoder.step, self._latents, "uint8")
        self._recording = record(step, memory or GraphMemory(model.device), state)

    def decode_uint8(self, latents: Tensor) -> Tensor:
        """The next latents [1, C, n, h, w] -> video frames in uint8 [1, 4 n, H, W, 3], a tensor of their own.

        Raises ValueError after `reset`.
        """
        self._latents.copy_(latents)
        return self._recording.replay().clone()

    def clone(self, memory: GraphMemory | None = None) -> RecordedDecoder:
        """A decoder that continues from here on its own, bit for bit, with a recording of its own in `memory`."""
        return RecordedDecoder(self._model, self._decoder.clone(), self._frames, memory)

    def state(self) -> DecoderState:
        """A copy of the state, on the host."""
        return self._decoder.state()

    def restore(self, state: DecoderState, device: torch.device) -> None:
        """Go back to what `state()` was, in place, so that the recording goes on from there."""
        self._decoder.restore(state, device)

    def reset(self) -> None:
        """Forget everything decoded so far, and free the recording: `decode_uint8` raises ValueError from here on."""
        self._decoder.reset()
        self._recording.free()
