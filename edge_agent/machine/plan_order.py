"""Order of plans: which of two is newer, and whether work on the older one still counts."""

from __future__ import annotations

from broker.protocol.messages import RoundPlan

Stage = tuple[int, bool, int]

#: Earlier starts of the session that are remembered, to recognise their plans when they come late.
_FORMER_INSTANCES = 4


def stage(plan: RoundPlan) -> Stage:
    """Returns how far a federation is; it only grows within a start of the coordinator.

    The version of a finished federation is its best one, which need not be the latest.
    """
    return plan.round_id, plan.state == "finished", plan.version


def is_within_staleness(version: int, plan: RoundPlan) -> bool:
    """Whether an update of θ's `version` counts while a later round's plan is open."""
    return (
        plan.state == "open"
        and plan.max_staleness > 0
        and 0 <= plan.version - version <= plan.max_staleness
    )


class PlanOrder:
    """Remembers which starts of the coordinator are over, and how far each of them was."""

    def __init__(self) -> None:
        #: The latest stage that was heard of each former start, the latest start last.
        self._former_instances: dict[str, Stage] = {}

    def is_late(self, plan: RoundPlan, newest: RoundPlan) -> bool:
        """Whether a plan is a delayed copy of one before the newest.

        A plan beyond all that was heard of a former start is none: that start goes on, and it was
        the newest plan that came late. So is a finished one that is beyond the newest plan: no
        other follows it, and a coordinator that was put back to before the end announces more.
        """
        if plan.coordinator_instance == newest.coordinator_instance:
            return stage(plan) < stage(newest)
        if plan.session != newest.session:
            return False
        heard = self._former_instances.get(plan.coordinator_instance)
        if heard is None or stage(plan) > heard:
            return False
        return plan.state != "finished" or stage(plan) <= stage(newest)

    def follow(self, plan: RoundPlan, before: RoundPlan) -> bool:
        """Notes that a plan replaces another; returns whether the coordinator has gone back."""
        if before.session != plan.session:
            self._former_instances = {}
        elif before.coordinator_instance != plan.coordinator_instance:
            self._former_instances.pop(plan.coordinator_instance, None)
            self._former_instances[before.coordinator_instance] = stage(before)
            while len(self._former_instances) > _FORMER_INSTANCES:
                del self._former_instances[next(iter(self._former_instances))]
        return before.session == plan.session and stage(plan) < stage(before)
