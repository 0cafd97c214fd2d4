"""Watch on the broker: what it refuses to this device, and what is not retained there."""

from __future__ import annotations

import logging
import math
from random import Random

from broker.protocol.messages import CoordinatorStatus, ProgramManifest
from broker.protocol.topics import Topics, UpdateTopic
from broker.service.events import Publish

log = logging.getLogger(__name__)

#: Retained messages come at once; their absence is told after so long.
_ABSENCE_S = 5.0
#: Seconds until updates that were refused are tried again, with an empty message; doubled each
#: time, with jitter. A new connection tries at once.
_AGAIN_S = 60.0
_LONGEST_AGAIN_S = 900.0
#: Without a refusal for so long, the empty message was taken.
_ANSWER_S = 10.0


class PublishRights:
    """Notes refused updates, and tries now and then whether they are taken again.

    Only MQTT 5 tells of refused messages.

    Args:
        topics: of the federation.
        agent_id: of the device.
        rng: for jitter.

    Attributes:
        refusal: why updates are refused, with the topics and the next step; empty: they are not.
        due_s: when `tick` has something to do; infinite: never.
    """

    def __init__(self, topics: Topics, agent_id: str, rng: Random) -> None:
        self.refusal = ""
        self.due_s = math.inf
        self._topics = topics
        self._agent_id = agent_id
        self._rng = rng
        self._failures = 0
        #: It is due when the message that tries was taken, else when to send that message.
        self._is_trying = False

    def refused(self, reason: str, now_s: float) -> bool:
        """Takes a refusal; returns whether updates were taken before, as far as known."""
        is_new = not self.refusal
        updates = f"{self._topics.root}agents/{self._agent_id}/updates/#"
        self.refusal = f"the broker refuses messages on {updates}: {reason}"
        if is_new or self._is_trying:
            pause_s = min(_LONGEST_AGAIN_S, _AGAIN_S * 2.0**self._failures)
            self._failures += 1
            self.due_s, self._is_trying = now_s + pause_s * self._rng.uniform(1.0, 1.5), False
        return is_new

    def connected(self, now_s: float) -> None:
        """Tries refused updates soon: a new connection may have other rights."""
        if self.refusal:
            self.due_s = now_s

    def disconnected(self) -> None:
        """Stops waiting: no answer comes any more."""
        self.due_s, self._is_trying = math.inf, False

    def tick(self, now_s: float) -> tuple[Publish | None, bool]:
        """Returns a message that tries the right, and whether updates are taken again."""
        if now_s < self.due_s:
            return None, False
        if self._is_trying:
            self.refusal, self._failures, self.due_s, self._is_trying = "", 0, math.inf, False
            return None, True
        self.due_s, self._is_trying = now_s + _ANSWER_S, True
        # Of round 0, which there is none of: a coordinator does nothing about it.
        topic = self._topics.name(UpdateTopic(self._agent_id, 0, 0))
        return Publish(topic, b"", expiry_s=1), False


class Absence:
    """Logs what should be retained at the broker and is not, some seconds after connecting.

    Args:
        topics: of the federation.

    Attributes:
        due_s: when to look; infinite: never.
    """

    def __init__(self, topics: Topics) -> None:
        self.due_s = math.inf
        self._root = topics.root
        self._told = ""

    def connected(self, now_s: float) -> None:
        """Looks after a moment."""
        self.due_s = now_s + _ABSENCE_S

    def disconnected(self) -> None:
        """Looks after the next connection."""
        self.due_s = math.inf

    def tell(self, coordinator: CoordinatorStatus | None, manifest: ProgramManifest | None) -> None:
        """Logs what is absent, once until it changes."""
        self.due_s = math.inf
        text, level = self._text(coordinator, manifest), logging.WARNING
        if coordinator is not None and coordinator.state == "offline":
            text, level = "the coordinator is offline: waiting for it", logging.INFO
        if text and text != self._told:
            log.log(level, "%s", text, extra={"event": "absence"})
        self._told = text

    def _text(self, coordinator: CoordinatorStatus | None, manifest: ProgramManifest | None) -> str:
        if coordinator is None:
            return (
                f"nothing is retained on {self._root}coordinator/status at this broker: is "
                "`federation` right, was the coordinator ever started, may this client read there? "
                "(fedge agent doctor)"
            )
        if manifest is None:
            return (
                f"the coordinator is online, but nothing is retained on {self._root}program: may "
                "this client read there? (fedge agent doctor)"
            )
        return ""
