"""What every Link does: in memory, and over each transport, version of MQTT and broker there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.link.link import Link, LinkUp, Posted, Received, Will, publish_packet_bytes
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings
from broker.local.broker import LocalBroker
from broker.memory.link import MemoryBroker, MemoryLink
from fedge.errors import LinkError
from tests.conftest import AnyLink, nothing_comes, take, wait_down, wait_up
from tests.transports import Transports

CAP = 1 << 20


class World:
    """Makes links to one broker, closes them, and lets time pass."""

    def __init__(self, unique: Callable[[str], str], kind: str) -> None:
        self.kind = kind
        self.topic = unique("topic") + "/"
        self.mqtt5 = True
        self._unique = unique
        self._links: list[AnyLink] = []

    def link(self, name: str, *filters: str, **options: Any) -> AnyLink:
        """A link that is up, subscribed to filters below this test's topic."""
        link = self._make(self._unique(name), options)
        self._links.append(link)
        for topic_filter in filters:
            link.subscribe(self.topic + topic_filter)
        link.open()
        self.last_up = wait_up(link)
        return link

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _make(self, client_id: str, options: dict[str, Any]) -> AnyLink:
        raise NotImplementedError

    def elapse(self, seconds: float) -> None:
        raise NotImplementedError


class MqttWorld(World):
    def __init__(
        self, unique: Callable[[str], str], kind: str, settings: BrokerSettings, net: NetworkLoop
    ) -> None:
        super().__init__(unique, kind)
        self._settings = settings
        self._network = net
        self.mqtt5 = settings.protocol != "3.1.1"

    def _make(self, client_id: str, options: dict[str, Any]) -> AnyLink:
        return MqttLink(self._settings, client_id, network=self._network, **options)

    def elapse(self, seconds: float) -> None:
        time.sleep(seconds)


class MemoryWorld(World):
    def __init__(self, unique: Callable[[str], str]) -> None:
        super().__init__(unique, "memory")
        self._broker = MemoryBroker()

    def _make(self, client_id: str, options: dict[str, Any]) -> AnyLink:
        return MemoryLink(self._broker, client_id, **options)

    def elapse(self, seconds: float) -> None:
        until_s = self._broker.now_s + seconds
        while self._broker.advance(until_s):
            pass


@pytest.fixture(scope="module")
def network() -> Iterator[NetworkLoop]:
    with NetworkLoop() as loop:
        yield loop
    assert loop.errors == 0


#: Of a Mosquitto that listens in all ways; "3.1.1" is TCP with the older MQTT.
_TRANSPORTS = ["tls", "websockets", "wss", "3.1.1"]
_KINDS = ["mosquitto", "embedded", *_TRANSPORTS]

_REAL = [pytest.param(kind, marks=pytest.mark.broker) for kind in _KINDS]


@pytest.fixture(params=["memory", *_REAL])
def world(
    request: pytest.FixtureRequest, unique: Callable[[str], str], network: NetworkLoop
) -> Iterator[World]:
    world: World
    kind = request.param
    if kind == "memory":
        world = MemoryWorld(unique)
    elif kind in _TRANSPORTS:
        transports: Transports = request.getfixturevalue("transports")
        world = MqttWorld(unique, "mosquitto", transports.settings(kind), network)
    else:
        name = "mosquitto" if kind == "mosquitto" else "embedded_broker"
        broker: LocalBroker = request.getfixturevalue(name)
        settings = BrokerSettings(port=broker.port, backoff_min_s=0.05, backoff_max_s=0.2)
        world = MqttWorld(unique, kind, settings, network)
    yield world
    world.close()


def test_both_are_links(world: World) -> None:
    link: Link = world.link("typed")
    assert link.poll(0) is None


def test_a_published_message_reaches_the_subscriber(world: World) -> None:
    receiver, sender = world.link("receiver", "a"), world.link("sender")
    sender.publish(world.topic + "a", b"hello")
    [message] = take(receiver)
    assert (message.topic, message.payload, message.retain) == (world.topic + "a", b"hello", False)
    assert nothing_comes(sender)


