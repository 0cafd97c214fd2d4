"""The update that has no receipt yet: kept, sent again, settled; and what rounding lost of it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection
from random import Random

from broker import blobs
from broker.machine import Publish
from broker.messages import Receipt, Resend, RoundPlan
from broker.topics import Topics, UpdateTopic
from edge_agent.events import Action, SettleUpdate, SpoolUpdate
from edge_agent.spool import AgentMemory, SpooledUpdate
from models.parameters import F32

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
        chunk_bytes: that a message of this connection may carry.
    """

    def __init__(self, topics: Topics, agent_id: str, memory: AgentMemory, rng: Random) -> None:
        self._topics = topics
        self._agent_id = agent_id
        self._rng = rng
        self._pending = memory.pending
        self.residual: F32 | None = memory.residual
        self._residual_of = memory.fingerprint
        self.chunk_bytes = blobs.CHUNK_BYTES
        self._resends = 0
        self._due_s = -math.inf

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
        return self._due_s if self.answers(plan) else None

    def put(self, update: SpooledUpdate, now_s: float) -> list[Action]:
        """Keep and send a new update."""
        self._pending = update
        self._resends = 0
        return [SpoolUpdate(update), *self._send(update, now_s)]

    def new_plan(self, plan: RoundPlan, now_s: float) -> list[Action]:
        """Another plan came: an update of a round that is over has no more use."""
        pending = self._pending
        # The evaluation of the same round may overtake the receipt; a later round may not.
        if pending is not None and plan.session != pending.session:
            return self.forget_model()  # of another run
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
        pending = self._pending
        kept_of = self._residual_of if pending is None else pending.fingerprint
        actions = self.forget_model() if kept_of != fingerprint else []
        self._residual_of = fingerprint
        return actions

    def forget_model(self) -> list[Action]:
        """What earlier rounds left belongs to a model that is no longer trained."""
        self.residual = None
        pending = self._pending
        if pending is None:
            return []
        log.info("update of round %d dropped: the model or the run is another", pending.round_id)
        return self._settle(pending, accepted=False)

    def _send(
        self, pending: SpooledUpdate, now_s: float, only: Collection[int] = ()
    ) -> list[Action]:
        pause = min(_LONGEST_RESEND_S, _RESEND_S * 2.0**self._resends)
        self._resends += 1
        self._due_s = now_s + pause * self._rng.uniform(1.0, 1.5)
        _, payloads = blobs.split(pending.frame, self.chunk_bytes)
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
