"""Outbox: the pending update, sent until its receipt, and the device state that goes with it."""

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
from edge_agent.machine.device_state import DeviceState
from edge_agent.machine.events import Action, ForgetState, ResolvePendingUpdate, SpoolUpdate
from edge_agent.machine.pending_update import AgentMemory, SpooledUpdate
from edge_agent.machine.plan_order import is_within_staleness

log = logging.getLogger(__name__)

#: Without a receipt the update is sent again after so long, doubled each time, with jitter.
_RESEND_S = 30.0
_LONGEST_RESEND_S = 600.0
#: The chunk with the header: enough for the coordinator to say whether the update counted.
_FIRST_CHUNK = frozenset({0})


class Outbox:
    """Holds at most one pending update, and the settled state of the one before.

    Args:
        topics: of the federation.
        agent_id: of the device.
        memory: of earlier instances.
        rng: for jitter.
    """

    def __init__(self, topics: Topics, agent_id: str, memory: AgentMemory, rng: Random) -> None:
        self._topics = topics
        self._agent_id = agent_id
        self._rng = rng
        self._pending = memory.pending
        self._settled = memory.settled
        #: A job trains from the pending update's next state.
        self._is_state_used = False
        self._chunk_bytes = blobs.CHUNK_BYTES
        self._is_connected = True
        #: Since the link came up.
        self._was_sent = False
        self._resends = 0
        self._due_s = -math.inf

    @property
    def state(self) -> DeviceState:
        """The device's state: the pending update's, which very likely counts, or the settled."""
        if self._pending is not None:
            return self._pending.state
        return self._settled or DeviceState()

    @property
    def settled(self) -> DeviceState | None:
        """The state of the last update that counted; None when there is none."""
        return self._settled

    def take_state(self) -> DeviceState:
        """Returns the state that a training begins from; a receipt cannot take it back then."""
        self._is_state_used = self._pending is not None
        return self.state

    def connected(self, chunk_bytes: int, now_s: float) -> None:
        """The link is up: the plan will come again, and have the update sent.

        Args:
            chunk_bytes: that a message of this connection may carry.
            now_s: the time.
        """
        self._chunk_bytes = chunk_bytes
        self._is_connected = True
        self._was_sent = False
        self._resends = 0
        self._due_s = now_s + self._pause_s()

    def disconnected(self) -> None:
        """The link is down: what is sent now would only wait in its queue, time and again."""
        self._is_connected = False

    def is_answer_to(self, plan: RoundPlan) -> bool:
        """Whether the pending update is the answer to a plan."""
        pending = self._pending
        return pending is not None and (
            (plan.session, plan.round_id, plan.phase_name, plan.version)
            == (pending.session, pending.round_id, pending.phase, pending.version)
        )

    def next_s(self, plan: RoundPlan | None) -> float:
        """Returns the time at which `send_when_due` is due; infinite: it is not."""
        if self._pending is None:
            return math.inf  # asked after every event
        return self._due_s if self._is_connected and self._is_open_to(plan) else math.inf

    def put(self, update: SpooledUpdate, now_s: float) -> list[Action]:
        """Keeps a new update and sends it: now, or with the plan that comes on connecting."""
        actions = [] if self._pending is None else self._resolve(self._pending, accepted=True)
        self._pending = update
        self._resends = 0
        return [*actions, SpoolUpdate(update), *self._send(update, now_s)]

    def new_plan(self, plan: RoundPlan, now_s: float) -> list[Action]:
        """Resolves or sends the pending update, as a new plan demands."""
        pending = self._pending
        if pending is None:
            return []
        if plan.session != pending.session:
            return self._drop(pending, "the run is another")
        if plan.state == "finished":
            log.info("the federation has finished; round %d has no receipt", pending.round_id)
            return self._resolve(pending, accepted=True)
        is_again = (plan.round_id, plan.version) == (pending.round_id, pending.version)
        if is_again or self._asks_only(pending, plan) or not self._was_sent:
            # Announced again: we or the coordinator have a new connection, and what was sent may be
            # lost. Not before: a broker that forgot everything takes an update and gives it to
            # nobody until the coordinator has subscribed, and only then does the plan come.
            self._due_s = now_s
        return self.send_when_due(plan, now_s)

    def gone_back(self, plan: RoundPlan) -> list[Action]:
        """The coordinator is at an earlier round than before: it has lost the later ones."""
        pending = self._pending
        if pending is None or pending.round_id <= plan.round_id:
            return []
        return self._drop(pending, "the coordinator is at an earlier one")

    def send_when_due(self, plan: RoundPlan | None, now_s: float) -> list[Action]:
        """Sends the update again: brokers acknowledge and lose; the coordinator counts once."""
        pending = self._pending
        if pending is None or plan is None or not self._is_open_to(plan) or now_s < self._due_s:
            return []
        return self._send(pending, now_s, _FIRST_CHUNK if self._asks_only(pending, plan) else ())

    def inbox(self, message: Receipt | Resend, now_s: float) -> list[Action]:
        """Takes the coordinator's answer."""
        pending = self._pending
        if pending is None or (message.session, message.round_id) != (
            pending.session,
            pending.round_id,
        ):
            log.debug("message about round %d, which has no pending update", message.round_id)
            return []
        if isinstance(message, Receipt):
            return self._receipt(message, pending)
        if hashlib.sha256(pending.frame).hexdigest() != message.sha256:
            return []
        facts = {"sender": "coordinator"}
        log.info("round %d: %d chunks again", message.round_id, len(message.chunks), extra=facts)
        return self._send(pending, now_s, set(message.chunks))

    def refused(self, round_id: int) -> list[Action]:
        """Drops the pending update of a round: the broker does not take it."""
        pending = self._pending
        if pending is None or pending.round_id != round_id:
            return []
        log.info("update of round %d dropped: the broker refuses it", round_id)
        return self._resolve(pending, accepted=self._is_state_used)

    def model_is(self, model: str) -> list[Action]:
        """Drops the state of every other model than the one that is trained from now on."""
        actions: list[Action] = []
        if self._settled is not None and self._settled.model != model:
            self._settled = None
            actions.append(ForgetState())
        if self._pending is not None and self._pending.state.model != model:
            actions += self._drop(self._pending, "the model is another")
        return actions

    def _is_open_to(self, plan: RoundPlan | None) -> bool:
        """Whether the coordinator of a plan can say something of the pending update."""
        pending = self._pending
        return (
            plan is not None
            and pending is not None
            and plan.state == "open"
            and plan.session == pending.session
            and plan.round_id >= pending.round_id
        )

    def _asks_only(self, pending: SpooledUpdate, plan: RoundPlan) -> bool:
        """Whether the round is over: the update counted before, or never will."""
        return plan.round_id > pending.round_id and not is_within_staleness(pending.version, plan)

    def _drop(self, pending: SpooledUpdate, why: str) -> list[Action]:
        log.info("update of round %d dropped: %s", pending.round_id, why)
        return self._resolve(pending, accepted=False)

    def _send(
        self, pending: SpooledUpdate, now_s: float, only: Collection[int] = ()
    ) -> list[Action]:
        if not self._is_connected:
            return []
        self._due_s = now_s + self._pause_s()
        self._resends += 1
        self._was_sent = True
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
        if (receipt.agent_instance, receipt.attempt) != (pending.agent_instance, pending.attempt):
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
        return self._resolve(pending, accepted=receipt.accepted or self._is_state_used)

    def _resolve(self, pending: SpooledUpdate, *, accepted: bool) -> list[Action]:
        self._pending = None
        self._is_state_used = False
        if accepted:
            self._settled = pending.state
        return [ResolvePendingUpdate(accepted)]
