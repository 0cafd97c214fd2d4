"""Standing of an agent: what its answers were worth so far, and whether it is asked at all."""

from __future__ import annotations

import msgspec

#: Of `Standing.quarantined_until_round`: until somebody releases the agent.
UNTIL_RELEASED = -1


class Standing(msgspec.Struct, frozen=True):
    """One agent's record with this federation; stored.

    Attributes:
        refusals: its refused answers, by reason.
        accepted: its answers that counted.
        silent_rounds: rounds in a row that asked it and heard nothing.
        quarantined_until_round: it is asked again from this round on; 0: it is not in quarantine,
            `UNTIL_RELEASED`: only when it is released.
        quarantine_reason: in words; empty when it is not in quarantine.
        by_operator: a person put it there; no rule releases it.
    """

    refusals: dict[str, int] = {}
    accepted: int = 0
    silent_rounds: int = 0
    quarantined_until_round: int = 0
    quarantine_reason: str = ""
    by_operator: bool = False

    def may_be_asked(self, round_id: int) -> bool:
        """Says whether a round may ask the agent, as far as quarantine goes."""
        until = self.quarantined_until_round
        return until != UNTIL_RELEASED and until <= round_id

    def quarantined(
        self, reason: str, until_round: int = UNTIL_RELEASED, *, by_operator: bool = False
    ) -> Standing:
        """Returns the standing in quarantine; an operator's word outlasts a rule's."""
        if self.by_operator and not by_operator:
            return self
        return msgspec.structs.replace(
            self,
            quarantined_until_round=until_round,
            quarantine_reason=reason,
            by_operator=by_operator,
        )

    def released(self) -> Standing:
        """Returns the standing out of quarantine, with a clean slate of refusals."""
        return msgspec.structs.replace(
            self, refusals={}, quarantined_until_round=0, quarantine_reason="", by_operator=False
        )
