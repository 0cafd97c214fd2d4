"""MqttLink against a real Mosquitto: refusals, failures, limits, TLS, many links on one thread."""

from __future__ import annotations

import logging
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from paho.mqtt import publish as paho_publish

from broker.link.link import LinkDown, LinkUp, Received, Will
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings, TlsSettings
from broker.local.broker import LocalBroker
from fedge.errors import ConfigError, LinkError
from tests.conftest import need, nothing_comes, take, wait_down, wait_up
from tests.ports import free_port

pytestmark = pytest.mark.mosquitto

Unique = Callable[[str], str]


def quick(port: int, **values: object) -> BrokerSettings:
    """Settings whose back-off is short."""
    return BrokerSettings(port=port, backoff_min_s=0.02, backoff_max_s=0.1, **values)  # type: ignore[arg-type]


def listen(link: MqttLink, topic: str) -> None:
    """Has it up and subscribed."""
    link.subscribe(topic)
    link.open()
    wait_up(link)


@pytest.fixture
def own_mosquitto() -> Iterator[LocalBroker]:
    """One that a test may kill."""
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


# --- refused and out of reach ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalBroker, Path]]:
    """A Mosquitto that wants a login, and a folder for password files."""
    need("mosquitto")
    folder = tmp_path_factory.mktemp("guarded")
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed")
    subprocess.run([tool, "-b", "-c", str(folder / "users"), "pi", "right"], check=True)
    (folder / "users").chmod(0o644)
    config = f"allow_anonymous false\npassword_file {folder / 'users'}\n"
    with LocalBroker("mosquitto", extra_config=config) as broker:
        yield broker, folder


@pytest.mark.parametrize(("password", "admitted"), [("right", True), ("wrong", False)])
def test_a_login_is_accepted_or_refused(
    guarded: tuple[LocalBroker, Path],
    network: NetworkLoop,
    links: list[MqttLink],
    password: str,
    admitted: bool,
) -> None:
    broker, folder = guarded
    file = folder / f"password-{password}"
    file.write_text(password + "\n")
    settings = quick(broker.port, username="pi", password_file=str(file))
    links.append(MqttLink(settings, "pi", network=network))
    links[0].open()
    event = links[0].poll(5)
    if admitted:
        assert isinstance(event, LinkUp)
    else:
        assert event == LinkDown(
            f"broker 127.0.0.1:{broker.port} refused the login (not authorised):"
            f" check username 'pi' and the password in {file}",
            refused=True,
        )


def test_a_missing_login_is_reported(
    guarded: tuple[LocalBroker, Path], network: NetworkLoop, links: list[MqttLink]
) -> None:
    links.append(MqttLink(quick(guarded[0].port), "pi", network=network))
    links[0].open()
    down = wait_down(links[0])
    assert down.refused
    assert "it requires a username" in down.reason


def test_an_unreadable_password_is_a_config_error(network: NetworkLoop) -> None:
    settings = BrokerSettings(username="pi", password_file="/nonexistent/password")
    link = MqttLink(settings, "pi", network=network)
    with pytest.raises(ConfigError, match="/nonexistent/password"):
        link.open()
    link.close()


def test_an_absent_broker_is_reported_once_and_retried(
    network: NetworkLoop, links: list[MqttLink]
) -> None:
    port = free_port()
    links.append(MqttLink(quick(port), "pi", network=network, rng=Random(1)))
    links[0].open()
    assert links[0].poll(5) == LinkDown(f"cannot reach broker 127.0.0.1:{port}: Connection refused")
    assert links[0].poll(0.3) is None  # several attempts, one event
    need("mosquitto")
    with LocalBroker("mosquitto", port):
        assert isinstance(links[0].poll(5), LinkUp)


def test_an_unknown_host_is_named(network: NetworkLoop, links: list[MqttLink]) -> None:
    links.append(MqttLink(BrokerSettings(host="no-such-host.invalid"), "pi", network=network))
    links[0].open()
    assert "cannot reach broker no-such-host.invalid:1883" in wait_down(links[0]).reason


