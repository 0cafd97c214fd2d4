"""Draws a round's cohort at random from the eligible agents."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from broker.protocol import messages
from broker.protocol.messages import Cohort
from coordinator.config import LISTED_AGENTS, CohortConfig

log = logging.getLogger(__name__)

#: Agents that a rule leaves out by name, 20 bytes each on every device.
_MOST_NAMED = 200


@dataclass(frozen=True)
class Draw:
    """A cohort as announced, who that is, and how many reports are enough."""

    cohort: Cohort
    asked: tuple[str, ...]
    goal: int


def draw_cohort(
    able: Sequence[str],
    config: CohortConfig,
    rng: np.random.Generator,
    minimum: int = 1,
    max_bytes: int = messages.MAX_MESSAGE_BYTES,
    capacity: int | None = None,
    left_out: Sequence[str] = (),
) -> Draw:
    """Draws without replacement (McMahan et al. 2017, Algorithm 1), with over-selection.

    Over-selection: Bonawitz et al. 2019, "Towards Federated Learning at Scale", section 2.2.

    Args:
        able: agents that could take part, in a fixed order.
        config: fraction, least number, over-selection.
        rng: decides; the same state draws the same cohort.
        minimum: reports without which the round would be abandoned: the goal is no less.
        max_bytes: of the cohort in a plan; a longer list is announced as a rule.
        left_out: agents that are not to answer, though they are online; a rule names the first of
            them, so that they do not train in vain. Invented agents must not fill a plan.
        capacity: the most agents whose answers can be held; None: any number.
    """
    goal = min(len(able), max(config.at_least, minimum, math.ceil(config.fraction * len(able))))
    wanted = min(len(able), math.ceil(goal * config.over_select))
    if capacity is not None and wanted > capacity:
        log.warning(
            "cohort of %d limited to %d: the aggregator holds no more updates; raise its max_bytes",
            wanted,
            capacity,
        )
        wanted, goal = capacity, min(goal, capacity)
    if config.announce == "ids" or (config.announce == "auto" and wanted <= LISTED_AGENTS):
        picked = rng.permutation(len(able))[:wanted]
        asked = tuple(sorted(able[int(index)] for index in picked))
        cohort = Cohort(ids=asked)
        size = len(messages.encode(cohort))
        if size <= max_bytes:
            return Draw(cohort, asked, goal)
        log.warning(
            "a list of %d agents has %d bytes, a plan has room for %d: the round is announced by "
            "rule; leave out cohort.announce, or set it to rule",
            len(asked),
            size,
            max_bytes,
        )
    share = wanted / len(able) if able else 0.0
    cohort = Cohort(
        seed=int(rng.integers(1 << 53)), fraction=share, without=tuple(left_out[:_MOST_NAMED])
    )
    if share == 1 and not cohort.without:
        asked = tuple(able)  # a million hashes that all say yes
    else:
        asked = tuple(name for name in able if cohort.includes(name))
    return Draw(cohort, asked, min(goal, len(asked)))
