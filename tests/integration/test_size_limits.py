"""Links at a Mosquitto that refuses, drops or hangs up on what is too large or not allowed."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from broker.link.link import LinkDown, LinkEvent, LinkUp, Received, Refused
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings
from broker.local.broker import LocalBroker
from fedge.errors import LinkError
from tests.conftest import need, take, wait_down, wait_up

pytestmark = pytest.mark.mosquitto

CHUNK = 122_936  # payload of the largest chunk
PLUGIN = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")
Make = Callable[..., MqttLink]


@pytest.fixture
def make(network: NetworkLoop, links: list[MqttLink]) -> Make:
    """Makes links with a topic `in` and a probe topic, up."""

    def make(broker: LocalBroker, protocol: Any = "auto", **options: Any) -> MqttLink:
        settings = BrokerSettings(
            port=broker.port, protocol=protocol, backoff_min_s=0.02, backoff_max_s=0.1
        )
        link = MqttLink(settings, "pi", network=network, **{"probe_topic": "probe"} | options)
        links.append(link)
        link.subscribe("in")
        link.open()
        assert wait_up(link).max_payload_bytes == settings.max_payload_bytes
        return link

    return make


def mosquitto(*lines: str) -> LocalBroker:
    need("mosquitto")
    return LocalBroker("mosquitto", extra_config="\n".join([*lines, ""]))


def events_until_smaller(link: MqttLink) -> list[LinkEvent]:
    """All events up to a LinkUp that names a limit."""
    events: list[LinkEvent] = []
    while not (events and isinstance(events[-1], LinkUp) and events[-1].notice):
        event = link.poll(10)
        assert event is not None, events
        events.append(event)
    return events


def limit_of(link: MqttLink) -> int:
    up = events_until_smaller(link)[-1]
    assert isinstance(up, LinkUp)
    return up.max_payload_bytes


@pytest.mark.parametrize("limit", [2_000, 20_000])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_limit_that_is_not_announced_is_found_and_named(
    make: Make, protocol: str, limit: int
) -> None:
    with mosquitto(f"message_size_limit {limit}") as broker:
        link = make(broker, protocol)
        link.publish("in", bytes(CHUNK))
        events = events_until_smaller(link)
        assert not [event for event in events if isinstance(event, LinkDown)]
        up = events[-1]
        assert isinstance(up, LinkUp)
        assert up.session_present
        assert 0.8 * limit < up.max_payload_bytes <= limit
        assert f"takes messages of {up.max_payload_bytes} bytes" in up.notice
        assert "message_size_limit" in up.notice
        with pytest.raises(LinkError, match=f"takes {up.max_payload_bytes}"):
            link.publish("in", bytes(CHUNK))
        link.publish("in", bytes(up.max_payload_bytes))
        assert len(take(link)[0].payload) == up.max_payload_bytes
        # Some 12 KB of test messages at 2,000 bytes; sent and, in 3.1.1, received.
        assert 0 < link.counters.probes < 20 * limit + 2 * CHUNK


def test_retained_messages_come_again_with_the_smaller_limit(make: Make) -> None:
    """So that a device sends its update again: the plan is announced once more."""
    with mosquitto("message_size_limit 2000") as broker:
        link = make(broker)
        link.publish("in", b"a plan", retain=True)
        assert not take(link)[0].retain
        link.publish("elsewhere", bytes(CHUNK))
        limit_of(link)
        again = take(link)[0]
        assert (again.payload, again.retain) == (b"a plan", True)


def test_a_broker_without_limit_is_sent_no_test_message_in_mqtt_5(make: Make) -> None:
    with mosquitto() as broker:
        link = make(broker)
        link.publish("in", bytes(CHUNK))
        assert len(take(link)[0].payload) == CHUNK
        assert link.counters.probes == 0


def test_in_mqtt_3_1_1_each_larger_size_is_tested_once(make: Make) -> None:
    with mosquitto() as broker:
        link = make(broker, "3.1.1")
        link.publish("in", bytes(1_200))
        take(link)
        assert link.counters.probes == 0  # fits every broker
        link.publish("in", bytes(CHUNK))
        take(link)
        spent = link.counters.probes
        assert 2 * CHUNK < spent < 2.1 * CHUNK  # there and back
        for size in (CHUNK, 50_000):
            link.publish("in", bytes(size))
            take(link)
        link.interrupt()
        wait_up(link)
        link.publish("in", bytes(CHUNK))
        while len(take(link)[0].payload) < CHUNK:  # what was not acknowledged comes again
            pass
        assert link.counters.probes == spent


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_limit_is_kept_with_the_session_and_forgotten_without_it(
    make: Make, protocol: str
) -> None:
    with mosquitto("message_size_limit 2000") as broker:
        link = make(broker, protocol)
        link.publish("in", bytes(CHUNK))
        limit, spent = limit_of(link), link.counters.probes
        link.interrupt()
        assert wait_up(link).max_payload_bytes == limit
        link.publish("in", bytes(limit))
        take(link)
        assert link.counters.probes == spent
        broker.kill()
        wait_down(link)
        broker.extra_config = ""
        broker.start()
        assert wait_up(link).max_payload_bytes == 1 << 20
        link.publish("in", bytes(CHUNK))
        while len(take(link)[0].payload) < CHUNK:
            pass


def test_a_3_1_1_broker_that_hangs_up_is_not_taken_for_a_second_client(make: Make) -> None:
    with mosquitto("max_packet_size 5000") as broker:
        link = make(broker, "3.1.1")
        link.publish("in", bytes(CHUNK))
        events = events_until_smaller(link)
        downs = [event.reason for event in events if isinstance(event, LinkDown)]
        assert 2 <= len(downs) <= 8
        assert all("lost on a test message of" in reason for reason in downs)
        up = events[-1]
        assert isinstance(up, LinkUp)
        assert 4_000 < up.max_payload_bytes < 5_000
        link.publish("in", bytes(up.max_payload_bytes))
        assert len(take(link)[0].payload) == up.max_payload_bytes


@pytest.mark.parametrize("topic", ["probe", ""])
def test_without_a_topic_for_tests_the_limit_is_halved_until_messages_pass(
    make: Make, tmp_path: Path, topic: str
) -> None:
    (tmp_path / "rules").write_text("topic deny probe\ntopic readwrite in\n")
    with mosquitto("message_size_limit 20000", f"acl_file {tmp_path / 'rules'}") as broker:
        link = make(broker, probe_topic=topic)
        size = CHUNK
        for _ in range(3):
            link.publish("in", bytes(size))
            size = limit_of(link)
        assert 10_000 < size <= 20_000
        link.publish("in", bytes(size))
        assert len(take(link)[0].payload) == size


def test_in_3_1_1_a_topic_that_cannot_be_read_holds_messages_back_for_seconds_only(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broker.link.size_probe._READABLE_S", 0.1)
    (tmp_path / "rules").write_text("topic deny probe\ntopic readwrite in\n")
    with mosquitto(f"acl_file {tmp_path / 'rules'}") as broker:
        link = make(broker, "3.1.1")
        with caplog.at_level(logging.INFO):
            for size in (5_000, CHUNK):
                link.publish("in", bytes(size))
                assert len(take(link)[0].payload) == size
    assert caplog.text.count("does not return messages on probe") == 1


def test_what_is_smaller_than_every_chunk_and_refused_is_told_and_not_searched_for(
    make: Make,
) -> None:
    with mosquitto("message_size_limit 500") as broker:
        link = make(broker)
        link.publish("in", bytes(CHUNK))
        up = events_until_smaller(link)[-1]
        assert isinstance(up, LinkUp)
        assert "smaller ones may not pass either" in up.notice
        link.publish("in", bytes(up.max_payload_bytes))
        refused = link.poll(5)
        assert isinstance(refused, Refused)
        assert (refused.topic, refused.reason) == ("in", "packet too large")
        link.publish("in", b"small")
        assert take(link)[0].payload == b"small"


def test_a_refused_message_is_told_by_name_and_the_link_stays_up(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "rules").write_text("topic deny closed/#\ntopic readwrite #\n")
    with mosquitto(f"acl_file {tmp_path / 'rules'}") as broker:
        link = make(broker)
        link.publish("closed/a", b"x")
        assert link.poll(5) == Refused(
            "closed/a", "not authorised", "give this client the right (docs/security.md)"
        )
        link.publish("in", b"x")
        assert take(link)[0].payload == b"x"


# --- subscriptions, which only the plugin checks --------------------------------------------------


def dynamic_security(folder: Path, *forbidden: str) -> list[str]:
    """Lines for Mosquitto: everybody may do everything, but not subscribe to some filters."""
    if not PLUGIN.exists():
        pytest.skip("Mosquitto's dynamic security plugin is not installed")
    kinds = ("publishClientSend", "publishClientReceive", "subscribePattern", "unsubscribePattern")
    allow = [{"acltype": kind, "topic": "#", "allow": True, "priority": 0} for kind in kinds]
    deny = [
        {"acltype": "subscribeLiteral", "topic": name, "allow": False, "priority": 9}
        for name in forbidden
    ]
    rules = {
        "defaultACLAccess": {"subscribe": False, "unsubscribe": True},
        "roles": [{"rolename": "everybody", "acls": [*deny, *allow]}],
        "groups": [{"groupname": "all", "roles": [{"rolename": "everybody"}]}],
        "anonymousGroup": "all",
        "clients": [],
    }
    file = folder / "rules.json"
    file.write_text(json.dumps(rules))
    return [f"plugin {PLUGIN}", f"plugin_opt_config_file {file}"]


@pytest.mark.parametrize(
    ("protocol", "reason"), [("auto", "not authorised"), ("3.1.1", "unspecified error")]
)
def test_a_refused_subscription_at_the_start_takes_the_link_down(
    tmp_path: Path, network: NetworkLoop, links: list[MqttLink], protocol: Any, reason: str
) -> None:
    with mosquitto(*dynamic_security(tmp_path, "in")) as broker:
        settings = BrokerSettings(port=broker.port, protocol=protocol)
        links.append(MqttLink(settings, "pi", network=network))
        links[0].subscribe("in")
        links[0].open()
        down = wait_down(links[0])
    assert down.refused
    assert down.reason == (
        f"broker 127.0.0.1:{broker.port} refused the subscription in ({reason}):"
        " give this client the right (docs/security.md)"
    )


def test_a_subscription_that_is_refused_later_is_told_and_forgotten(
    make: Make, tmp_path: Path
) -> None:
    with mosquitto(*dynamic_security(tmp_path, "blobs/a/+")) as broker:
        link = make(broker)
        link.subscribe("blobs/a/+")
        assert link.poll(5) == Refused(
            "blobs/a/+",
            "not authorised",
            "give this client the right (docs/security.md)",
            is_subscription=True,
        )
        link.interrupt()
        wait_up(link)  # the filter does not keep it down
        link.publish("in", b"x")
        assert take(link)[0].payload == b"x"


def test_nothing_of_this_ends_in_a_loop(make: Make) -> None:
    """Ten refused messages, one search, and silence."""
    with mosquitto("message_size_limit 2000") as broker:
        link = make(broker)
        for _ in range(10):
            link.publish("in", bytes(CHUNK))
        limit_of(link)
        spent, end_s = link.counters.probes, time.monotonic() + 1.0
        while time.monotonic() < end_s:
            event = link.poll(0.2)
            assert event is None or isinstance(event, Received), event
        assert link.counters.probes == spent


# --- a broker that ends the connection with a reason, as others than Mosquitto do -----------------


class HangsUp(threading.Thread):
    """Server that answers CONNECT, SUBSCRIBE and PUBLISH, and ends what is larger than its limit
    with DISCONNECT 0x95, which it did not announce.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(daemon=True)
        self._limit = limit
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        self.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.join(10)

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._server.accept()[0]
                self.connections += 1
                with client, client.makefile("rb") as stream, contextlib.suppress(OSError):
                    while self._answered(client, stream):
                        pass

    def _answered(self, client: socket.socket, stream: BinaryIO) -> bool:
        """Handles a packet; returns whether the connection goes on."""
        first = stream.read(1)
        if not first:
            return False
        size, shift = 0, 0
        while (byte := stream.read(1)[0]) & 0x80:
            size, shift = size | (byte & 0x7F) << shift, shift + 7
        size |= byte << shift
        body = stream.read(size)
        kind = first[0] >> 4
        if kind == 1:
            client.sendall(b"\x20\x03\x01\x00\x00" if self.connections > 1 else b"\x20\x03\0\0\0")
        elif kind == 3 and size > self._limit:
            client.sendall(b"\xe0\x01\x95")
            return False
        elif kind == 3:
            topic_bytes = int.from_bytes(body[:2])
            client.sendall(b"\x40\x02" + body[2 + topic_bytes : 4 + topic_bytes])
        elif kind == 8:
            client.sendall(b"\x90\x04" + body[:2] + b"\x00\x01")
        return kind != 14


def test_a_broker_that_ends_the_connection_with_packet_too_large_is_searched_too(
    network: NetworkLoop, links: list[MqttLink]
) -> None:
    server = HangsUp(5_000)
    try:
        settings = BrokerSettings(port=server.port, backoff_min_s=0.02, backoff_max_s=0.05)
        link = MqttLink(settings, "pi", network=network, probe_topic="probe")
        links.append(link)
        link.subscribe("in")
        link.open()
        wait_up(link)
        link.publish("in", bytes(CHUNK))
        events = events_until_smaller(link)
        reasons = [event.reason for event in events if isinstance(event, LinkDown)]
        assert "a packet was larger than its limit" in reasons[0]
        assert all("lost on a test message of" in reason for reason in reasons[1:])
        up = events[-1]
        assert isinstance(up, LinkUp)
        assert 4_000 < up.max_payload_bytes < 5_000
        before = server.connections
        link.publish("in", bytes(up.max_payload_bytes))
        link.close()  # sends what waits
        assert server.connections == before <= 10
    finally:
        server.close()
