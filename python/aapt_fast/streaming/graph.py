# SPDX-License-Identifier: Apache-2.0
"""A step recorded once as a CUDA graph and launched as a whole from then on.

A recording knows the addresses of its tensors and the numbers that Python computed while it was made. So everything
that differs from step to step must be in tensors that stay where they are, and the host writes to them between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.models.vae.video_stream import DecoderStream

WARM_UPS = 2  # libraries load kernels and take work space in the first runs, which a recording must not see


class Recording:
    """A recorded function: `replay` computes it again, into `output` [...], which stays where it is."""

    def __init__(self, replay: Callable[[], None], output: Tensor) -> None:
        self._replay, self.output = replay, output

    def replay(self) -> Tensor:
        """The output [...], overwritten by the next replay. Launched, not waited for."""
        self._replay()
        return self.output


def record(function: Callable[[], Tensor], device: torch.device, state: Sequence[Tensor] = ()) -> Recording:
    """Record what `function` launches, after running it a few times.

    Args:
        function: computes a tensor [...] from tensors that stay where they are.
        device: of all of them; its type is one of `RECORDERS`.
        state: those that it changes and reads; they end up as they were.

    Raises:
        RuntimeError: it cannot be recorded, for example because it waits for a result.
    """
    kept = [tensor.clone() for tensor in state]
    try:
        recording = RECORDERS[device.type](function, device)
    except RuntimeError as error:
        raise RuntimeError(f"cuda_graph: recording a step failed, cuda_graph=False does without: {error}") from error
    for tensor, before in zip(state, kept, strict=True):
        tensor.copy_(before)
    return recording


def _record_on_cuda(function: Callable[[], Tensor], device: torch.device) -> Recording:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # which is on this device, unless torch's own is
        output = function()
    return Recording(graph.replay, output)


RECORDERS: dict[str, Callable[[Callable[[], Tensor], torch.device], Recording]] = {"cuda": _record_on_cuda}
"""How a function is recorded, by type of device."""


class RecordedDecoder:
    """A streaming decoder whose steps are recorded, for latents [1, C, n, h, w] that follow a first frame.

    Args:
        model: owner of the VAE.
        decoder: has decoded the first frame; it belongs to this object from here on.
        frames: n.

    Raises:
        ValueError: the decoder is at its beginning.
        RuntimeError: recording failed.
    """

    def __init__(self, model: StreamModel, decoder: DecoderStream, frames: int = 1) -> None:
        self._model, self._decoder, self._frames = model, decoder, frames
        state = decoder.fix()
        dtype = next(iter(model.vae.parameters())).dtype
        shape = (1, model.vae.latent_channels, frames, *model.grid)
        self._latents = torch.zeros(shape, dtype=dtype, device=model.device)
        decode = partial(decoder.decode, self._latents)
        self._recording: Recording | None = record(decode, model.device, state)

    def decode(self, latents: Tensor) -> Tensor:
        """The next latents [1, C, n, h, w] -> video frames [1, 3, 4 n, H, W], which the next call overwrites."""
        self._latents.copy_(latents)
        require(self._recording is not None, "stream", "one that has not been reset", "one that has lost its recording")
        assert self._recording is not None
        return self._recording.replay()

    def clone(self) -> RecordedDecoder:
        """A decoder that continues from here on its own, bit for bit, with a recording of its own."""
        return RecordedDecoder(self._model, self._decoder.clone(), self._frames)

    def reset(self) -> None:
        """Forget everything decoded so far, and drop the recording: `decode` raises ValueError from here on."""
        self._decoder.reset()
        self._recording = None
