# SPDX-License-Identifier: Apache-2.0
"""The rule that says which frames a step sees, and at which temporal positions.

Frames count from 1. A step makes a block of `frames` consecutive frames, whose tokens attend to

    sink (frames 1 .. sink) | window (the `window` frames before the block) | the block

in both directions, and to each frame once: a sink frame that is still in the window belongs to the window. AAPT
(arXiv 2506.09350) makes one frame per step, with a sink of one frame. Self-Forcing (arXiv 2506.08009) makes blocks of
three; its own "window" counts sink and block as well, so loaders subtract those.
"""

from __future__ import annotations

from dataclasses import dataclass

from aapt_fast.errors import require, require_type

SINK_POSITIONS = ("absolute", "saturated")


@dataclass(frozen=True)
class WindowRule:
    """Frames seen by a step. A subclass may see others: it overrides `seen`, and `capacity` to match.

    Args:
        frames: made by one step.
        window: past frames kept before the block, besides the sink; None for every past frame.
        sink: first frames that stay visible for ever.
        sink_position: temporal position of a sink frame that has left the window. "absolute": its own index.
            "saturated": directly before the window, so that an endless stream never shows the model a distance that
            it has not seen in training.

    Raises:
        TypeError: a number that is no int.
        ValueError: frames < 1, window < 0, sink < 0, another sink_position, or "saturated" without a window.
    """

    frames: int = 1
    window: int | None = None
    sink: int = 0
    sink_position: str = "absolute"

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("window", 0), ("sink", 0)):
            value = getattr(self, name)
            if name == "window" and value is None:
                continue
            require_type(name, value, int)
            require(value >= least, name, f"at least {least}", value)
        require(self.sink_position in SINK_POSITIONS, "sink_position", " or ".join(SINK_POSITIONS), self.sink_position)
        fits = self.window is not None or self.sink_position == "absolute"
        require(fits, "sink_position", "absolute: without a window no frame leaves it", self.sink_position)

    @property
    def capacity(self) -> int | None:
        """Most frames that a step sees, its own included; None without a window."""
        return None if self.window is None else self.sink + self.window + self.frames

    @property
    def moved(self) -> int:
        """Number of first frames whose position changes once they have left the window."""
        return self.sink if self.sink_position == "saturated" else 0

    def window_start(self, newest: int) -> int:
        """Oldest frame of the window, or of the block, of a step whose newest frame is `newest`."""
        return 1 if self.window is None else max(newest - self.frames - self.window + 1, 1)

    def seen(self, newest: int) -> list[tuple[int, int]]:
        """(frame, position) of every frame that a step ending in frame `newest` sees, ascending.

        A frame that one step does not see is seen by no later step.
        """
        start = self.window_start(newest)
        outside = range(1, min(self.sink, start - 1) + 1)
        shift = start - 1 - self.sink if self.moved else 0
        sinks = [(frame, max(frame, frame + shift)) for frame in outside]
        return sinks + [(frame, frame) for frame in range(start, newest + 1)]
