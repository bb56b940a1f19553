# SPDX-License-Identifier: Apache-2.0
"""The data policy: a guide who walks from thing to thing and from room to room, looks at things, and stands at times.

It decides at the boundaries of latent frames only, every `DECIDES` video frames. A random walk would look at walls half
of the time; a guide has something before it, at a distance, nearly always. But a guide hardly walks backwards or looks
up, as people with a keyboard do. So in between it plays a hand: one or two keys, held for a second or so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aapt_fast.worlds.rooms.house import House
from aapt_fast.worlds.rooms.walker import ACTIONS, FASTEST, Walker, clear_between, is_free
from aapt_fast.worlds.world import FPS

DECIDES = 4  # video frames between two decisions, those of a latent frame
NEAR, FAR = 1.1, 3.2  # metres from which things are looked at
BEFORE_DOOR = 0.85  # metres
HOLDS = 0.15  # share of the goals that are to hold still
HANDS = 0.5  # share of the others that are keys, held by a hand
KEYS: dict[str, float] = {
    "back": 0.26, "left": 0.15, "right": 0.15, "forward": 0.08, "turn_left": 0.09, "turn_right": 0.09,
    "look_up": 0.09, "look_down": 0.09,
}  # fmt: skip
"""Share of each action among the first keys of hands; those that a guide plays least often most."""
RISES, TILTS = 0.35, 0.25  # shares of the hands that also move up or down, or tilt the camera


@dataclass
class _Goal:
    """Place to go next and thing to look at there; `gaze` [3] None: look where the way leads."""

    way: list[np.ndarray]  # x, z [2] of the points still to reach
    gaze: np.ndarray | None
    stay: int  # decisions to stay for, once there
    faces: bool  # look at `gaze` on the way already
    pace: float = 1.0
    patience: int = 40  # decisions after which the goal is given up
    keys: np.ndarray | None = None  # speeds [6] of a hand, instead of looking


class Guide:
    """Decides on speeds for a walker in its house. The same seed decides the same."""

    def __init__(self, walker: Walker, seed: int) -> None:
        assert walker.house is not None
        self._walker, self._house = walker, walker.house
        self._rng = np.random.default_rng([seed % 2**63, 7])
        self._goal = _Goal([], None, int(self._rng.integers(0, 3)), False)  # as live control begins
        self._extra = np.zeros(6)
        self._came_from: int | None = None

    def decide(self) -> np.ndarray:
        """Speeds [6] for the next `DECIDES` video frames."""
        goal, place = self._goal, self._walker.pose[[0, 2]]
        while goal.way and np.linalg.norm(goal.way[0] - place) < 0.3:
            goal.way.pop(0)
        goal.patience -= 1
        if goal.patience <= 0 or (not goal.way and goal.stay <= 0):
            self._goal = goal = self._next_goal()
        if goal.way:
            return self._walk(goal)
        goal.stay -= 1
        if goal.keys is None:
            return self._look(goal)
        if not self._has_room_for(goal.keys):
            goal.stay = 0
        return goal.keys

    def _walk(self, goal: _Goal) -> np.ndarray:
        """Speeds towards the next point of the way, facing it or the thing to look at."""
        pose = self._walker.pose
        step = goal.way[0] - pose[[0, 2]]
        heading = np.arctan2(step[0], step[1])
        facing = goal.gaze if goal.faces and goal.gaze is not None else None
        speeds = self._turn_to(heading if facing is None else self._heading_of(facing), facing)
        error = _wrapped(heading - pose[3])
        distance = float(np.linalg.norm(step))
        pace = goal.pace * min(1.0, distance / 0.5 + 0.2)
        if facing is not None:
            speeds[0], speeds[2] = _level(np.sin(error) * pace * 1.3), _level(np.cos(error) * pace)
        elif abs(error) < 0.6:
            speeds[2] = _level(pace * np.cos(error))
        return speeds

    def _look(self, goal: _Goal) -> np.ndarray:
        """Speeds while standing: turn to the thing, then look at it, perhaps moving a little."""
        if goal.gaze is None:
            return np.zeros(6)
        speeds = self._turn_to(self._heading_of(goal.gaze), goal.gaze)
        if np.abs(speeds[[3, 4]]).max() < 0.3:
            speeds += self._extra
            side = self._walker.pose[3] + np.pi / 2
            ahead = self._walker.pose[[0, 2]] + 0.35 * np.sign(speeds[0]) * np.array([np.sin(side), np.cos(side)])
            if not is_free(self._house, ahead, self._walker.doors):
                speeds[0] = 0
        return np.clip(speeds, -1, 1)

    def _turn_to(self, heading: float, gaze: np.ndarray | None) -> np.ndarray:
        """Speeds [6] that turn the camera to a heading, and its pitch to a thing or to level."""
        pose, speeds = self._walker.pose, np.zeros(6)
        pitch = -0.06
        if gaze is not None:
            away = max(0.6, float(np.linalg.norm(gaze[[0, 2]] - pose[[0, 2]])))
            pitch = float(np.clip(np.arctan2(gaze[1] - pose[1], away), -0.5, 0.3)) * 0.8
        span = DECIDES / FPS * 1.4
        speeds[4] = _level(_wrapped(heading - pose[3]) / (FASTEST[4] * span))
        speeds[3] = _level((pitch - pose[4]) / (FASTEST[3] * span))
        if abs(1.5 - pose[1]) > 0.25 and not self._extra[1]:
            speeds[1] = _level(1.5 - pose[1])
        return speeds

    def _heading_of(self, point: np.ndarray) -> float:
        step = point[[0, 2]] - self._walker.pose[[0, 2]]
        return float(np.arctan2(step[0], step[1]))

    def _next_goal(self) -> _Goal:
        """Another thing to look at, or a door to pass."""
        rng, place = self._rng, self._walker.pose[[0, 2]]
        room = self._house.plan.room_at(place)
        self._extra = np.zeros(6)
        if rng.random() < HOLDS:
            return _Goal([], None, int(rng.integers(3, 8)), False)
        if rng.random() < HANDS:
            keys = self._press_keys()
            return _Goal([], None, int(rng.integers(3, 9)) if self._has_room_for(keys) else 0, False, keys=keys)
        if rng.random() < 0.5:  # while standing: move aside, up or down, or tilt
            axis = int(rng.choice([0, 0, 0, 1, 5]))
            self._extra[axis] = rng.choice([-0.5, 0.5])
        doors = self._house.plan.doors_of(room)
        doors = [each for each in doors if each != self._came_from] or doors
        if doors and rng.random() < 0.45:
            number = int(rng.choice(doors))
            door = self._house.plan.doors[number]
            before, beyond = door.before(room, BEFORE_DOOR), door.before(door.other(room), BEFORE_DOOR)
            way = self._way_to(before)
            if way is not None:
                self._came_from = number
                return _Goal([*way, beyond], None, 0, False, float(rng.choice([0.75, 1.0])))
        things = self._house.rooms[room].things
        for _ in range(12):
            thing = things[int(rng.integers(len(things)))]
            middle = (thing.low + thing.high) / 2
            if middle[1] > 2.1 or thing.high[1] < 0.1:  # the lamp above and the rug below
                continue
            angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(NEAR, FAR)
            point = middle[[0, 2]] + away * np.array([np.sin(angle), np.cos(angle)])
            if not self._house.plan.rooms[room].holds(point, 0.45) or not is_free(self._house, point, margin=0.4):
                continue
            stay = int(rng.integers(1, 5))
            if (way := self._way_to(point)) is not None:
                return _Goal(way, middle, stay, bool(rng.random() < 0.5), float(rng.choice([0.5, 0.75, 1.0])))
        return _Goal([], self._something(room), int(rng.integers(2, 5)), False)

    def _press_keys(self) -> np.ndarray:
        """Speeds [6] of one key or two, at full or half speed."""
        rng, names = self._rng, list(KEYS)
        keys = np.array(ACTIONS[names[int(rng.choice(len(names), p=list(KEYS.values())))]], float)
        if rng.random() < 0.35:
            second = np.array(ACTIONS[names[int(rng.integers(len(names)))]], float)
            keys = np.where(keys == 0, second, keys)
        for axis, share in ((1, RISES), (5, TILTS)):
            if rng.random() < share:
                keys[axis] = rng.choice([-1.0, 1.0])
        return keys * rng.choice([0.5, 1.0, 1.0])

    def _has_room_for(self, keys: np.ndarray) -> bool:
        """True if the camera could move on for 35 cm as the keys ask for, forwards for 90, so that it faces no wall."""
        pose = self._walker.pose
        sin, cos = np.sin(pose[3]), np.cos(pose[3])
        along = np.array([keys[2] * sin + keys[0] * cos, keys[2] * cos - keys[0] * sin])
        length = float(np.linalg.norm(along))
        far = 0.9 if keys[2] > 0 else 0.35
        if length == 0:
            return True
        return is_free(self._house, pose[[0, 2]] + far * along / length, self._walker.doors)

    def _something(self, room: int) -> np.ndarray:
        """The middle [3] of a thing to turn to, not too near."""
        things = self._house.rooms[room].things
        middles = np.array([(thing.low + thing.high) / 2 for thing in things])
        away = np.linalg.norm(middles[:, [0, 2]] - self._walker.pose[[0, 2]], axis=1)
        good = np.flatnonzero((away > NEAR) & (middles[:, 1] < 2.1))
        return middles[int(self._rng.choice(good if len(good) else np.arange(len(things))))]

    def _way_to(self, point: np.ndarray) -> list[np.ndarray] | None:
        """Points of a clear way, by one detour at most; None if none was found."""
        place = self._walker.pose[[0, 2]]
        if clear_between(self._house, place, point):
            return [point]
        room = self._house.plan.rooms[self._house.plan.room_at(place)]
        for _ in range(8):
            via = np.asarray(self._rng.uniform(np.array(room.low) + 0.5, np.array(room.high) - 0.5))
            if clear_between(self._house, place, via) and clear_between(self._house, via, point):
                return [via, point]
        return None


class Drifter:
    """Decides without a house, for pictures from elsewhere: turns, walks and stands, one or two seconds each."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed % 2**63, 8])
        self._left, self._speeds = 0, np.zeros(6)

    def decide(self) -> np.ndarray:
        """Speeds [6] for the next `DECIDES` video frames."""
        if self._left <= 0:
            names = ("forward", "turn_left", "turn_right", "stand", "left", "right")
            name = names[int(self._rng.choice(len(names), p=[0.35, 0.2, 0.2, 0.1, 0.075, 0.075]))]
            self._speeds, self._left = 0.75 * np.array(ACTIONS[name], float), int(self._rng.integers(4, 13))
        self._left -= 1
        return self._speeds