def test_a_server_without_mqtt_is_reported(network: NetworkLoop, links: list[MqttLink]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        links.append(MqttLink(quick(port, connect_timeout_s=0.2), "pi", network=network))
        links[0].open()
        down = wait_down(links[0])
    assert "did not answer: is it an MQTT port" in down.reason


# --- failures ------------------------------------------------------------------------------------


def test_a_killed_broker_and_its_return_are_noticed(
    own_mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink]
) -> None:
    link = MqttLink(quick(own_mosquitto.port), "pi", network=network)
    links.append(link)
    link.subscribe("t")
    link.open()
    assert not wait_up(link).session_present
    own_mosquitto.kill()
    assert "lost" in wait_down(link).reason
    link.publish("t", b"while it was dead")
    own_mosquitto.start()
    assert not wait_up(link).session_present  # it forgot us: owners must send their state again
    assert take(link)[0].payload == b"while it was dead"


class Scripted(threading.Thread):
    """A server that answers each CONNECT with the bytes it is given, and records what comes.

    For what no broker here says: Mosquitto 2.0.11 hangs up on a session taken over in silence.
    """

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(10)
        self.port: int = self._server.getsockname()[1]
        self._answer = answer
        self.start()

    def run(self) -> None:
        with self._server, self._server.accept()[0] as client:
            client.settimeout(10)
            client.recv(4096)
            client.sendall(self._answer)
            while client.recv(4096):
                pass


_CONNACK = bytes((0x20, 3, 0, 0, 0))


@pytest.mark.parametrize(
    ("answer", "reason", "refused"),
    [
        (_CONNACK + b"\xe0\x01\x8e", "session of 'pi' .* was taken over: another client", False),
        (_CONNACK + b"\xe0\x01\x8b", "closed the connection: it is shutting down", False),
        (_CONNACK + b"\xe0\x01\x98", "closed the connection: an operator", False),
        (_CONNACK + b"\xe0\x00", "closed the connection: normal disconnection|success", False),
        (b"\x20\x03\x00\x84\x00", "it does not speak MQTT 5", True),
        (b"\x20\x03\x00\x89\x00", "refused us .server busy", False),
        (b"\x20\x05\x00\x00\x02\x24\x00", "it does not support QoS 1", True),
        (b"\x20\x05\x00\x00\x02\x25\x00", "it does not support retained messages", True),
        (b"HTTP/1.1 400 Bad Request\r\n", "did not answer", False),
    ],
)
def test_a_server_s_reason_codes_are_explained(
    network: NetworkLoop, links: list[MqttLink], answer: bytes, reason: str, refused: bool
) -> None:
    server = Scripted(answer)
    links.append(
        MqttLink(quick(server.port, connect_timeout_s=0.5, protocol="5"), "pi", network=network)
    )
    links[0].open()
    down = wait_down(links[0])
    links[0].abort()
    server.join(10)
    assert down.refused is refused
    assert re.search(reason, down.reason), down.reason


