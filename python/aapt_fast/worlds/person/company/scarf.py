# SPDX-License-Identifier: Apache-2.0
"""The controlled person's scarf: its end swings in a wind by chance, and with the controlled neck.

The end is a chain of short capsules. The angles of each are two damped pendulums, sideways and towards the camera, the
slower the farther down; a gusty wind pushes them, and the acceleration of the neck pulls them the other way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aapt_fast.worlds.chance import Chance
from aapt_fast.worlds.person.capsules import Capsules
from aapt_fast.worlds.person.identity import SHIRT, Identity
from aapt_fast.worlds.person.skeleton import JOINT, NOSE
from aapt_fast.worlds.world import FPS

PIECES, PIECE = 7, 0.065  # capsules of the hanging end, their length in metres
_GUST = 9.0  # metres per second squared, the wind's push
_CALM = 0.5  # seconds in which a gust dies down
_DAMPING = 0.22  # of critical
_SUBSTEPS = 2


def scarf(joints: Tensor, identity: Identity, chance: Chance) -> Capsules:
    """The scarf round the neck of the bodies `joints` [N, 19, 3], in the colour opposite to the shirt's."""
    neck, device = joints[:, JOINT["neck"]], joints.device
    face = (joints[:, JOINT["nose"]] - joints[:, JOINT["head"]]) / NOSE
    side = torch.stack([face[:, 2], torch.zeros_like(face[:, 0]), -face[:, 0]], dim=1)
    angles = swing(neck.cpu(), chance.each_frame("wind", len(joints), 2)).to(device)
    sideways, towards = angles.unbind(-1)
    pieces = torch.stack([sideways.sin() * towards.cos(), -sideways.cos() * towards.cos(), towards.sin()], dim=-1)
    left, right = neck - 0.075 * side, neck + 0.075 * side
    knot = neck + 0.15 * face + 0.04 * side - torch.tensor([0.0, 0.05, 0.0], device=device)
    ends = knot[:, None] + PIECE * pieces.cumsum(1)
    starts = torch.cat([knot[:, None], ends[:, :-1]], dim=1)
    widths = torch.linspace(0.042, 0.05, PIECES + 1)
    shirt = identity.colours[SHIRT]
    colour = (shirt.max() + shirt.min() - shirt).to(device)
    return Capsules(
        start=torch.cat([left[:, None], starts], dim=1),
        end=torch.cat([right[:, None], ends], dim=1),
        radii=torch.cat([torch.tensor([[0.06, 0.06]]), torch.stack([widths[:-1], widths[1:]], dim=1)]).to(device),
        colours=colour.expand(1 + PIECES, 3),
        nearer=torch.tensor([0.15] + [0.02] * PIECES, device=device),
        striped=torch.zeros(1 + PIECES, dtype=torch.bool, device=device),
    )


def swing(neck: Tensor, draws: Tensor) -> Tensor:
    """Angles [N, PIECES, 2] in radians, sideways and towards the camera, of the pieces below `neck` [N, 3].

    `draws` [N, 2] from 0..1 make the wind; video frame n depends on none after n.
    """
    pull = torch.zeros(len(neck), 2)
    pull[2:] = (neck[2:] - 2 * neck[1:-1] + neck[:-2])[:, [0, 2]] * FPS**2
    share = torch.linspace(0.5, 1.5, PIECES)[:, None]  # how far a piece gives way
    rate = torch.linspace(8.0, 4.5, PIECES)[:, None]  # radians per second of its own swinging
    keep = 1 - 1 / (_CALM * FPS)
    gust = (1 - keep**2) ** 0.5
    noise = (draws - 0.5) * 12**0.5
    wind = noise[0] * _GUST
    angle = share * wind / 30
    speed = torch.zeros_like(angle)
    angles = []
    for number in range(len(neck)):
        wind = wind if number == 0 else keep * wind + gust * _GUST * noise[number]
        push = share * (wind - pull[number].clamp(-20, 20))
        for _ in range(_SUBSTEPS):
            speed = speed + (push - rate**2 * angle - 2 * _DAMPING * rate * speed) / (FPS * _SUBSTEPS)
            angle = angle + speed / (FPS * _SUBSTEPS)
        angles.append(angle)
    limited = 1.3 * (torch.stack(angles) / 1.3).tanh()
    return torch.stack([limited[..., 0], limited[..., 1].clamp_min(-0.1)], dim=-1)  # the chest is behind it
