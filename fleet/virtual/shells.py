"""Simulated processes: shells that run the real machines over the in-memory link, and may die.

Each keeps apart what a power cut spares (the agent's spool and chunks, the coordinator's store)
and what it takes (the machine, the link with its queues, the running job). They follow
`edge_agent.service` and `coordinator.service` action by action.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from broker.link.link import LinkDown, LinkUp, Posted, Received, Will
from broker.memory.link import MemoryBroker, MemoryLink
from broker.service.events import (
    Connected,
    Disconnected,
    LinkAction,
    MessageArrived,
    Publish,
    Started,
    Stopping,
    Subscribe,
    Tick,
)
from fedge.console import log_less
from fedge.errors import LinkError
from fleet.virtual.event_trace import Began, Ended, Entry, Handled, Observer, Sent

log = logging.getLogger(__name__)

#: A wake-up comes this much after its moment, so that rounding can't make it too early.
_AFTER_S = 1e-6


def quiet() -> Callable[[], None]:
    """What goes wrong on purpose is no news; `-v` shows it. Returns what makes it news again."""
    return log_less(logging.CRITICAL, "edge_agent", "coordinator", __name__)


@dataclass
class World:
    """What all shells of a simulation share.

    Attributes:
        broker: and the clock.
        seed: of everything random.
        observers: are told of every entry.
        events: handled so far, by all machines.
    """

    broker: MemoryBroker
    seed: int
    observers: list[Observer] = field(default_factory=list)
    links: dict[MemoryLink, Shell] = field(default_factory=dict)
    events: int = 0

    def tell(self, entry: Entry) -> None:
        """Pass an entry on."""
        for observer in self.observers:
            observer(entry)


class Shell(ABC):
    """One process.

    Args:
        world: it lives in.
        name: for people, and in fault plans.
        client_id: at the broker.

    Attributes:
        alive: it runs.
        boot: counts its starts.
        not_sent: messages that the link refused.
        on_end: called when it dies, with its name.
    """

    #: The coordinator acknowledges what it has stored; agents' links do it themselves.
    manual_ack = False
    #: A Tick is in order whenever a wait ends, though the machine asks for it later by now.
    ticks_early = False

    def __init__(self, world: World, name: str, client_id: str) -> None:
        self.world = world
        self.name = name
        self.client_id = client_id
        self.alive = False
        self.boot = 0
        self.not_sent = 0
        self.on_end: Callable[[Shell], None] | None = None
        self._link: MemoryLink | None = None
        self._wake_s = inf
        self._doom: int | None = None

    @abstractmethod
    def boot_machine(self) -> Will:
        """Make the machine from what is on the disk; returns what the broker says if it dies."""

    @abstractmethod
    def handle(self, event: Any) -> Sequence[Any]:
        """The machine's answer."""

    @abstractmethod
    def wait_s(self) -> float:
        """Virtual seconds until the machine wants a Tick."""

    @abstractmethod
    def perform(self, action: Any) -> None:
        """Do an action that is not the link's."""

    def began(self) -> Began:
        """How its start is told."""
        return Began(self.now_s, self.name, self.boot)

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self.world.broker.now_s

    @property
    def link(self) -> MemoryLink:
        """Of this boot."""
        assert self._link is not None, "not started"
        return self._link

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot, subscribe and begin to connect."""
        if self.alive:
            return
        self.alive, self.boot, self._doom = True, self.boot + 1, None
        will = self.boot_machine()
        self._link = MemoryLink(
            self.world.broker,
            self.client_id,
            will=will,
            manual_ack=self.manual_ack,
            rng=Random(f"{self.world.seed}/{self.name}/{self.boot}/link"),  # noqa: S311
        )
        self.world.links[self._link] = self
        self.world.tell(self.began())
        self.feed(Started())
        if self.alive:
            self.link.open()

    def doom(self, after_actions: int) -> None:
        """Crash at the next event, after so many of its actions."""
        self._doom = after_actions

    def crash(self) -> None:
        """Lose power now: the volatile part is gone."""
        if self.alive:
            self.link.abort()
            self._end("crash")

    def stop(self, how: str = "stopped") -> None:
        """End in good order, as after SIGTERM."""
        if self.alive:
            self.feed(Stopping())
        if self.alive:
            self.settle()
            self.link.close()
            self._end(how)

    def settle(self) -> None:  # noqa: B027  most shells keep nothing back
        """Before the link closes: send what was kept back."""

    def _end(self, how: str) -> None:
        self.alive, self._wake_s = False, inf
        self.world.broker.set_ready(self.link, False)
        del self.world.links[self.link]
        self.world.tell(Ended(self.now_s, self.name, how))
        if self.on_end is not None and how == "crash":
            self.on_end(self)

    # -- events ---------------------------------------------------------------------------------

    def serve(self) -> None:
        """Take what the link has."""
        event = self.link.poll(0.0)
        if isinstance(event, Received):
            self.feed(MessageArrived(event.topic, event.payload))
            if self.alive:
                self.finish(event)
        elif isinstance(event, LinkUp):
            self.feed(Connected(event.max_payload_bytes, event.session_present))
        elif isinstance(event, LinkDown):
            self.feed(Disconnected())
        elif isinstance(event, Posted):
            self.feed(event.value)

    def finish(self, received: Received) -> None:
        """A message was dealt with."""
        self.link.acknowledge(received)

    def feed(self, event: Any) -> None:
        """Hand an event to the machine, do what it answers, and look at the clock."""
        self.world.events += 1
        actions: Sequence[Any] = self.handle(event)
        if self._doom is not None:
            actions = actions[: self._doom]
        if self.world.observers:
            self.world.tell(Handled(self.now_s, self.name, event, tuple(actions)))
        for action in actions:
            if isinstance(action, LinkAction):
                self.send(action)
            else:
                self.perform(action)
        if self._doom is not None:
            self.crash()
        if self.alive:
            self._arm()

    def send(self, action: LinkAction) -> None:
        """Do an action on the link."""
        if isinstance(action, Publish):
            self._publish(action)
        elif isinstance(action, Subscribe):
            self.link.subscribe(action.topic_filter)
        else:
            self.link.unsubscribe(action.topic_filter)

    def _publish(self, action: Publish) -> None:
        if self.world.observers:
            self.world.tell(Sent(self.now_s, self.name, action.topic, action.payload))
        payload = self.payload_of(action)
        try:
            self.link.publish(action.topic, payload, retain=action.retain, expiry_s=action.expiry_s)
        except LinkError as error:
            self.not_sent += 1
            log.error("%s: not sent to %s: %s", self.name, action.topic, error)

    def payload_of(self, action: Publish) -> bytes:
        """What goes on the wire; told is what the machine said."""
        return action.payload

    def later(self, wait_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in this boot's life, if it lasts that long."""
        broker = self.world.broker
        broker.at(broker.now_s + wait_s, self._if_same_boot, self.boot, function, arguments)

    def _if_same_boot(
        self, boot: int, function: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if self.alive and self.boot == boot:
            function(*arguments)

    def _arm(self) -> None:
        due_s = self.now_s + self.wait_s() + _AFTER_S
        if due_s < self._wake_s:
            self._wake_s = due_s
            self.later(due_s - self.now_s, self._wake, due_s)

    def _wake(self, due_s: float) -> None:
        if due_s != self._wake_s:
            return  # an earlier one took its place
        self._wake_s = inf
        if self.wait_s() <= 0 or self.ticks_early:
            self.feed(Tick())
        else:
            self._arm()
