"""Which of two plans is the newer one."""

from __future__ import annotations

from broker.protocol.messages import RoundPlan

#: Earlier starts of the session that are remembered, to tell their plans when they come late.
_FORMER_STARTS = 4


def stage(plan: RoundPlan) -> tuple[int, int, bool]:
    """How far a federation is; it only grows within a start of the coordinator."""
    return plan.round_id, plan.version, plan.state == "finished"


class PlanOrder:
    """Remembers which starts of the coordinator are over."""

    def __init__(self) -> None:
        self._former_starts: tuple[str, ...] = ()

    def is_late(self, plan: RoundPlan, newest: RoundPlan) -> bool:
        """A copy of an earlier one that was on its way for long."""
        if plan.start == newest.start:
            return stage(plan) < stage(newest)
        return plan.session == newest.session and plan.start in self._former_starts

    def follow(self, plan: RoundPlan, before: RoundPlan) -> bool:
        """A plan that is not late replaces another; whether the coordinator has gone back by it."""
        if before.session != plan.session:
            self._former_starts = ()
        elif before.start != plan.start:
            self._former_starts = (*self._former_starts, before.start)[-_FORMER_STARTS:]
        return before.session == plan.session and stage(plan) < stage(before)
