"""The in-memory broker's clock, agenda and route; the rest is in the conformance suite."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from broker.link.link import LinkDown, LinkUp, Received, Will
from broker.memory.link import MemoryBroker, MemoryLink, Packet, PerfectRoute
from fedge.errors import LinkError
from tests.conftest import take, wait_down, wait_up


def up(broker: MemoryBroker, client_id: str, *filters: str, will: Will | None = None) -> MemoryLink:
    link = MemoryLink(broker, client_id, will=will)
    for topic_filter in filters:
        link.subscribe(topic_filter)
    link.open()
    wait_up(link)
    return link


def test_time_moves_to_the_event_and_no_further() -> None:
    broker = MemoryBroker(PerfectRoute(delay_s=0.25))
    link = up(broker, "a", "t")
    assert broker.now_s == 0.5  # CONNECT and CONNACK
    link.publish("t", b"x")
    assert isinstance(link.poll(60), Received)
    assert broker.now_s == 1.0  # up and down


def test_polling_without_an_event_takes_exactly_the_timeout() -> None:
    broker = MemoryBroker()
    link = up(broker, "a")
    before_s = broker.now_s
    assert link.poll(5.0) is None
    assert broker.now_s == before_s + 5.0
    assert link.poll(0) is None
    assert broker.now_s == before_s + 5.0


def test_entries_of_the_same_time_keep_their_order() -> None:
    broker = MemoryBroker()
    done: list[str] = []
    broker.at(2.0, done.append, "late")
    for name in "abc":
        broker.at(1.0, done.append, name)
    broker.at(-1.0, done.append, "now")  # the past is now
    while broker.advance(3.0):
        pass
    assert done == ["now", "a", "b", "c", "late"]
    assert broker.now_s == 3.0


def test_without_a_limit_the_clock_stops_at_the_last_entry() -> None:
    broker = MemoryBroker()
    broker.at(7.0, lambda: None)
    while broker.advance(float("inf")):
        pass
    assert broker.now_s == 7.0


def test_links_that_have_events_are_served_in_order() -> None:
    broker = MemoryBroker()
    first, second = up(broker, "first", "t"), up(broker, "second", "t")
    assert not broker.ready
    first.publish("t", b"x")
    while broker.advance(broker.now_s + 1):
        pass
    for expected in (first, second):
        assert next(iter(broker.ready)) is expected
        assert isinstance(expected.poll(0), Received)
    assert not broker.ready


def test_a_retained_message_expires() -> None:
    broker = MemoryBroker()
    sender = up(broker, "sender")
    sender.publish("t", b"x", retain=True, expiry_s=10)
    sender.poll(5.0)
    assert take(up(broker, "early", "t"))[0].retain
    sender.poll(6.0)
    assert up(broker, "late", "t").poll(1.0) is None


def test_the_broker_sends_at_most_receive_maximum_ahead() -> None:
    broker = MemoryBroker(receive_maximum=3)
    sender, receiver = up(broker, "sender"), up(broker, "receiver", "t")
    for number in range(10):
        sender.publish("t", b"%d" % number)
    sender.poll(1.0)
    assert receiver.counters.down == 3 * (sender.counters.up // 10)
    assert [int(m.payload) for m in take(receiver, 10)] == list(range(10))


@pytest.mark.parametrize(("expiry_s", "heard_at_s"), [(3600, 40.0), (10, 20.0)])
def test_a_will_is_published_after_notice_and_delay_or_at_session_expiry(
    expiry_s: int, heard_at_s: float
) -> None:
    broker = MemoryBroker(PerfectRoute(0.0), notice_s=10.0)
    watcher = up(broker, "watcher", "status")
    doomed = MemoryLink(
        broker, "doomed", will=Will("status", b"off", delay_s=30), session_expiry_s=expiry_s
    )
    doomed.open()
    wait_up(doomed)
    doomed.abort()
    assert take(watcher, timeout_s=100)[0].payload == b"off"
    assert broker.now_s == heard_at_s


def test_a_client_that_reconnects_in_time_has_no_will_published() -> None:
    broker = MemoryBroker()
    will = Will("status", b"off", delay_s=30)
    watcher = up(broker, "watcher", "status")
    up(broker, "device", will=will).abort()
    watcher.poll(20.0)
    up(broker, "device", will=will)
    assert watcher.poll(100.0) is None


class Fate(PerfectRoute):
    """Journeys decided by the test: a list of what happens to the next packets of a topic."""

    def __init__(self, topic: str, *fates: tuple[float, ...]) -> None:
        super().__init__()
        self._topic = topic
        self._fates = list(fates)

    def delays(self, now_s: float, packet: Packet) -> Sequence[float]:
        if packet.topic == self._topic and self._fates:
            return self._fates.pop(0)
        return super().delays(now_s, packet)


def test_a_packet_that_breaks_the_connection_is_sent_again() -> None:
    broker = MemoryBroker()
    sender, receiver = up(broker, "sender"), up(broker, "receiver", "t")
    broker.route = Fate("t", (), (0.001,), ())  # lost upward, then lost downward
    sender.publish("t", b"x")
    assert isinstance(wait_down(sender), LinkDown)
    assert wait_up(sender).session_present
    wait_down(receiver)
    assert take(receiver)[0].payload == b"x"
    assert receiver.poll(60.0) is None


def test_packets_can_be_duplicated_and_reordered() -> None:
    broker = MemoryBroker()
    sender, receiver = up(broker, "sender"), up(broker, "receiver", "t")
    broker.route = Fate("t", (0.5,), (0.1, 0.2))
    sender.publish("t", b"late")
    sender.publish("t", b"twice")
    assert [m.payload for m in take(receiver, 3)] == [b"twice", b"twice", b"late"]


class Nowhere(PerfectRoute):
    def connect_s(self, now_s: float, client_id: str) -> float | None:
        return None if now_s < 100.0 else 0.0


def test_an_unreachable_broker_is_reported_once_and_retried() -> None:
    broker = MemoryBroker(Nowhere())
    link = MemoryLink(broker, "a", rng=lambda: Random(1))
    link.open()
    assert link.poll(0) == LinkDown("cannot reach the broker")
    assert link.poll(90.0) is None
    assert isinstance(link.poll(200.0), LinkUp)
    assert 100.0 <= broker.now_s <= 160.0  # at most one back-off of 60 s later


def test_messages_sent_before_close_still_arrive() -> None:
    broker = MemoryBroker()
    receiver, sender = up(broker, "receiver", "t"), up(broker, "sender")
    sender.publish("t", b"last words")
    sender.close()
    assert take(receiver)[0].payload == b"last words"
    with pytest.raises(LinkError, match="closed"):
        sender.publish("t", b"x")


def test_runs_are_reproducible() -> None:
    def run() -> list[tuple[float, object]]:
        broker = MemoryBroker(Fate("t", (), (0.2,), ()))
        log: list[tuple[float, object]] = []
        links = [MemoryLink(broker, f"c{n}") for n in range(5)]
        for link in links:
            link.subscribe("t")
            link.open()
            link.publish("t", link.client_id.encode())
        while broker.advance(30.0):
            while broker.ready:
                log.append((broker.now_s, next(iter(broker.ready)).poll(0)))
        return log

    assert run() == run()
    assert sum(isinstance(event, Received) for _, event in run()) >= 20


def test_a_restarted_broker_loses_unwritten_data() -> None:
    broker = MemoryBroker()
    away = up(broker, "away", "t/#")
    sender = up(broker, "sender")
    away.abort()
    sender.publish("t/kept", b"1", retain=True)
    broker.advance(1.0)
    assert (broker.backlog("away"), broker.retained("t/kept")) == (1, b"1")
    broker.restart(lose_queued=True, lose_retained=False, lose_sessions=False)
    assert (broker.backlog("away"), broker.retained("t/kept")) == (0, b"1")
    broker.restart()
    assert broker.retained("t/kept") is None
    again = sender.poll(10.0)
    assert isinstance(again, LinkDown)
    assert sender.poll(10.0) == LinkUp(False, broker.max_payload_bytes)


def test_a_restarted_broker_publishes_no_wills() -> None:
    broker = MemoryBroker()
    up(broker, "client", will=Will("will", b"gone"))
    watcher = up(broker, "watcher", "will")
    broker.restart(lose_queued=False, lose_retained=False, lose_sessions=False)
    heard = [watcher.poll(5.0) for _ in range(4)]
    assert [type(event) for event in heard] == [LinkDown, LinkUp, type(None), type(None)]


def test_a_full_queue_drops_messages_silently() -> None:
    broker = MemoryBroker(max_queued_messages=2)
    up(broker, "away", "t").abort()
    sender = up(broker, "sender")
    for number in range(5):
        sender.publish("t", bytes([number]))
    assert sender.poll(1.0) is None
    assert broker.backlog("away") == 2
    assert broker.dropped == {("away", "t")}
