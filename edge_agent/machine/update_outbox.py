"""The update that has no receipt yet: kept, sent again, settled; and what rounding lost of it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection
from random import Random

from broker.protocol import blobs
from broker.protocol.messages import Receipt, Resend, RoundPlan
from broker.protocol.topics import Topics, UpdateTopic
from broker.service.events import Publish
from edge_agent.machine.events import Action, ForgetResidual, SettleUpdate, SpoolUpdate
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from learning.vector.parameters import F32

log = logging.getLogger(__name__)

#: Without a receipt the update is sent again after so long, doubled each time, with jitter.
_RESEND_S = 30.0
_LONGEST_RESEND_S = 600.0


class Outbox:
    """Holds at most one update: a device works on one round at a time.

    Args:
        topics: of the federation.
        agent_id: of the device.
        memory: of earlier boots.
        rng: for jitter.

    Attributes:
        residual: what the next update must make up for: lost by rounding in the last one that
            counted; float32, shape (P,).
    """

    def __init__(self, topics: Topics, agent_id: str, memory: AgentMemory, rng: Random) -> None:
        self._topics = topics
        self._agent_id = agent_id
        self._rng = rng
        self._pending = memory.pending
        self.residual: F32 | None = memory.residual
        self._residual_of = memory.fingerprint
        self._chunk_bytes = blobs.CHUNK_BYTES
        self._is_connected = True
        self._resends = 0
        self._due_s = -math.inf

    def connected(self, chunk_bytes: int, now_s: float) -> None:
        """The link is up: the plan will come again, and have the update sent.

        Args:
            chunk_bytes: that a message of this connection may carry.
            now_s: the time.
        """
        self._chunk_bytes = chunk_bytes
        self._is_connected = True
        self._resends = 0
        self._due_s = now_s + self._pause_s()

    def disconnected(self) -> None:
        """The link is down: what is sent now would only wait in its queue, time and again."""
        self._is_connected = False

    def answers(self, plan: RoundPlan | None) -> bool:
        """Whether the update is of this plan's round."""
        pending = self._pending
        return (
            plan is not None
            and pending is not None
            and plan.state == "open"
            and (plan.session, plan.round_id) == (pending.session, pending.round_id)
        )

    def next_s(self, plan: RoundPlan | None) -> float | None:
        """When `send_when_due` has something to do; None when never."""
        return self._due_s if self._is_connected and self.answers(plan) else None

    def put(self, update: SpooledUpdate, now_s: float) -> list[Action]:
        """Keep a new update, and send it: now, or with the plan that comes on connecting."""
        self._pending = update
        self._resends = 0
        return [SpoolUpdate(update), *self._send(update, now_s)]

    def new_plan(self, plan: RoundPlan, now_s: float) -> list[Action]:
        """Another plan came: an update of a round that is over has no more use."""
        pending = self._pending
        # The evaluation of the same round may overtake the receipt; a later round may not.
        if pending is not None and plan.session != pending.session:
            return [*self._forget_residual(), *self._drop(pending, "the run is another")]
        if pending is not None and plan.round_id > pending.round_id:
            # It may have counted. Its residual is right if it did, and a rounding error if not;
            # the one before would be made up for twice.
            log.info("round %d is over and no receipt came", pending.round_id)
            return self._settle(pending, accepted=True)
        if plan.task == "train":
            # Announced again: we or the coordinator have a new connection, and what we sent may be
            # lost. Not before: a broker that forgot everything takes an update and gives it to
            # nobody until the coordinator has subscribed, and only then does the plan come.
            self._due_s = now_s
        return self.send_when_due(plan, now_s)

    def gone_back(self, plan: RoundPlan) -> list[Action]:
        """The coordinator is at an earlier round than before: of later ones it knows nothing."""
        pending = self._pending
        if pending is None or pending.round_id <= plan.round_id:
            return []
        return self._drop(pending, "the coordinator is at an earlier one")

    def send_when_due(self, plan: RoundPlan | None, now_s: float) -> list[Action]:
        """Brokers acknowledge and lose; the coordinator counts once, however often it comes."""
        pending = self._pending
        if pending is None or not self.answers(plan) or now_s < self._due_s:
            return []
        return self._send(pending, now_s)

    def inbox(self, message: Receipt | Resend, now_s: float) -> list[Action]:
        """The coordinator's answer."""
        pending = self._pending
        if pending is None or (message.session, message.round_id) != (
            pending.session,
            pending.round_id,
        ):
            log.debug("message about round %d, of which we keep nothing", message.round_id)
            return []
        if isinstance(message, Receipt):
            return self._receipt(message, pending)
        if hashlib.sha256(pending.frame).hexdigest() != message.sha256:
            return []
        log.info("round %d: %d chunks again", message.round_id, len(message.chunks))
        return self._send(pending, now_s, set(message.chunks))

    def model_is(self, fingerprint: str) -> list[Action]:
        """The model that is trained from now on: what another left behind is dropped."""
        actions: list[Action] = []
        if self._residual_of != fingerprint:
            actions += self._forget_residual()
        if self._pending is not None and self._pending.fingerprint != fingerprint:
            actions += self._drop(self._pending, "the model is another")
        return actions

    def _forget_residual(self) -> list[Action]:
        if self.residual is None:
            return []
        self.residual = None
        return [ForgetResidual()]

    def _drop(self, pending: SpooledUpdate, why: str) -> list[Action]:
        log.info("update of round %d dropped: %s", pending.round_id, why)
        return self._settle(pending, accepted=False)

    def _send(
        self, pending: SpooledUpdate, now_s: float, only: Collection[int] = ()
    ) -> list[Action]:
        if not self._is_connected:
            return []
        self._due_s = now_s + self._pause_s()
        self._resends += 1
        _, payloads = blobs.split(pending.frame, self._chunk_bytes)
        # Asked for by a number there is none of (another connection cut otherwise): all of them.
        wanted = [n for n in range(len(payloads)) if n in only] or range(len(payloads))
        return [
            Publish(
                self._topics.name(UpdateTopic(self._agent_id, pending.round_id, n)),
                payloads[n],
                expiry_s=math.ceil(pending.deadline_s),
            )
            for n in wanted
        ]

    def _pause_s(self) -> float:
        pause = min(_LONGEST_RESEND_S, _RESEND_S * 2.0**self._resends)
        return pause * self._rng.uniform(1.0, 1.5)

    def _receipt(self, receipt: Receipt, pending: SpooledUpdate) -> list[Action]:
        if (receipt.boot, receipt.attempt) != (pending.boot, pending.attempt):
            return []
        if receipt.accepted:
            log.info("round %d: update counted", receipt.round_id)
        else:
            log.warning(
                "round %d: update refused (%s): %s",
                receipt.round_id,
                receipt.reason,
                receipt.detail,
                extra={"event": "update_refused", "reason": receipt.reason},
            )
        return self._settle(pending, accepted=receipt.accepted)

    def _settle(self, pending: SpooledUpdate, *, accepted: bool) -> list[Action]:
        self._pending = None
        if accepted:
            self.residual, self._residual_of = pending.residual, pending.fingerprint
        return [SettleUpdate(accepted)]
