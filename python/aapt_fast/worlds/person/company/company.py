# SPDX-License-Identifier: Apache-2.0
"""Company: things in the picture that the controls do not decide.

With the first frame and the poses given, the plain world leaves nothing to chance, and a model that averages over
futures is as good as a model that picks one of them. In company the average blurs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from aapt_fast.errors import require
from aapt_fast.worlds.chance import Chance
from aapt_fast.worlds.person.capsules import Capsules
from aapt_fast.worlds.person.company.ball import ball
from aapt_fast.worlds.person.company.passer_by import passer_by
from aapt_fast.worlds.person.company.scarf import scarf
from aapt_fast.worlds.person.identity import Identity


@dataclass(frozen=True)
class Company:
    """The things that are present. Raises ValueError for none: a world without company has company None."""

    passer_by: bool = True
    ball: bool = True
    scarf: bool = True

    def __post_init__(self) -> None:
        require(self.passer_by or self.ball or self.scarf, "company", "a passer-by, a ball or a scarf", "none of them")


def gather(company: Company, joints: Tensor, identity: Identity, chance: Chance) -> list[Capsules]:
    """The company of the controlled bodies `joints` [N, 19, 3] of `identity` in the N video frames of a clip."""
    things = []
    if company.passer_by:
        things.append(passer_by(chance, len(joints)))
    if company.ball:
        things.append(ball(chance, len(joints)))
    if company.scarf:
        things.append(scarf(joints, identity, chance))
    return things
