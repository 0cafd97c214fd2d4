"""Simulated processes: shells that run the real machines over the in-memory link, and can crash.

Each separates what survives a power cut (the agent's spool and chunks, the coordinator's store)
from what does not (the machine, the link with its queues, the running job). Shells perform actions
like `edge_agent.service` and `coordinator.service`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from random import Random
from typing import Any, get_args

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
from edge_agent.machine.decoded_plan import CommonBlobs
from fedge.console import log_less
from fedge.errors import LinkError
from fleet.virtual.event_trace import Began, Ended, Entry, Handled, Observer, Sent

log = logging.getLogger(__name__)

_LINK_ACTIONS = frozenset(get_args(LinkAction))
#: Added to each wake-up, so that rounding cannot make it too early.
_AFTER_S = 1e-6


def silence_logs() -> Callable[[], None]:
    """Hides log lines about intended faults, unless -v is given; returns a function to undo it."""
    return log_less(logging.CRITICAL, "edge_agent", "coordinator", __name__)


@dataclass
class World:
    """State that all shells of a simulation share.

    Attributes:
        broker: in memory; holds the virtual clock.
        seed: of everything random.
        observers: called with every entry.
        links: shell of each link.
        events: number of events handled so far, by all machines.
        common: blobs that all agents hold, each in memory once.
    """

    broker: MemoryBroker
    seed: int
    observers: list[Observer] = field(default_factory=list)
    links: dict[MemoryLink, Shell] = field(default_factory=dict)
    events: int = 0
    common: CommonBlobs = field(default_factory=CommonBlobs.of_many)

    def tell(self, entry: Entry) -> None:
        """Passes an entry to all observers."""
        for observer in self.observers:
            observer(entry)


class Shell(ABC):
    """One simulated process.

    Args:
        world: of the simulation.
        name: in traces and fault plans.
        client_id: at the broker.

    Attributes:
        alive: whether the process runs.
        instance: number of its starts.
        link: of this instance; there is none before the first start.
        on_crash: called with the shell when the process crashed.
    """

    link: MemoryLink

    #: The coordinator acknowledges a message once it is stored; agents' links do it at once.
    manual_ack = False
    #: Send a Tick whenever a wait ends, even when the machine by now wants it later.
    ticks_early = False

    def __init__(self, world: World, name: str, client_id: str) -> None:
        self.world = world
        self._broker = world.broker
        self.name = name
        self.client_id = client_id
        self.alive = False
        self.instance = 0
        self.on_crash: Callable[[Shell], None] | None = None
        self._wake_s = inf
        self._actions_left: int | None = None

    @abstractmethod
    def make_machine(self) -> Will:
        """Makes the machine from the state on disk; returns its last will."""

    @abstractmethod
    def handle(self, event: Any) -> Sequence[Any]:
        """Returns the machine's actions for an event."""

    @abstractmethod
    def wait_s(self) -> float:
        """Returns the virtual seconds until the machine wants a Tick."""

    @abstractmethod
    def perform(self, action: Any) -> None:
        """Performs an action that is not the link's."""

    def began(self) -> Began:
        """Returns the trace entry of its start."""
        return Began(self.now_s, self.name, self.instance)

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self._broker.now_s

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the process: makes the machine, subscribes and begins to connect."""
        if self.alive:
            return
        self.alive, self.instance, self._actions_left = True, self.instance + 1, None
        will = self.make_machine()
        self.link = MemoryLink(
            self.world.broker,
            self.client_id,
            will=will,
            manual_ack=self.manual_ack,
            rng=partial(Random, f"{self.world.seed}/{self.name}/{self.instance}/link"),
        )
        self.world.links[self.link] = self
        self.world.tell(self.began())
        self.feed(Started())
        if self.alive:
            self.link.open()

    def crash_at_next_event(self, after_actions: int) -> None:
        """Crashes the process at the next event, after `after_actions` of its actions."""
        self._actions_left = after_actions

    def crash(self) -> None:
        """Cuts the power now: all but the disk is lost."""
        if self.alive:
            self.link.abort()
            self._end("crash")

    def stop(self, how: str = "stopped") -> None:
        """Ends the process in good order, like after SIGTERM."""
        if self.alive:
            self.feed(Stopping())
        if self.alive:
            self.settle()
            self.link.close()
            self._end(how)

    def settle(self) -> None:  # noqa: B027  most shells hold nothing back
        """Sends messages that were held back; called before the link closes."""

    def _end(self, how: str) -> None:
        self.alive, self._wake_s = False, inf
        self.world.broker.ready.pop(self.link, None)
        del self.world.links[self.link]
        self.world.tell(Ended(self.now_s, self.name, how))
        if self.on_crash is not None and how == "crash":
            self.on_crash(self)

    # -- events ---------------------------------------------------------------------------------

    def serve(self) -> None:
        """Handles the next event of the link."""
        event = self.link.poll(0.0)
        if isinstance(event, Received):
            self.feed(MessageArrived(event.topic, event.payload))
            if self.alive and self.manual_ack:
                self.finish(event)
        elif isinstance(event, LinkUp):
            self.feed(Connected(event.max_payload_bytes, event.session_present))
        elif isinstance(event, LinkDown):
            self.feed(Disconnected())
        elif isinstance(event, Posted):
            self.feed(event.value)

    def finish(self, received: Received) -> None:
        """Acknowledges a message that was handled."""
        self.link.acknowledge(received)

    def feed(self, event: Any) -> None:
        """Passes an event to the machine, performs its actions, and sets the next wake-up."""
        world = self.world
        world.events += 1
        actions: Sequence[Any] = self.handle(event)
        if self._actions_left is not None:
            actions = actions[: self._actions_left]
        if world.observers:
            world.tell(Handled(self.now_s, self.name, event, tuple(actions)))
        for action in actions:
            if type(action) in _LINK_ACTIONS:
                self.send(action)
            else:
                self.perform(action)
        if self._actions_left is not None:
            self.crash()
        if self.alive:
            self._arm()

    def send(self, action: LinkAction) -> None:
        """Performs an action on the link."""
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
            log.error("%s: message to %s not sent: %s", self.name, action.topic, error)

    def payload_of(self, action: Publish) -> bytes:
        """Returns the bytes to send; the trace has the machine's own payload."""
        return action.payload

    def later(self, wait_s: float, function: Callable[..., None], *arguments: Any) -> None:
        """Calls a function after `wait_s`, if this instance still runs then."""
        broker = self.world.broker
        broker.at(broker.now_s + wait_s, self._if_same_instance, self.instance, function, arguments)

    def _if_same_instance(
        self, instance: int, function: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if self.alive and self.instance == instance:
            function(*arguments)

    def _arm(self) -> None:
        now_s = self._broker.now_s
        due_s = now_s + self.wait_s() + _AFTER_S
        if due_s < self._wake_s:
            self._wake_s = due_s
            self.later(due_s - now_s, self._wake, due_s)

    def _wake(self, due_s: float) -> None:
        if due_s != self._wake_s:
            return  # replaced by an earlier wake-up
        self._wake_s = inf
        if self.wait_s() <= 0 or self.ticks_early:
            self.feed(Tick())
        else:
            self._arm()


class CohortProcess(Shell):
    """A process of several agents.

    Attributes:
        size: number of agents.
    """

    size: int
