"""Seeds of a run: one for everything random, and one for each thing that is random."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from coordinator.config import Seed


class SeedsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `seeds:` section of a scenario; each is the scenario's `seed` when not given.

    Attributes:
        partition: of which rows each agent gets.
        cohort: of which agents each round asks.
        weights: of the initial weights, which are drawn as the model's layers say; "package": those
            in the model's package, which are also taken where the scenario has no `seed`.
        training: of the order of rows and of rounding, on agents and in baselines.
        simulation: of faults, delays, jitter and device profiles in virtual time.
    """

    partition: Seed | None = None
    cohort: Seed | None = None
    weights: Seed | Literal["package"] | None = None
    training: Seed | None = None
    simulation: Seed | None = None


class Seeds(NamedTuple):
    """Seeds of one run, every one known; `weights` None: the weights of the package."""

    partition: int
    cohort: int
    weights: int | None
    training: int
    simulation: int


def resolve_seeds(seed: int | None, seeds: SeedsConfig) -> Seeds:
    """Returns the seeds of a run.

    Args:
        seed: of everything that has none of its own; None: 0, and the package's initial weights.
        seeds: given one by one.
    """
    common = seed or 0
    weights = seed if seeds.weights is None else seeds.weights
    return Seeds(
        partition=common if seeds.partition is None else seeds.partition,
        cohort=common if seeds.cohort is None else seeds.cohort,
        weights=None if isinstance(weights, str) else weights,
        training=common if seeds.training is None else seeds.training,
        simulation=common if seeds.simulation is None else seeds.simulation,
    )
