"""Brokers that know only MQTT 3.1.1: a real one, and Mosquitto behind a gate that refuses 5."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.link.link import LinkDown, LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings
from broker.local.broker import HOST, LocalBroker
from fedge.errors import LinkError
from tests.conftest import need, nothing_comes, take, wait_down, wait_up
from tests.transports import broker_of_3_1_1


class Gate(threading.Thread):
    """Lets MQTT 3.1.1 through to a broker, and turns MQTT 5 away, in words or by hanging up."""

    def __init__(self, target: int, refusal: bytes, port: int = 0) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._refusal = refusal
        self._server = socket.create_server((HOST, port))
        self.port: int = self._server.getsockname()[1]
        self.versions: list[int] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            hello = client.recv(4096)
            version = hello[hello.index(b"MQTT") + 4]
            self.versions.append(version)
            if version == 5:
                client.sendall(self._refusal)
                return
            with socket.create_connection((HOST, self._target)) as broker:
                broker.sendall(hello)
                back = threading.Thread(target=self._relay, args=(broker, client), daemon=True)
                back.start()
                self._relay(client, broker)
                back.join(5)

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.join(5)


@pytest.fixture(params=[b"\x20\x02\x00\x01", b""], ids=["says no", "hangs up"])
def gate(request: pytest.FixtureRequest, mosquitto: LocalBroker) -> Iterator[Gate]:
    made = Gate(mosquitto.port, request.param)
    yield made
    made.close()


def quick(port: int, **keys: Any) -> BrokerSettings:
    return BrokerSettings(port=port, backoff_min_s=0.05, backoff_max_s=0.2, **keys)


def test_auto_takes_3_1_1_without_a_word_to_the_owner(
    gate: Gate, network: NetworkLoop, links: list[MqttLink], unique: Callable[[str], str]
) -> None:
    link = MqttLink(quick(gate.port), unique("pi"), network=network)
    links.append(link)
    link.subscribe(unique("a"))
    link.publish(unique("a"), b"queued before anything was known", expiry_s=60)
    link.open()
    assert isinstance(link.poll(5), LinkUp)
    assert take(link)[0].payload == b"queued before anything was known"
    assert gate.versions == [5, 4]
    link.interrupt()
    wait_down(link)
    wait_up(link)
    # Who said no is not asked again; who hung up may have had another reason.
    assert gate.versions == ([5, 4, 4] if gate._refusal else [5, 4, 5, 4])


def test_messages_in_flight_survive_the_change_of_version(
    mosquitto: LocalBroker,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
) -> None:
    """A broker is replaced by an older one while messages are on their way."""
    silent = socket.create_server((HOST, 0))
    port = silent.getsockname()[1]
    link = MqttLink(quick(port), unique("pi"), network=network)
    witness = MqttLink(quick(mosquitto.port), unique("witness"), network=network)
    links += [link, witness]
    witness.subscribe(unique("a"))
    witness.open()
    wait_up(witness)
    link.open()
    connection, _ = silent.accept()
    connection.recv(4096)
    connection.sendall(b"\x20\x03\x00\x00\x00")
    wait_up(link)
    for number in range(3):
        link.publish(unique("a"), b"%d" % number, expiry_s=60)
    connection.recv(4096)  # they are on their way, and nobody acknowledges
    silent.close()
    connection.close()
    wait_down(link)
    gate = Gate(mosquitto.port, b"\x20\x02\x00\x01", port)
    wait_up(link)
    assert {m.payload for m in take(witness, 3)} == {b"0", b"1", b"2"}
    gate.close()


def test_a_version_that_was_asked_for_is_not_given_up(
    mosquitto: LocalBroker,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
) -> None:
    gate = Gate(mosquitto.port, b"\x20\x02\x00\x01")
    links.append(MqttLink(quick(gate.port, protocol="5"), unique("pi"), network=network))
    links[0].open()
    down = wait_down(links[0])
    gate.close()
    assert down.refused
    assert "it does not speak MQTT 5; `protocol: auto` also allows 3.1.1" in down.reason
    assert set(gate.versions) == {5}


def test_a_broker_that_knows_neither_is_named(
    network: NetworkLoop, links: list[MqttLink], unique: Callable[[str], str]
) -> None:
    server = socket.create_server((HOST, 0))

    def refuse() -> None:
        for _ in range(2):
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"\x20\x02\x00\x01")

    thread = threading.Thread(target=refuse)
    thread.start()
    links.append(MqttLink(quick(server.getsockname()[1]), unique("pi"), network=network))
    links[0].open()
    down = wait_down(links[0])
    links[0].abort()
    thread.join(5)
    server.close()
    assert down.refused
    assert "it does not speak MQTT 5 or 3.1.1" in down.reason


@pytest.fixture(scope="module")
def old_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a broker that has never heard of MQTT 5."""
    need("embedded")
    with broker_of_3_1_1(tmp_path_factory.mktemp("old")) as port:
        yield port


