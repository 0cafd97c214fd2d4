"""The loop that owns a link and a machine, over the in-memory link in virtual time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from broker.link.link import LinkDown, Will
from broker.memory.link import MemoryBroker, MemoryLink, PerfectRoute
from broker.service.events import (
    Connected,
    Disconnected,
    MessageArrived,
    Publish,
    Started,
    Stopping,
    Subscribe,
    Unsubscribe,
)
from broker.service.service import Service, StopRequested
from fedge.errors import LinkError, StoreError
from tests.conftest import nothing_comes, take, wait_up

MAX_PAYLOAD = 1 << 20


class Recorder(Service):
    """A machine that writes down what happens and answers as it is told."""

    def __init__(
        self,
        link: MemoryLink,
        answer: Callable[[Any], Sequence[Any]] = lambda event: [],
        give_up_s: float | None = None,
    ) -> None:
        super().__init__(link, give_up_s)
        self.events: list[Any] = []
        self.performed: list[Any] = []
        self._answer = answer

    def handle(self, event: Any) -> Sequence[Any]:
        self.events.append(event)
        if isinstance(event, Started):
            return [Subscribe("in/#")]
        return self._answer(event)

    def perform(self, action: Any) -> None:
        self.performed.append(action)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def other(broker: MemoryBroker) -> MemoryLink:
    """Another client, which hears what the service says."""
    link = MemoryLink(broker, "other")
    link.subscribe("out/#")
    link.open()
    wait_up(link)
    return link


def stop_at(broker: MemoryBroker, link: MemoryLink, when_s: float) -> None:
    broker.at(when_s, link.post, StopRequested())


def test_it_starts_connects_takes_messages_and_stops(
    broker: MemoryBroker, other: MemoryLink
) -> None:
    link = MemoryLink(broker, "me")
    service = Recorder(link)
    broker.at(1.0, other.publish, "in/a", b"x")
    stop_at(broker, link, 2.0)
    service.run()
    assert service.events == [
        Started(),
        Connected(MAX_PAYLOAD, session_present=False),
        MessageArrived("in/a", b"x"),
        Stopping(),
    ]
    assert service.failures == 0


def test_what_the_machine_answers_is_done_in_order(broker: MemoryBroker, other: MemoryLink) -> None:
    link = MemoryLink(broker, "me")

    def answer(event: Any) -> Sequence[Any]:
        if isinstance(event, Connected):
            return [Publish("out/1", b"1"), "load", Publish("out/2", b"2"), Unsubscribe("in/#")]
        return []

    service = Recorder(link, answer)
    broker.at(1.0, other.publish, "in/a", b"nobody listens any more")
    stop_at(broker, link, 2.0)
    service.run()
    assert [(m.topic, m.payload) for m in take(other, 2)] == [("out/1", b"1"), ("out/2", b"2")]
    assert service.performed == ["load"]
    assert not any(isinstance(event, MessageArrived) for event in service.events)


def test_stopping_says_goodbye_and_then_closes_without_a_will(
    broker: MemoryBroker, other: MemoryLink
) -> None:
    link = MemoryLink(broker, "me", will=Will("out/will", b"vanished"))
    goodbye = Publish("out/status", b"offline", retain=True)
    service = Recorder(link, lambda event: [goodbye] if isinstance(event, Stopping) else [])
    stop_at(broker, link, 1.0)
    service.run()
    assert [m.topic for m in take(other)] == ["out/status"]
    assert nothing_comes(other, 100.0)
    with pytest.raises(LinkError, match="closed"):
        link.publish("out/x", b"")


def test_an_exception_in_the_machine_is_survived_counted_and_logged(
    broker: MemoryBroker, other: MemoryLink, caplog: pytest.LogCaptureFixture
) -> None:
    link = MemoryLink(broker, "me")

    def answer(event: Any) -> Sequence[Any]:
        if isinstance(event, MessageArrived) and event.payload == b"bad":
            raise ZeroDivisionError("a defect")
        return [Publish("out/ok", event.payload)] if isinstance(event, MessageArrived) else []

    service = Recorder(link, answer)
    for number, payload in enumerate([b"bad", b"good", b"bad", b"better"]):
        broker.at(1.0 + number, other.publish, "in/a", payload)
    stop_at(broker, link, 9.0)
    service.run()
    assert service.failures == 2
    assert [m.payload for m in take(other, 2)] == [b"good", b"better"]
    assert service.events[-1] == Stopping()
    assert caplog.text.count("ZeroDivisionError: a defect") == 2


def test_a_message_that_ends_in_an_exception_holds_up_none_behind_it() -> None:
    broker = MemoryBroker(receive_maximum=1)
    link, other = MemoryLink(broker, "me", manual_ack=True), MemoryLink(broker, "other")
    other.open()
    wait_up(other)

    def answer(event: Any) -> Sequence[Any]:
        if isinstance(event, MessageArrived) and event.payload == b"bad":
            raise ZeroDivisionError("a defect")
        return []

    service = Recorder(link, answer)
    for number, payload in enumerate([b"bad", b"good"]):
        broker.at(1.0 + number, other.publish, "in/a", payload)
    stop_at(broker, link, 9.0)
    service.run()
    arrived = [event.payload for event in service.events if isinstance(event, MessageArrived)]
    assert arrived == [b"bad", b"good"]


@pytest.mark.parametrize("error", [StoreError("disk full"), LinkError("gone")])
def test_what_cannot_be_survived_ends_it_and_closes_the_link(
    broker: MemoryBroker, other: MemoryLink, error: Exception
) -> None:
    link = MemoryLink(broker, "me")

    def answer(event: Any) -> Sequence[Any]:
        if isinstance(event, MessageArrived):
            raise error
        return []

    broker.at(1.0, other.publish, "in/a", b"x")
    with pytest.raises(type(error), match=str(error)):
        Recorder(link, answer).run()
    with pytest.raises(LinkError, match="closed"):
        link.publish("out/x", b"")


def test_a_message_too_large_to_send_is_told_and_the_rest_is_sent(
    broker: MemoryBroker, other: MemoryLink, caplog: pytest.LogCaptureFixture
) -> None:
    link = MemoryLink(broker, "me")
    large = Publish("out/large", b"x" * (MAX_PAYLOAD + 1))

    def answer(event: Any) -> Sequence[Any]:
        return [large, Publish("out/small", b"x")] if isinstance(event, Connected) else []

    service = Recorder(link, answer)
    stop_at(broker, link, 1.0)
    service.run()
    assert [m.topic for m in take(other)] == ["out/small"]
    assert "message to out/large not sent" in caplog.text
    assert service.failures == 0


class RefusingLink(MemoryLink):
    """A broker that says no to the login."""

    def open(self) -> None:
        self._emit(LinkDown("broker 10.0.0.1:1883 refused us: not authorised", refused=True))


def test_a_login_that_is_refused_at_first_ends_it(broker: MemoryBroker) -> None:
    service = Recorder(RefusingLink(broker, "me"))
    with pytest.raises(LinkError, match="not authorised"):
        service.run()
    assert service.events == [Started()]  # no goodbye: nobody would hear it


def test_a_refusal_after_the_first_connection_is_waited_out(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    link = MemoryLink(broker, "me")
    service = Recorder(link)
    down = LinkDown("broker refused us: being restarted", refused=True)
    for when_s in (1.0, 2.0, 3.0):
        broker.at(when_s, link._emit, down)
    stop_at(broker, link, 4.0)
    with caplog.at_level("WARNING"):
        service.run()
    assert service.events[-1] == Stopping()
    assert caplog.text.count("being restarted; trying again") == 1  # the same reason once


class Unreachable(PerfectRoute):
    def connect_s(self, now_s: float, client_id: str) -> float | None:
        return None


def test_it_gives_up_when_the_broker_was_not_reached_in_time() -> None:
    link = MemoryLink(MemoryBroker(Unreachable()), "me")
    with pytest.raises(LinkError, match="cannot reach the broker: gave up after"):
        Recorder(link, give_up_s=0.05).run()


def test_once_connected_it_never_gives_up(broker: MemoryBroker) -> None:
    link = MemoryLink(broker, "me")
    service = Recorder(link, give_up_s=0.01)
    broker.at(1.0, link.interrupt)
    stop_at(broker, link, 5000.0)
    service.run()
    expected = [Started, Connected, Disconnected, Connected, Stopping]
    assert [type(event) for event in service.events] == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_the_handlers_are_put_back(
    broker: MemoryBroker, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    link = MemoryLink(broker, "me")
    service = Recorder(link)
    broker.at(1.0, os.kill, os.getpid(), number)
    service.run()
    assert service.events[-1] == Stopping()
    assert signal.getsignal(number) is before


def test_a_message_is_acknowledged_once_it_was_dealt_with(
    broker: MemoryBroker, other: MemoryLink
) -> None:
    def answer(event: Any) -> Sequence[Any]:
        if isinstance(event, MessageArrived) and event.payload == b"last":
            raise StoreError("the disk is full")
        return []

    first = MemoryLink(broker, "me", manual_ack=True)
    for payload in (b"first", b"last"):
        broker.at(1.0, other.publish, "in/a", payload)
    with pytest.raises(StoreError):
        Recorder(first, answer).run()
    again = MemoryLink(broker, "me", manual_ack=True)
    service = Recorder(again)
    stop_at(broker, again, broker.now_s + 5.0)
    service.run()
    assert service.events[1:3] == [
        Connected(MAX_PAYLOAD, session_present=True),
        MessageArrived("in/a", b"last"),
    ]
    assert len(service.events) == 4


def test_what_other_threads_post_reaches_the_machine(broker: MemoryBroker) -> None:
    link = MemoryLink(broker, "me")
    service = Recorder(link)
    broker.at(1.0, link.post, "trained")
    stop_at(broker, link, 2.0)
    service.run()
    assert "trained" in service.events