def first_pose(house: House, seed: int) -> np.ndarray:
    """A pose [6] in some room, away from walls and with a thing before it, at a distance."""
    rng = np.random.default_rng([seed % 2**63, 6])
    best, best_score = np.zeros(6), -np.inf
    for _ in range(24):
        number = int(rng.integers(len(house.rooms)))
        room = house.plan.rooms[number]
        place = np.asarray(rng.uniform(np.array(room.low) + 0.6, np.array(room.high) - 0.6))
        thing = house.rooms[number].things[int(rng.integers(len(house.rooms[number].things)))]
        middle = (thing.low + thing.high) / 2
        step = middle[[0, 2]] - place
        away = float(np.linalg.norm(step))
        height = rng.uniform(1.35, 1.65)
        pitch = np.clip(np.arctan2(middle[1] - height, away), -0.4, 0.15) * 0.7
        score = -abs(away - 2.4) - 9 * (not is_free(house, place, margin=0.45)) - 3 * (thing.high[1] < 0.1)
        pose = np.array([place[0], height, place[1], np.arctan2(step[0], step[1]), pitch, 0.0])
        if score > best_score:
            best, best_score = pose, score
        if score > -0.8:
            break
    return best


def guided_poses(
    walker: Walker, seed: int, frames: int, mirror: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Poses [frames, 6] and doors [frames, D, 2] of a guided walk; the first is where the walker is.

    With `mirror` [6] the same decisions are taken, and other signs of the axes obeyed.
    """
    guide = Guide(walker, seed)
    poses, doors = [walker.pose.copy()], [walker.doors.copy()]
    signs = np.ones(6) if mirror is None else mirror
    shadow = None if mirror is None else Walker(walker.house, walker.pose)
    if shadow is not None:
        guide = Guide(shadow, seed)
    speeds = np.zeros(6)
    for frame in range(frames - 1):
        if frame % DECIDES == 0:
            speeds = guide.decide()
        if shadow is not None:
            shadow.step(speeds)
        walker.step(speeds * signs)
        poses.append(walker.pose.copy())
        doors.append(walker.doors.copy())
    return np.array(poses), np.array(doors)


def _wrapped(angle: float) -> float:
    """The angle in -pi..pi."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _level(speed: float) -> float:
    """The nearest quarter in -1..1, as a hand on a key or stick gives few speeds."""
    return float(np.clip(np.round(4 * speed) / 4, -1, 1))
