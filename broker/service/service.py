"""Loop of the thread that owns a link and a state machine: events in, actions out."""

from __future__ import annotations

import logging
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import FrameType
from typing import Any

from broker.link.link import Link, LinkDown, LinkEvent, LinkUp, Posted, Received, Refused
from broker.service.connection_log import ConnectionLog
from broker.service.events import (
    BrokerRefused,
    Connected,
    Disconnected,
    LinkAction,
    MessageArrived,
    Publish,
    Started,
    Stopping,
    Subscribe,
)
from fedge.errors import LinkError, StoreError
from fedge.systemd import Supervisor

log = logging.getLogger(__name__)

#: Longest wait in `poll`, so that a lost wake-up costs no more than this.
_LONGEST_WAIT_S = 5.0


class StopRequested:
    """Posted by a signal handler."""


class Service(ABC):
    """Runs a state machine over a link.

    Args:
        link: opened by `run`, closed at its end.
        give_up_s: raise LinkError when the first connection takes longer; None waits for ever,
            since devices often start before their broker.
    """

    def __init__(self, link: Link, give_up_s: float | None = None) -> None:
        self._link = link
        self._give_up_s = give_up_s
        self._connected_once = False
        self._down_reason = ""
        self._connection_log = ConnectionLog(time.monotonic)
        self._stopping = False
        #: Whether another instance follows in this process when `run` has ended.
        self.starts_anew = False
        self._began_s = 0.0
        self._supervisor = Supervisor.of_this_process()
        #: Exceptions that the loop survived.
        self.failures = 0

    @abstractmethod
    def handle(self, event: Any) -> Sequence[Any]:
        """Returns the machine's actions for an event."""

    @abstractmethod
    def perform(self, action: Any) -> None:
        """Performs an action that is not the link's."""

    def wait_s(self) -> float:
        """Returns the seconds that `poll` may wait before the machine wants a `wake`."""
        return _LONGEST_WAIT_S

    def wake(self) -> None:  # noqa: B027  most machines do not watch the time
        """Called after every wait, for machines that watch the time."""

    def idle(self) -> None:  # noqa: B027  most services hold nothing back
        """Called before waiting for the next event, for services that write in batches."""

    def finish(self, received: Received) -> None:
        """Called when a message was handled; acknowledges it."""
        self._link.acknowledge(received)

    def stop(self) -> None:
        """Ends `run` after the current event."""
        self._stopping = True

    def run(self) -> None:
        """Serves until SIGTERM, SIGINT or `stop`; leaves the link closed.

        Raises:
            LinkError: the broker refused the first connection, or there was none in `give_up_s`.
        """
        restore = self._catch_signals()
        try:
            self.begin()
            self._supervisor.ready()
            while not self._stopping:
                self._supervisor.alive()
                event = self._link.poll(0.0)
                if event is None:
                    self.idle()
                    event = self._link.poll(self._supervisor.pause_s(self.pause_s()))
                self.take(event)
            if not self.starts_anew:
                self._supervisor.stopping()
            self.end()
        finally:
            self._link.close()
            for number, handler in restore:
                signal.signal(number, handler)

    # `run` in three parts, for a thread that serves many links.

    def begin(self) -> None:
        """Starts the machine and begins to connect."""
        self.dispatch(Started())
        self._link.open()
        self._began_s = time.monotonic()

    def take(self, event: LinkEvent | None) -> None:
        """Handles an event that `poll` returned (None: no event), and calls `wake`.

        Raises:
            LinkError: see `run`.
            StoreError: a durable write failed.
        """
        self._step(event)
        self._check_patience(time.monotonic() - self._began_s)

    def end(self) -> None:
        """Passes `Stopping` to the machine; the link is still open."""
        self.dispatch(Stopping())
        self.idle()

    def pause_s(self) -> float:
        """Returns the seconds to wait for an event before `take(None)` is due."""
        return min(self.wait_s(), self._patience_s(time.monotonic() - self._began_s))

    def dispatch(self, event: Any) -> None:
        """Passes an event to the machine and performs its actions."""
        for action in self.handle(event):
            self.do(action)

    def do(self, action: Any) -> None:
        """Performs one action, on the link or not."""
        if isinstance(action, LinkAction):
            self.send(action)
        else:
            self.perform(action)

    def _step(self, event: LinkEvent | None) -> None:
        try:
            self._take(event)
            self.wake()
        except (LinkError, StoreError):
            raise
        except Exception:
            # One event must not end a service: nobody may be near to restart it.
            self.failures += 1
            log.exception("event dropped", extra={"event": "service_failure"})

    def _take(self, event: LinkEvent | None) -> None:
        match event:
            case None:
                return
            case Received():
                self._receive(event)
            case LinkUp(session_present, max_payload_bytes, notice):
                self._connected_once, self._down_reason = True, ""
                self._supervisor.status("connected")
                self._connection_log.up(notice, session_present=session_present)
                self.dispatch(Connected(max_payload_bytes, session_present))
            case LinkDown(reason, refused):
                self._went_down(reason, refused)
                self.dispatch(Disconnected())
            case Refused(topic, reason, next_step, is_subscription):
                self._connection_log.refused(event)
                self.dispatch(BrokerRefused(topic, f"{reason}: {next_step}", is_subscription))
            case Posted(StopRequested()):
                log.info("stopping")
                self.stop()
            case Posted(value):
                self.dispatch(value)

    def _receive(self, message: Received) -> None:
        try:
            self.dispatch(MessageArrived(message.topic, message.payload))
        except (LinkError, StoreError):
            raise
        except Exception:
            self.finish(message)  # or the message would block later ones and be redelivered
            raise
        self.finish(message)

    def _went_down(self, reason: str, refused: bool) -> None:
        if refused and not self._connected_once:
            raise LinkError(reason)
        self._connection_log.down(reason)
        self._supervisor.status(f"{reason}; trying again")
        self._down_reason = reason

    def _patience_s(self, waited_s: float) -> float:
        if self._connected_once or self._give_up_s is None:
            return _LONGEST_WAIT_S
        return min(_LONGEST_WAIT_S, max(0.0, self._give_up_s - waited_s))

    def _check_patience(self, waited_s: float) -> None:
        if self._connected_once or self._give_up_s is None or waited_s < self._give_up_s:
            return
        raise LinkError(f"{self._down_reason or 'not connected'}: gave up after {waited_s:.0f} s")

    def send(self, action: LinkAction) -> None:
        """Performs an action on the link."""
        if isinstance(action, Publish):
            try:
                self._link.publish(
                    action.topic, action.payload, retain=action.retain, expiry_s=action.expiry_s
                )
            except LinkError as error:
                log.error(
                    "message to %s not sent: %s", action.topic, error, extra={"event": "not_sent"}
                )
        elif isinstance(action, Subscribe):
            self._link.subscribe(action.topic_filter)
        else:
            self._link.unsubscribe(action.topic_filter)

    def _catch_signals(self) -> list[tuple[int, Any]]:
        def request_stop(_number: int, _frame: FrameType | None) -> None:
            if self._stopping:  # a second Ctrl-C ends at once
                raise KeyboardInterrupt
            self._link.post(StopRequested())

        numbers = (signal.SIGTERM, signal.SIGINT)
        return [(number, signal.signal(number, request_stop)) for number in numbers]