def test_two_clients_with_one_id_are_reported_after_a_few_rounds(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    twins = [MqttLink(quick(mosquitto.port), unique("twin"), network=network) for _ in range(2)]
    links += twins
    for twin in twins:
        twin.open()
    reasons = [wait_down(twins[0]).reason for _ in range(3)]
    assert "lost 3 times" in reasons[2]
    assert f"does another client use the id {unique('twin')!r}?" in reasons[2]


# --- limits --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[LocalBroker]:
    """A Mosquitto with small limits."""
    need("mosquitto")
    config = "max_packet_size 20000\nmax_inflight_messages 2\n"
    with LocalBroker("mosquitto", extra_config=config) as broker:
        yield broker


def test_the_servers_packet_limit_is_kept(
    narrow: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    topic = unique("t")
    link = MqttLink(quick(narrow.port), unique("pi"), network=network)
    links.append(link)
    link.subscribe(topic)
    link.open()
    assert 18_000 < wait_up(link).max_payload_bytes < 20_000
    with pytest.raises(LinkError, match=r"20\d\d\d bytes; the limit of broker .* is 20000"):
        link.publish(topic, bytes(20_000))
    link.publish(topic, bytes(19_900))
    assert len(take(link)[0].payload) == 19_900


def test_a_message_queued_before_the_limit_was_known_is_dropped(
    narrow: LocalBroker,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Unique,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = unique("t")
    link = MqttLink(quick(narrow.port), unique("pi"), network=network, max_queued_messages=2)
    links.append(link)
    link.subscribe(topic)
    link.publish(topic, bytes(50_000))
    link.publish(topic, b"small")
    with caplog.at_level(logging.ERROR):
        link.open()
        wait_up(link)
        assert take(link)[0].payload == b"small"
    assert f"on {topic} dropped: the server's limit is 20000" in caplog.text
    assert nothing_comes(link)
    link.publish(topic, b"there is room")  # both left the queue
    assert take(link)[0].payload == b"there is room"


def test_the_servers_receive_maximum_is_kept_after_a_reconnection(
    narrow: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    topic = unique("t")
    # Mosquitto lets as many be in flight towards us as we allow, whatever its own limit.
    link = MqttLink(quick(narrow.port), unique("pi"), network=network, receive_maximum=2)
    links.append(link)
    link.subscribe(topic)
    for number in range(200):
        link.publish(topic, b"%d" % number)
    link.open()
    wait_up(link)
    link.interrupt()
    seen: list[int] = []
    downs = 0
    while len(set(seen)) < 200:
        event = link.poll(5)
        assert event is not None
        downs += isinstance(event, LinkDown)
        if isinstance(event, Received):
            seen.append(int(event.payload))
    assert downs <= 1  # the interruption, and no server that throws us out
    # What was in flight may come twice, no more: two on their way out, two on their way back.
    assert len(seen) <= 204


def test_a_slow_owner_holds_few_messages_and_loses_none(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    topic = unique("t")
    slow = MqttLink(quick(mosquitto.port), unique("slow"), network=network, receive_maximum=10)
    sender = MqttLink(quick(mosquitto.port), unique("sender"), network=network)
    links += [slow, sender]
    slow.subscribe(topic)
    for link in (slow, sender):
        link.open()
        wait_up(link)
    for number in range(500):
        sender.publish(topic, b"%d" % number)
    time.sleep(0.3)
    assert slow.backlog() == 10
    assert [int(m.payload) for m in take(slow, 500)] == list(range(500))


def test_reconnections_do_not_pile_up_messages(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    topic = unique("t")
    slow = MqttLink(quick(mosquitto.port), unique("slow"), network=network, receive_maximum=5)
    links.append(slow)
    slow.subscribe(topic)
    slow.open()
    wait_up(slow)
    for number in range(50):
        slow.publish(topic, b"%d" % number)
    for _ in range(30):
        time.sleep(0.05)
        slow.interrupt()
    assert slow.backlog() <= 5 * 5 + 2 * 10  # windows, and LinkUp with LinkDown
    seen: set[int] = set()
    while len(seen) < 50:
        seen |= {int(message.payload) for message in take(slow)}


def test_a_foreign_message_that_is_too_large_is_refused(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    topic = unique("t")
    small = MqttLink(
        quick(mosquitto.port, max_payload_bytes=2000), unique("small"), network=network
    )
    large = MqttLink(quick(mosquitto.port), unique("large"), network=network)
    links += [small, large]
    small.subscribe(topic)
    for link in (small, large):
        link.open()
        wait_up(link)
    large.publish(topic, bytes(10_000))
    large.publish(topic, b"ok")
    assert take(small)[0].payload == b"ok"


def test_a_slow_owner_is_not_flooded_with_foreign_qos_0(
    mosquitto: LocalBroker,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Unique,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = unique("t")
    slow = MqttLink(quick(mosquitto.port), unique("slow"), network=network, receive_maximum=1)
    links.append(slow)
    slow.subscribe(topic)
    slow.open()
    wait_up(slow)
    with caplog.at_level(logging.ERROR):
        paho_publish.multiple(
            [(topic, b"x", 0, False) for _ in range(50)], hostname="127.0.0.1", port=mosquitto.port
        )
        deadline_s = time.monotonic() + 5
        while "(32 such messages so far)" not in caplog.text and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert slow.backlog() == 5  # four times the receive maximum, and one
    assert caplog.text.count("events wait to be polled") == 6  # of 45: the 1st, 2nd, 4th ... 32nd


# --- the socket ----------------------------------------------------------------------------------


def test_small_messages_do_not_wait_for_each_other(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    link = MqttLink(quick(mosquitto.port), unique("pi"), network=network)
    links.append(link)
    topic = unique("t")
    link.subscribe(topic)
    link.open()
    wait_up(link)
    start_s = time.monotonic()
    for _ in range(50):
        link.publish(topic, bytes(200))
        take(link)
    assert (time.monotonic() - start_s) / 50 < 0.02  # 40 ms each without TCP_NODELAY
    sock = link._connection._driver.client.socket()
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_fifty_links_share_one_thread(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    topic = unique("all")
    before = threading.active_count()
    links += [MqttLink(quick(mosquitto.port), unique(f"d{n}"), network=network) for n in range(50)]
    for link in links:
        link.subscribe(topic)
        link.open()
    for link in links:
        wait_up(link)
    assert threading.active_count() - before <= 4  # connectors
    for link in links:
        link.publish(topic, b"x")
    for link in links:
        assert len(take(link, 50)) == 50


def test_an_exception_in_a_callback_does_not_affect_other_links(
    mosquitto: LocalBroker,
    unique: Unique,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def explode(event: object) -> None:
        raise RuntimeError("boom")

    topic = unique("t")
    with NetworkLoop() as network:
        bad = MqttLink(quick(mosquitto.port), unique("bad"), network=network)
        good = MqttLink(quick(mosquitto.port), unique("good"), network=network)
        for link in (bad, good):
            link.subscribe(topic)
            link.open()
            wait_up(link)
        monkeypatch.setattr(bad, "emit", explode)
        with caplog.at_level(logging.CRITICAL, "broker.link.network_loop"):
            for _ in range(20):
                good.publish(topic, b"x")
            assert len(take(good, 20)) == 20
        deadline_s = time.monotonic() + 5
        while network.errors < 20 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert network.errors == 20
        monkeypatch.undo()
        bad.abort()
        good.close()


# --- closing -------------------------------------------------------------------------------------


def test_close_sends_waiting_messages_even_before_the_link_is_up(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink], unique: Unique
) -> None:
    topic = unique("t")
    receiver = MqttLink(quick(mosquitto.port), unique("receiver"), network=network)
    links.append(receiver)
    listen(receiver, topic)
    will = Will(topic, b"a will")
    brief = MqttLink(quick(mosquitto.port), unique("brief"), will=will)
    brief.open()
    for number in range(200):
        brief.publish(topic, b"%d" % number)
    brief.close()
    assert [int(m.payload) for m in take(receiver, 200)] == list(range(200))
    assert nothing_comes(receiver)


def test_close_does_not_wait_for_an_absent_broker(network: NetworkLoop) -> None:
    link = MqttLink(BrokerSettings(port=free_port(), backoff_min_s=60), "pi", network=network)
    link.open()
    wait_down(link)
    link.publish("t", b"in vain")
    start_s = time.monotonic()
    link.close()
    assert time.monotonic() - start_s < 0.5


def test_a_link_that_was_closed_while_it_connected_stays_closed(
    mosquitto: LocalBroker,
    network: NetworkLoop,
    links: list[MqttLink],
    unique: Unique,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = unique("t")
    receiver = MqttLink(quick(mosquitto.port), unique("receiver"), network=network)
    links.append(receiver)
    listen(receiver, topic)
    link = MqttLink(quick(mosquitto.port), unique("late"), network=network, flush_s=0.05)
    client, go_on = link._connection._driver.client, threading.Event()
    connect = client.reconnect
    monkeypatch.setattr(client, "reconnect", lambda: go_on.wait(10) and connect())
    link.open()
    link.publish(topic, b"too late")
    link.close()  # the connector thread is busy still
    go_on.set()
    assert nothing_comes(receiver, 0.5)
    assert client.socket() is None


def test_close_gives_up_on_a_server_that_does_not_acknowledge() -> None:
    server = Scripted(_CONNACK)
    link = MqttLink(quick(server.port), "pi", flush_s=0.2)
    link.open()
    wait_up(link)
    link.publish("t", b"x")
    start_s = time.monotonic()
    link.close()
    assert 0.15 < time.monotonic() - start_s < 2.0
    server.join(10)


def test_a_link_leaves_no_thread_and_no_socket(mosquitto: LocalBroker, unique: Unique) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    threads = threading.active_count()
    for number in range(5):
        link = MqttLink(quick(mosquitto.port), unique(f"pi{number}"))
        link.open()
        wait_up(link)
        link.close()
    deadline_s = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    assert len(list(Path("/proc/self/fd").iterdir())) <= files


# --- TLS -----------------------------------------------------------------------------------------


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificate(folder: Path, name: str, subject: str, extension: str) -> None:
    (folder / f"{name}.ext").write_text(extension)
    request = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        folder, "req", *request, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject
    )
    signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
    openssl(
        folder,
        *("x509", "-req", "-in", f"{name}.csr", *signer),
        *("-extfile", f"{name}.ext", "-out", f"{name}.pem"),
    )


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port of a TLS listener that wants client certificates, and the folder of the certificates."""
    need("mosquitto")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    request = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-x509"]
    for name in ("ca", "other"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl(folder, "req", *request, *files, "-subj", f"/CN={name}", "-days", "2")
    make_certificate(folder, "server", "/CN=broker", "subjectAltName=IP:127.0.0.1")
    make_certificate(folder, "pi", "/CN=pi", "extendedKeyUsage=clientAuth")
    for file in folder.iterdir():
        file.chmod(0o644)
    port = free_port()
    config = (
        f"listener {port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/server.pem\n"
        f"keyfile {folder}/server.key\nrequire_certificate true\n"
    )
    with LocalBroker("mosquitto", extra_config=config):
        yield port, folder


def test_messages_travel_over_tls(
    secure: tuple[int, Path], network: NetworkLoop, links: list[MqttLink]
) -> None:
    port, folder = secure
    tls = TlsSettings(
        ca_file=f"{folder}/ca.pem", cert_file=f"{folder}/pi.pem", key_file=f"{folder}/pi.key"
    )
    link = MqttLink(quick(port, tls=tls), "pi", network=network)
    links.append(link)
    link.subscribe("t/+")
    link.open()
    wait_up(link)
    for number in range(300):  # many packets in one TLS record: epoll sees only the first
        link.publish(f"t/{number % 7}", b"%d" % number)
    assert [int(m.payload) for m in take(link, 300)] == list(range(300))
    payload = bytes(range(256)) * 3000
    link.publish("t/large", payload)
    assert take(link)[0].payload == payload


def test_a_broker_with_a_foreign_certificate_is_refused(
    secure: tuple[int, Path], network: NetworkLoop, links: list[MqttLink]
) -> None:
    port, folder = secure
    tls = TlsSettings(ca_file=f"{folder}/other.pem")
    links.append(MqttLink(quick(port, tls=tls), "pi", network=network))
    links[0].open()
    down = wait_down(links[0])
    assert down.refused
    assert f"certificate of broker 127.0.0.1:{port} is not trusted" in down.reason


def test_a_broker_that_requires_a_certificate_is_reported(
    secure: tuple[int, Path], network: NetworkLoop, links: list[MqttLink]
) -> None:
    port, folder = secure
    tls = TlsSettings(ca_file=f"{folder}/ca.pem")
    links.append(MqttLink(quick(port, tls=tls), "pi", network=network))
    links[0].open()
    assert "refused our certificate (it requires one" in wait_down(links[0]).reason


def test_tls_on_a_plain_port_is_reported(
    mosquitto: LocalBroker, network: NetworkLoop, links: list[MqttLink]
) -> None:
    links.append(MqttLink(quick(mosquitto.port, tls=TlsSettings()), "pi", network=network))
    links[0].open()
    down = wait_down(links[0], 15)
    assert "TLS" in down.reason or "cannot reach" in down.reason
