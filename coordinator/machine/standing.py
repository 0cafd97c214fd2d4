"""Standing of an agent: what its answers were worth so far, and whether it is asked at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Set

import msgspec

from coordinator.config import QuarantineConfig
from coordinator.rounds.round import Round

log = logging.getLogger(__name__)

#: Of `Standing.quarantined_until_round`: until somebody releases the agent.
UNTIL_RELEASED = -1

#: Reasons of refusals that a working device gives no cause for, ever.
FAULTS = frozenset(
    (
        "codec",
        "examples",
        "fingerprint",
        "implausible",
        "malformed",
        "metrics",
        "norm",
        "not_finite",
        "shape",
        "statistics",
        "vectors",
    )
)
#: An answer that counts makes up for a part of a fault.
_FORGIVEN = 0.25
_LONGEST_QUARANTINE = 10_000
#: After so many silent rounds in a row an agent is asked in every 64th.
_MOST_DOUBLINGS = 6


class Silence(msgspec.Struct, frozen=True):
    """Rounds that asked an agent for a phase and heard nothing.

    Attributes:
        rounds: of these in a row.
        until_round: it is asked again from this round on.
        was_cut_short: the last of them did not wait for it until its deadline.
        is_patient: it was only slow: the next one waits for it until its deadline.
    """

    rounds: int
    until_round: int
    was_cut_short: bool = False
    is_patient: bool = False


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """One agent's record with this federation; stored.

    Attributes:
        refusals: its refused answers, by reason.
        accepted: its answers that counted.
        faults: refusals that a working device gives no cause for, less what good answers have made
            up for since.
        silences: by phase.
        quarantined_until_round: it is asked again from this round on; 0: it is not in quarantine,
            `UNTIL_RELEASED`: only when it is released.
        quarantine_reason: in words; empty when it is not in quarantine.
        quarantines: times that a rule put it there; each lasts twice as long as the one before.
        by_operator: a person put it there; no rule releases it.
    """

    refusals: dict[str, int] = {}
    accepted: int = 0
    faults: float = 0.0
    silences: dict[str, Silence] = {}
    quarantined_until_round: int = 0
    quarantine_reason: str = ""
    quarantines: int = 0
    by_operator: bool = False

    def may_be_asked(self, round_id: int) -> bool:
        """Says whether a round may ask the agent, as far as quarantine goes."""
        until = self.quarantined_until_round
        return until != UNTIL_RELEASED and until <= round_id

    def is_backed_off(self, phase: str, round_id: int) -> bool:
        """Says whether a round leaves the agent out because it was silent."""
        silence = self.silences.get(phase)
        return silence is not None and silence.until_round > round_id

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
        """Returns the standing out of quarantine, with a clean slate."""
        return Standing(accepted=self.accepted)


class Standings:
    """Standings of a federation's agents, as rounds go on.

    Args:
        config: of the rule that puts agents into quarantine.
        known: from the store, by agent id; changed in place.
        patience: silent rounds in a row that mean nothing yet: an update may come later and count.

    Attributes:
        round_id: of the round that is open, or put together.
    """

    def __init__(
        self, config: QuarantineConfig, known: dict[str, Standing], patience: int = 0
    ) -> None:
        self.round_id = 0
        self._config = config
        self._known = known
        self._patience = patience
        self._changed: set[str] = set()

    def get(self, agent_id: str) -> Standing:
        """Returns an agent's standing; that of a stranger is clean."""
        return self._known.get(agent_id, _CLEAN)

    def set(self, agent_id: str, standing: Standing) -> None:
        """Replaces an agent's standing."""
        self._known[agent_id] = standing
        self._changed.add(agent_id)

    def is_quarantined(self, agent_id: str) -> bool:
        """Says whether this round must not ask the agent."""
        standing = self._known.get(agent_id)
        return standing is not None and not standing.may_be_asked(self.round_id)

    def is_backed_off(self, agent_id: str, phase: str) -> bool:
        """Says whether this round leaves the agent out because it was silent."""
        standing = self._known.get(agent_id)
        return standing is not None and standing.is_backed_off(phase, self.round_id)

    def left_out(self, phase: str) -> Iterator[str]:
        """Yields the agents that this round does not ask, whatever they can."""
        for agent_id, standing in self._known.items():
            if not standing.may_be_asked(self.round_id) or standing.is_backed_off(
                phase, self.round_id
            ):
                yield agent_id

    def doubtful(self, agents: Iterable[str], phase: str) -> frozenset[str]:
        """Returns the agents that did not answer the last time they were asked."""
        return frozenset(name for name in agents if self._was_silent(name, phase))

    def _was_silent(self, agent_id: str, phase: str) -> bool:
        silence = self.get(agent_id).silences.get(phase)
        return silence is not None and silence.rounds > self._patience and not silence.is_patient

    def accepted(self, agent_id: str) -> None:
        """Notes an answer that counts. It is stored with the next change that matters."""
        standing = self.get(agent_id)
        faults = max(0.0, standing.faults - _FORGIVEN)
        self._known[agent_id] = msgspec.structs.replace(
            standing, accepted=standing.accepted + 1, faults=faults
        )
        if faults != standing.faults:
            self._changed.add(agent_id)

    def refused(self, agent_id: str, reason: str, *, is_fault: bool = True) -> None:
        """Notes a refused answer; repeated faults put the agent into quarantine.

        Args:
            agent_id: the agent.
            reason: of the refusal.
            is_fault: one of `FAULTS` counts as a fault of the agent.
        """
        standing = self.get(agent_id)
        refusals = standing.refusals | {reason: standing.refusals.get(reason, 0) + 1}
        standing = msgspec.structs.replace(standing, refusals=refusals)
        if is_fault and reason in FAULTS:
            faults = standing.faults + 1
            standing = msgspec.structs.replace(standing, faults=faults)
            after = self._config.after
            if after and faults >= after and standing.may_be_asked(self.round_id):
                standing = self._quarantined(agent_id, standing, reason)
        self.set(agent_id, standing)

    def _quarantined(self, agent_id: str, standing: Standing, reason: str) -> Standing:
        rounds = min(_LONGEST_QUARANTINE, self._config.rounds * 2**standing.quarantines)
        until = self.round_id + 1 + rounds
        log.warning(
            "agent %s is in quarantine until round %d: its answers were refused again and again, "
            "last for %s; 'fedge coordinator release' lets it back before",
            agent_id,
            until,
            reason,
            extra={"event": "quarantine"},
        )
        standing = standing.quarantined(f"refused repeatedly, last for {reason}", until)
        # On probation after it: one more fault is enough.
        return msgspec.structs.replace(
            standing,
            faults=self._config.after - 1.0,
            quarantines=min(standing.quarantines + 1, 30),
        )

    def answered(self, agent_id: str, phase: str) -> None:
        """Notes that an agent answered a phase, whatever it said."""
        standing = self._known.get(agent_id)
        if standing is not None and phase in standing.silences:
            silences = {name: s for name, s in standing.silences.items() if name != phase}
            self.set(agent_id, msgspec.structs.replace(standing, silences=silences))

    def slow(self, agent_id: str, phase: str) -> None:
        """Notes an update that came after a round which had not waited for it."""
        standing = self.get(agent_id)
        silence = standing.silences.get(phase)
        if silence is not None and silence.was_cut_short:
            patient = Silence(silence.rounds, 0, is_patient=True)
            silences = standing.silences | {phase: patient}
            self.set(agent_id, msgspec.structs.replace(standing, silences=silences))

    def silent(self, agent_id: str, phase: str, *, cut_short: bool = False) -> None:
        """Notes that an agent was online, was asked and said nothing: it is asked less often.

        Args:
            agent_id: the agent.
            phase: that it was asked for.
            cut_short: the round did not wait for it until its deadline.
        """
        standing = self.get(agent_id)
        before = standing.silences.get(phase)
        rounds = 1 + (before.rounds if before else 0)
        # It sits out 1, 3, 7 … rounds.
        until = self.round_id + 2 ** min(max(0, rounds - self._patience), _MOST_DOUBLINGS)
        silences = standing.silences | {phase: Silence(rounds, until, cut_short)}
        self.set(agent_id, msgspec.structs.replace(standing, silences=silences))
        if until > self.round_id + 1:
            log.info("%s did not answer (%s); asked again from round %d", agent_id, phase, until)

    def note_round(self, ended: Round, phase: str, held_up: Set[str] = frozenset()) -> None:
        """Notes which agents answered a phase, and which were online and did not.

        Args:
            ended: the round.
            phase: that it was in.
            held_up: agents that left it, or declined, after all others had long answered.
        """
        self.round_id = ended.round_id
        for agent_id in sorted(ended.counted):
            self.accepted(agent_id)
        silent = ended.waiting_for if ended.closed in ("deadline", "grace") else frozenset()
        silent |= held_up - ended.counted.keys()
        answered = ended.cohort - ended.unanswered - silent
        for agent_id in sorted(answered | {agent_id for agent_id, _ in ended.stale}):
            self.answered(agent_id, phase)
        # When most do not answer it is not they who are to blame.
        if 2 * len(ended.unanswered) <= len(ended.cohort):
            for agent_id in sorted(silent):
                self.silent(agent_id, phase, cut_short=ended.closed == "grace")

    def take_changed(self) -> tuple[tuple[str, Standing], ...]:
        """Returns the standings that changed since the last call, by agent id."""
        changed = tuple((agent_id, self._known[agent_id]) for agent_id in sorted(self._changed))
        self._changed.clear()
        return changed


_CLEAN = Standing()