def test_a_publisher_that_subscribes_hears_itself(world: World) -> None:
    link = world.link("both", "a")
    link.publish(world.topic + "a", b"echo")
    assert take(link)[0].payload == b"echo"


def test_link_up_tells_the_limit_and_comes_first(world: World) -> None:
    world.link("first", "#")
    assert world.last_up.max_payload_bytes >= 512 * 1024
    assert not world.last_up.session_present


def test_a_retained_message_reaches_a_later_subscriber(world: World) -> None:
    sender = world.link("sender")
    sender.publish(world.topic + "state", b"old", retain=True)
    sender.publish(world.topic + "state", b"new", retain=True)
    witness = world.link("witness", "state")
    while take(witness)[0].payload != b"new":
        pass
    [message] = take(world.link("late", "state"))
    assert (message.payload, message.retain) == (b"new", True)


def test_an_empty_payload_clears_a_retained_message(world: World) -> None:
    sender = world.link("sender", "state")
    sender.publish(world.topic + "state", b"x", retain=True)
    sender.publish(world.topic + "state", b"", retain=True)
    assert [m.payload for m in take(sender, 2)] == [b"x", b""]
    assert nothing_comes(world.link("late", "state"))


def test_wildcards_take_what_they_should(world: World) -> None:
    plus, everything = world.link("plus", "+/in"), world.link("hash", "a/#")
    sender = world.link("sender")
    for topic in ("a/in", "b/in", "a/b/in", "a", "in", "b/out"):
        sender.publish(world.topic + topic, topic.encode())
    sender.publish(world.topic + "z/in", b"end")
    sender.publish(world.topic + "a/z", b"end")
    assert [m.payload for m in take(plus, 3)] == [b"a/in", b"b/in", b"end"]
    assert [m.payload for m in take(everything, 4)] == [b"a/in", b"a/b/in", b"a", b"end"]


def test_the_will_is_published_when_a_client_vanishes(world: World) -> None:
    watcher = world.link("watcher", "status")
    doomed = world.link("doomed", will=Will(world.topic + "status", b"offline"))
    doomed.abort()
    assert take(watcher)[0].payload == b"offline"
    assert take(world.link("late", "status"))[0].retain  # and it is retained


def test_no_will_is_published_after_a_goodbye(world: World) -> None:
    watcher = world.link("watcher", "status")
    polite = world.link("polite", will=Will(world.topic + "status", b"offline"))
    polite.publish(world.topic + "status", b"bye")
    polite.close()
    assert take(watcher)[0].payload == b"bye"
    assert nothing_comes(watcher)


def test_a_birth_within_the_will_delay_outlives_the_will(world: World) -> None:
    will = Will(world.topic + "status", b"offline", delay_s=1)
    world.link("device", will=will).abort()
    back = world.link("device", will=will)
    back.publish(world.topic + "status", b"online", retain=True)
    world.elapse(1.3)
    [status] = take(world.link("watcher", "status"))
    assert (status.payload, status.retain) == (b"online", True)


def test_messages_wait_for_a_client_that_is_away(world: World) -> None:
    sender = world.link("sender")
    world.link("device", "inbox").abort()
    for number in range(3):
        sender.publish(world.topic + "inbox", b"%d" % number)
    world.elapse(0.1)
    back = world.link("device", "inbox")
    assert world.last_up.session_present
    assert [m.payload for m in take(back, 3)] == [b"0", b"1", b"2"]


def test_a_lost_connection_comes_back_with_its_subscriptions(world: World) -> None:
    device, sender = world.link("device", "inbox"), world.link("sender")
    device.interrupt()
    assert not wait_down(device).refused
    sender.publish(world.topic + "inbox", b"while away")
    wait_up(device)
    sender.publish(world.topic + "inbox", b"afterwards")
    assert [m.payload for m in take(device, 2)] == [b"while away", b"afterwards"]


