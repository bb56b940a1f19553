# SPDX-License-Identifier: Apache-2.0
"""The control of one stream of a server: the newest of each track, as its engine takes it at every frame boundary.

    action      a player of the model's world, from where it is
    pose        one entry that is held: it goes before the action until a client takes it back
    camera      likewise, for models whose control is maps; six speeds where the player of the world can be steered
    replay      the controls of an uploaded replay, until they end or a client sets another track

Where a player follows another control, poses are cross-faded, so that the body never jumps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.models.stream_model import StreamModel
from aapt_fast.streaming.controls import entry_shape, step_values
from aapt_fast.worlds.world import FirstFrame, Player, SteeredPlayer

FADE = 8  # video frames of a cross-fade
CAMERA_CHANNELS = 6
BEGINNING = 16  # video frames in which a player leaves the pose of the first picture


class LiveControls:
    """A `ControlSource`: `set` comes from any thread, everything else from the engine's.

    Args:
        model: of the stream.
        first: picture that it starts from, with its control if that is known.
        action: of the model's world; None for its first one.
        seed: of the player.
        kept: steps whose controls are kept, for `rewind` and `fork`.

    Raises ValueError for an action that the world does not have.
    """

    def __init__(self, model: StreamModel, first: FirstFrame, action: str | None, seed: int, kept: int) -> None:
        self._model, self._config = model, model.control
        self.first, self._seed = first, seed
        self._lock = threading.Lock()
        self._action, self._held = action, None
        self._is_steered = False
        self._newest = self.obeyed = 0
        self._replay: deque[Tensor] = deque()
        self.replay_has_ended = False
        """True from the last step of a replay on, until it has been looked at."""
        self._taken: deque[Tensor] = deque(maxlen=kept + 1)  # last entries of the newest steps
        self._fade_from: Tensor | None = None
        self._faded = 0  # video frames of the fade so far
        self._player = self._new_player()

    def begin(self, first: FirstFrame | None = None, seed: int | None = None) -> None:
        """Start over under the same action, from another picture or with another seed if they are given."""
        self.first = self.first if first is None else first
        self._is_steered = False
        self._seed = self._seed if seed is None else seed
        self._fade_from = None
        self._taken.clear()
        self._replay.clear()
        self._player = self._new_player()

    def set(self, track: str, value: Any, number: int) -> None:
        """Change one track from the next step on: `number` counts the changes of all.

        Raises TypeError and ValueError, naming the track, for a value that the model does not take; nothing changes.
        """
        if track == "action":
            require(value is None or isinstance(value, str), track, "a name, or null", value)
            if value is not None:
                self._require_action(value)
        elif not self._can_steer(track):
            value = self._entry(track, value)
        with self._lock:
            if track == "action":
                self._action = value or self._action
                if self._player is not None and value is not None:
                    self._player.play(value)
                    self._is_steered = False
            elif self._can_steer(track):
                self._steer(track, value)
            else:
                if value is None and self._held is not None:
                    self._fade()
                self._held = value
            self._replay.clear()
            self._newest = number

    def follow(self, replay: Iterable[Tensor]) -> None:
        """Play the controls [entries, J, 3] or [entries, C, h, w] of a replay's steps."""
        self._replay = deque(replay)

    def next(self, frames: int) -> Tensor | None:
        """Controls [frames, J, 3] or [frames, C, h, w] of the next step; None for a model without control."""
        with self._lock:
            self.obeyed = self._newest
            if self._config is None:
                return None
            if self._replay:
                values = self._replay.popleft()
                self.replay_has_ended = not self._replay
                if self.replay_has_ended:
                    self._fade_from, self._faded = values[-1], 0
            elif self._held is not None:
                values = self._held.expand(frames, *self._held.shape)
            elif self._player is not None:
                values = self._blend(self._player.next(frames))
            else:
                values = self._of_the_picture().expand(frames, *entry_shape(self._config, self._model.grid))
            self._taken.append(values[-1])
            return values

    def rewind(self, steps: int) -> None:
        """Go back by so many steps; a player fades from the pose of that step to where it is."""
        with self._lock:
            self._replay.clear()
            for _ in range(min(steps, len(self._taken))):
                self._taken.pop()
            self._fade()

    def go_on_from(self, entry: Tensor) -> None:
        """Let the player fade in from the newest control, [J, 3] or [C, h, w], of a stream that began elsewhere."""
        with self._lock:
            self._taken.append(entry)
            if self._player is not None and self._config is not None:
                self._player.next(BEGINNING)
            self._fade()

    def fork(self) -> LiveControls:
        """The controls of another stream that goes on from here: held ones stay, a player fades in."""
        with self._lock:
            other = LiveControls(self._model, self.first, self._action, self._seed ^ 1, 0)
            other._held, other._taken = self._held, deque(self._taken, self._taken.maxlen)
            if other._player is not None and self._config is not None:
                other._player.next(BEGINNING)
            other._fade()
            return other

    @property
    def action(self) -> str | None:
        """The action that plays now; None while another control goes before it, and without a world."""
        return None if self._held is not None or self._is_steered or self._replay else self._action

    @property
    def entry(self) -> Tensor | None:
        """The control of the newest video frame, [J, 3] or [C, h, w]; None before the first step."""
        return self._taken[-1] if self._taken else None

    def _can_steer(self, track: str) -> bool:
        return track == "camera" and isinstance(self._player, SteeredPlayer)

    def _steer(self, track: str, speeds: Any) -> None:
        """Give six speeds to the player; None goes back to the action."""
        assert isinstance(self._player, SteeredPlayer) and self._action is not None
        if speeds is None:
            self._player.play(self._action)
        else:
            self._player.steer(_numbers(track, speeds, (CAMERA_CHANNELS,)).clamp(-1, 1).tolist())
        self._is_steered = speeds is not None

    def _require_action(self, action: str) -> None:
        names = self._model.world.actions if self._model.has_world else ()
        require(
            action in names, "action", f"one of {', '.join(names)}" if names else "none: this model has none", action
        )

    def _new_player(self) -> Player | None:
        if self._action is not None:
            self._require_action(self._action)
        if not self._model.has_world:
            return None
        world = self._model.world
        self._action = self._action or world.actions[0]
        return world.player(self.first, self._action, self._seed)

    def _entry(self, track: str, value: Any) -> Tensor | None:
        """The entry [J, 3] or [C, h, w] of a client's value, on the CPU; None to take a held one back."""
        kind = None if self._config is None else self._config.kind
        fits = (track, kind) in (("pose", "pose"), ("camera", "maps"))
        require(fits, track, f"no such track: the control of this model is {kind or 'none'}", "one")
        if value is None:
            return None
        assert self._config is not None
        shape = entry_shape(self._config, self._model.grid)
        if track == "camera":  # one number per channel, the same everywhere
            numbers = _numbers(track, value, shape[:1])
            return step_values(numbers[:, None, None].expand(shape), self._config, self._model.grid, track)[0]
        return step_values(_numbers(track, value, shape), self._config, self._model.grid, track)[0]

    def _of_the_picture(self) -> Tensor:
        assert self._config is not None
        if self.first.control is not None:
            return torch.as_tensor(self.first.control).float()
        return torch.zeros(entry_shape(self._config, self._model.grid))

    def _fade(self) -> None:
        """Let the player fade in from the newest control, if there is one."""
        self._fade_from, self._faded = self.entry, 0

    def _blend(self, values: Tensor) -> Tensor:
        """Poses [frames, J, 3] of the player, faded in. Other controls jump."""
        assert self._config is not None
        if self._fade_from is None or self._config.kind != "pose":
            return values
        index = torch.arange(self._faded + 1, self._faded + 1 + len(values))
        share = (index / FADE).clamp(max=1)[:, None, None]
        share = share * share * (3 - 2 * share)
        blended = self._fade_from + share * (values - self._fade_from)
        self._faded += len(values)
        if self._faded >= FADE:
            self._fade_from = None
        return blended


def kind_of_control(model: StreamModel) -> tuple[str, list[int]]:
    """The kind of a model's control for clients, and the shape of one entry.

    Maps of six channels are those of a camera: a client sends six numbers, each of which fills a channel.
    """
    config = model.control
    if config is None:
        return "none", []
    if config.kind == "maps" and config.channels == CAMERA_CHANNELS:
        return "camera", [CAMERA_CHANNELS]
    return config.kind, list(entry_shape(config, model.grid))


def _numbers(track: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """A client's numbers as float32 of this shape."""
    expected = f"numbers {list(shape)}"
    try:
        numbers = torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{track}: expected {expected}, got {type(value).__name__}") from None
    require(numbers.shape == shape, track, expected, list(numbers.shape))
    return numbers