def test_a_real_broker_of_3_1_1_is_taken(
    old_broker: int, network: NetworkLoop, links: list[MqttLink], unique: Callable[[str], str]
) -> None:
    receiver = MqttLink(quick(old_broker), unique("receiver"), network=network)
    sender = MqttLink(quick(old_broker), unique("sender"), network=network)
    links += [receiver, sender]
    receiver.subscribe(unique("t") + "/+")
    for link in links:
        link.open()
        wait_up(link)
    payloads = [os.urandom(size) for size in (0, 1, 100, 20_000, 120_000)]
    for payload in payloads:
        sender.publish(unique("t") + "/a", payload, expiry_s=60)
    assert [m.payload for m in take(receiver, len(payloads))] == payloads


def test_both_versions_meet_at_one_broker(
    mosquitto: LocalBroker,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Callable[[str], str],
) -> None:
    new = MqttLink(quick(mosquitto.port, protocol="5"), unique("new"), network=network)
    old = MqttLink(quick(mosquitto.port, protocol="3.1.1"), unique("old"), network=network)
    links += [new, old]
    for link, topic in ((new, "to-new"), (old, "to-old")):
        link.subscribe(unique(topic))
        link.open()
        wait_up(link)
    new.publish(unique("to-old"), b"from 5", expiry_s=60)
    old.publish(unique("to-new"), b"from 3.1.1", expiry_s=60)
    assert take(old)[0].payload == b"from 5"
    assert take(new)[0].payload == b"from 3.1.1"


def test_a_packet_that_a_3_1_1_broker_cannot_bear_is_given_up_and_the_limit_learned(
    network: NetworkLoop, links: list[MqttLink], unique: Callable[[str], str]
) -> None:
    need("mosquitto")
    with LocalBroker("mosquitto", extra_config="max_packet_size 40000\n") as narrow:
        settings = quick(narrow.port, protocol="3.1.1")
        link = MqttLink(settings, unique("pi"), network=network)
        links.append(link)
        link.subscribe(unique("a"))
        link.open()
        assert wait_up(link).max_payload_bytes == settings.max_payload_bytes
        link.publish(unique("a"), bytes(60_000))
        link.publish(unique("a"), b"behind it")
        reasons: list[str] = []
        up = LinkUp(False, 0)
        while not any("disconnected three times on a packet of 60" in reason for reason in reasons):
            event = link.poll(10)
            assert event is not None
            reasons += [event.reason] if isinstance(event, LinkDown) else []
        up = wait_up(link)
        assert 28_000 < up.max_payload_bytes < 30_000
        while take(link)[0].payload != b"behind it":
            pass
        with pytest.raises(LinkError, match=r"limit of broker .* is 30"):
            link.publish(unique("a"), bytes(60_000))
        link.publish(unique("a"), bytes(20_000))
        assert len(take(link)[0].payload) == 20_000


def test_a_3_1_1_broker_that_sends_without_end_is_held_back(
    network: NetworkLoop, links: list[MqttLink], unique: Callable[[str], str]
) -> None:
    """Without Receive Maximum, what the owner has not taken must not grow for ever."""
    need("mosquitto")
    config = "max_inflight_messages 0\nmax_inflight_bytes 0\n"
    with LocalBroker("mosquitto", extra_config=config) as eager:
        slow = MqttLink(
            quick(eager.port, protocol="3.1.1"), unique("slow"), network=network, receive_maximum=8
        )
        sender = MqttLink(quick(eager.port), unique("sender"), network=network)
        links += [slow, sender]
        slow.subscribe(unique("a"))
        for link in links:
            link.open()
            wait_up(link)
        for number in range(2000):
            sender.publish(unique("a"), b"%d" % number)
        deadline_s = time.monotonic() + 2
        while slow.backlog() < 32 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.3)
        assert 32 <= slow.backlog() <= 34
        seen = [int(message.payload) for message in take(slow, 2000)]
        assert seen == list(range(2000))
        assert nothing_comes(slow)
        assert not isinstance(slow.poll(0), Received)