def test_what_is_published_while_disconnected_is_sent_later(world: World) -> None:
    receiver, sender = world.link("receiver", "a"), world.link("sender")
    sender.interrupt()
    wait_down(sender)
    for number in range(5):
        sender.publish(world.topic + "a", b"%d" % number)
    assert [m.payload for m in take(receiver, 5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_session_ends_when_its_time_is_over(world: World) -> None:
    if world.kind == "embedded":
        pytest.skip("the embedded broker ignores session expiry")
    if not world.mqtt5:
        pytest.skip("MQTT 3.1.1 has no session expiry")
    world.link("device", "inbox", session_expiry_s=1).abort()
    world.elapse(2.5 if world.kind == "mosquitto" else 1.1)  # Mosquitto looks once a second
    world.link("device", "inbox")
    assert not world.last_up.session_present


def test_a_large_payload_arrives_unchanged(world: World) -> None:
    payload = bytes(range(256)) * 480  # 120 KiB
    receiver, sender = world.link("receiver", "blob"), world.link("sender")
    sender.publish(world.topic + "blob", payload)
    assert take(receiver)[0].payload == payload


def test_messages_keep_their_order(world: World) -> None:
    receiver, sender = world.link("receiver", "a/+"), world.link("sender")
    for number in range(500):
        sender.publish(f"{world.topic}a/{number % 2}", b"%d" % number)
    assert [int(m.payload) for m in take(receiver, 500)] == list(range(500))


def test_an_oversize_payload_is_refused_with_its_size_and_the_limit(world: World) -> None:
    link = world.link("sender")
    with pytest.raises(LinkError, match=rf"{CAP + 1} bytes.*{CAP}"):
        link.publish(world.topic + "a", bytes(CAP + 1))
    assert link.counters.up == 0


def test_a_full_queue_is_refused_with_its_limit(world: World) -> None:
    by_count = world.link("count", max_queued_messages=3)
    by_count.interrupt()
    for _ in range(3):
        by_count.publish(world.topic + "a", b"x")
    with pytest.raises(LinkError, match="limit 3"):
        by_count.publish(world.topic + "a", b"x")
    by_bytes = world.link("bytes", max_queued_bytes=1000)
    with pytest.raises(LinkError, match="limit 1000"):
        by_bytes.publish(world.topic + "a", bytes(1000))


def test_unsubscribe_stops_the_messages(world: World) -> None:
    receiver, sender = world.link("receiver", "a", "b"), world.link("sender")
    receiver.unsubscribe(world.topic + "a")
    world.elapse(0.1)
    sender.publish(world.topic + "a", b"no")
    sender.publish(world.topic + "b", b"yes")
    assert take(receiver)[0].payload == b"yes"


def test_a_filter_dropped_while_away_stays_dropped(world: World) -> None:
    if world.kind == "embedded":
        pytest.skip("the embedded broker cannot unsubscribe what an earlier connection subscribed")
    receiver, sender = world.link("receiver", "a", "b"), world.link("sender")
    receiver.interrupt()
    wait_down(receiver)
    receiver.unsubscribe(world.topic + "a")
    wait_up(receiver)
    world.elapse(0.1)
    sender.publish(world.topic + "a", b"no")
    sender.publish(world.topic + "b", b"yes")
    assert take(receiver)[0].payload == b"yes"


def test_a_late_subscription_needs_no_reconnection(world: World) -> None:
    receiver, sender = world.link("receiver"), world.link("sender")
    sender.publish(world.topic + "a", b"x", retain=True)
    world.elapse(0.05)
    receiver.subscribe(world.topic + "a")
    assert take(receiver)[0].payload == b"x"


def test_byte_counters_follow_the_packets(world: World) -> None:
    receiver, sender = world.link("receiver", "+"), world.link("sender")
    sizes = [0, 1, 100, 127, 128, 20_000, 120_000]
    for size in sizes:
        sender.publish(world.topic + "a", bytes(size))
    take(receiver, len(sizes))
    topic, mqtt5 = world.topic + "a", world.mqtt5
    expected = sum(publish_packet_bytes(topic, size, mqtt5=mqtt5) for size in sizes)
    assert sender.counters.up == receiver.counters.down == expected
    assert sender.counters.down == receiver.counters.up == 0


def test_a_message_that_expired_is_not_delivered(world: World) -> None:
    if not world.mqtt5:
        pytest.skip("MQTT 3.1.1 has no message expiry")
    sender = world.link("sender")
    world.link("device", "inbox").abort()
    sender.publish(world.topic + "inbox", b"soon stale", expiry_s=1)
    sender.publish(world.topic + "inbox", b"lasting", expiry_s=600)
    world.elapse(2.1)
    back = world.link("device", "inbox")
    assert take(back)[0].payload == b"lasting"
    assert back.counters.down == publish_packet_bytes(world.topic + "inbox", len(b"lasting"), 600)


def test_an_unacknowledged_message_comes_again(world: World) -> None:
    sender = world.link("sender")
    first = world.link("device", "inbox", manual_ack=True)
    sender.publish(world.topic + "inbox", b"kept")
    sender.publish(world.topic + "inbox", b"not yet")
    kept, _ = take(first, 2)
    first.acknowledge(kept)
    world.elapse(0.1)
    first.abort()
    again = world.link("device", "inbox", manual_ack=True)
    assert [m.payload for m in take(again)] == [b"not yet"]
    assert nothing_comes(again)


def test_acknowledging_a_message_of_an_earlier_connection_does_no_harm(world: World) -> None:
    sender = world.link("sender")
    device = world.link("device", "inbox", manual_ack=True)
    sender.publish(world.topic + "inbox", b"x")
    [stale] = take(device)
    device.interrupt()
    [fresh] = take(device)
    device.acknowledge(stale)
    world.elapse(0.05)
    device.interrupt()
    wait_down(device)
    [third] = take(device)
    assert fresh.payload == third.payload == b"x"


def test_an_expiry_that_cannot_be_sent_is_left_out(world: World) -> None:
    receiver, sender = world.link("receiver", "a"), world.link("sender")
    sender.publish(world.topic + "a", b"x", expiry_s=600)
    assert take(receiver)[0].payload == b"x"
    size = publish_packet_bytes(world.topic + "a", 1, 600, mqtt5=world.mqtt5)
    assert sender.counters.up == receiver.counters.down == size


def test_a_slow_owner_loses_nothing(world: World) -> None:
    receiver, sender = world.link("receiver", "a"), world.link("sender")
    for number in range(1000):
        sender.publish(world.topic + "a", b"%d" % number)
    world.elapse(0.3)
    assert [int(m.payload) for m in take(receiver, 1000)] == list(range(1000))


def test_the_same_id_twice_is_told_in_words(world: World) -> None:
    first = world.link("twin")
    world.link("twin")
    reasons: list[str] = []
    while not reasons or "id" not in reasons[-1]:  # brokers that hang up in silence: a guess
        reasons.append(wait_down(first).reason)
    assert "twin" in reasons[-1]
    assert len(reasons) <= 3


def test_posted_values_reach_the_owner(world: World) -> None:
    link = world.link("link")
    poster = threading.Thread(target=link.post, args=("wake up",))
    poster.start()
    assert link.poll(5) == Posted("wake up")
    poster.join()


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b"])
def test_an_invalid_topic_is_a_mistake_of_ours(world: World, topic: str) -> None:
    with pytest.raises(ValueError, match="not a topic"):
        world.link("sender").publish(topic, b"")


@pytest.mark.parametrize("topic_filter", ["", "a/b+", "a/#/b", "#a"])
def test_an_invalid_filter_is_a_mistake_of_ours(world: World, topic_filter: str) -> None:
    with pytest.raises(ValueError, match="not a topic filter"):
        world.link("receiver").subscribe(topic_filter)


def test_a_closed_link_takes_nothing_more(world: World) -> None:
    link = world.link("link")
    link.close()
    link.close()
    with pytest.raises(LinkError, match="closed"):
        link.publish(world.topic + "a", b"x")
    assert not isinstance(link.poll(0.01), LinkUp | Received)
