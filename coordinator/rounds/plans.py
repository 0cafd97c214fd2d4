"""Plans of a federation: what a coordinator announces to its agents."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from broker.protocol.messages import BlobRef, Cohort, RoundPlan
from coordinator.config import CoordinatorConfig
from coordinator.rounds.protocol import PhaseOrder
from learning.registry import choice_of
from models.package.package import ModelPackage


class PlanMaker:
    """Maker of the plans of one coordinator process.

    Args:
        config: of the federation.
        package: the model.
        session: of the coordinator's state folder.
        instance: of this process.
    """

    def __init__(
        self, config: CoordinatorConfig, package: ModelPackage, session: str, instance: str
    ) -> None:
        self._config = config
        self._package = package
        self._session = session
        self._instance = instance

    def plan(
        self,
        order: PhaseOrder,
        round_id: int,
        version: int,
        blobs: Mapping[str, BlobRef],
        cohort: Cohort,
    ) -> RoundPlan:
        """Returns the plan of a phase, open.

        Args:
            order: of the round protocol.
            round_id: of the round.
            version: of the weights.
            blobs: the weights and what the algorithm shares.
            cohort: the agents that are asked.
        """
        config = self._config
        return RoundPlan(
            session=self._session,
            coordinator_instance=self._instance,
            round_id=round_id,
            state="open",
            phase=choice_of(order.settings),
            version=version,
            blobs=dict(blobs),
            package=self._package.digest,
            fingerprint=self._package.spec.fingerprint,
            cohort=cohort,
            deadline_s=order.deadline_s,
            algorithm=config.algorithm,
            training=msgspec.to_builtins(config.training),
            codec=config.codec,
            fetch_jitter_s=config.round.fetch_jitter_s,
            seed=int(np.random.default_rng([config.seed, round_id, 1]).integers(1 << 53)),
            max_staleness=config.max_staleness,
        )

    def continued(self, plan: RoundPlan) -> RoundPlan:
        """Returns a plan of an earlier process as this one announces it."""
        return msgspec.structs.replace(plan, coordinator_instance=self._instance)
