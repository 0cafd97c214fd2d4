"""Who is asked: a random part of those who can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from broker.messages import Cohort
from coordinator.config import CohortConfig


@dataclass(frozen=True)
class Draw:
    """A cohort as announced, who that is, and how many reports are enough."""

    cohort: Cohort
    asked: tuple[str, ...]
    goal: int


def draw_cohort(
    able: Sequence[str], config: CohortConfig, rng: np.random.Generator, minimum: int = 1
) -> Draw:
    """Draws without replacement (McMahan et al. 2017, Algorithm 1), with over-selection.

    Over-selection: Bonawitz et al. 2019, "Towards Federated Learning at Scale", section 2.2.

    Args:
        able: agents that could take part, in a fixed order.
        config: fraction, least number, over-selection.
        rng: decides; the same state draws the same cohort.
        minimum: reports without which the round would be abandoned: the goal is no less.
    """
    goal = min(len(able), max(config.at_least, minimum, math.ceil(config.fraction * len(able))))
    wanted = min(len(able), math.ceil(goal * config.over_select))
    if config.announce == "rule":
        share = wanted / len(able) if able else 0.0
        cohort = Cohort(seed=int(rng.integers(1 << 53)), fraction=share)
        asked = tuple(name for name in able if cohort.includes(name))
        return Draw(cohort, asked, min(goal, len(asked)))
    picked = rng.permutation(len(able))[:wanted]
    asked = tuple(sorted(able[int(index)] for index in picked))
    return Draw(Cohort(ids=asked), asked, goal)
