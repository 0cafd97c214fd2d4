"""Who gets into a fleet and who is shut out of it: certificates, real ones and others."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from broker.link.link import LinkDown
from broker.local.broker import answers
from broker.protocol.topics import Topics
from broker.security import devices
from broker.security.certificate_authority import Authority
from broker.security.fleet import utc_now
from tests.conftest import wait_down
from tests.integration.conftest import Connect
from tests.integration.fleet_folder import (
    FEDERATION,
    NOT_AUTHORISED,
    ROOT,
    Client,
    RunningFleet,
    command,
    context_as,
    context_of,
    fedge,
    link_with,
    make_fleet,
    running,
    signed,
    until,
    update,
    why_refused,
)

pytestmark = pytest.mark.mosquitto

#: What an operator reads of a certificate that was refused.
NOT_OURS = "client certificate is foreign, expired, not yet valid or revoked"


# --- who gets in ----------------------------------------------------------------------------------


def test_a_client_without_a_certificate_is_refused(place: RunningFleet) -> None:
    assert "it requires one" in why_refused(place, None)
    assert place.tells("refused: client sent no certificate")


def test_a_client_without_tls_is_refused(place: RunningFleet) -> None:
    assert not answers(place.port)


def test_a_certificate_of_another_authority_is_refused(place: RunningFleet, tmp_path: Path) -> None:
    now = utc_now()
    foreign = Authority.create(FEDERATION, now)
    issued = Authority(foreign.certificate, foreign.key).issue("alice", "client", now, 5)
    identity = tmp_path / "identity.pem"
    identity.write_bytes(issued.certificate + issued.key)
    assert "another authority" in why_refused(place, identity)
    assert place.tells(NOT_OURS)


def test_a_device_of_another_fleet_is_refused_and_refuses_us(
    place: RunningFleet, tmp_path: Path
) -> None:
    other = RunningFleet(make_fleet(tmp_path / "other", 1), tmp_path / "devices", tmp_path)
    theirs = other.device("alice")
    assert "another authority" in why_refused(place, theirs / "agent.pem")
    assert place.tells(NOT_OURS)
    reason = why_refused(place, theirs / "agent.pem", theirs / "ca.crt")
    assert "is that this fleet's authority?" in reason


@pytest.mark.parametrize(
    ("days_ago", "days", "words"), [(10, 5, "expired"), (-10, 5, "not yet valid")]
)
def test_a_certificate_is_valid_only_in_its_time(
    place: RunningFleet, tmp_path: Path, days_ago: int, days: int, words: str
) -> None:
    reason = why_refused(place, signed(place, tmp_path, "alice", days_ago, days))
    assert words in reason
    assert "by the broker's clock" in reason
    assert place.tells(NOT_OURS)


def test_the_broker_s_certificate_is_not_a_client_certificate(
    place: RunningFleet, tmp_path: Path
) -> None:
    identity = tmp_path / "identity.pem"
    shutil.copy(place.fleet.broker_folder / "server.pem", identity)
    assert "not a client certificate" in why_refused(place, identity)
    assert place.tells(NOT_OURS)


@contextmanager
def false_broker(identity: Path) -> Iterator[int]:
    """A TLS server with a certificate of one's choice; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


def down_at(place: RunningFleet, port: int) -> LinkDown:
    """What alice says of a broker that she should not trust."""
    folder = place.devices / "alice"
    link = link_with(place, folder / "ca.crt", folder / "agent.pem", port)
    try:
        link.open()
        return wait_down(link)
    finally:
        link.abort()


def test_a_device_cannot_pose_as_the_broker(place: RunningFleet) -> None:
    with false_broker(place.devices / "mallory" / "agent.pem") as port:
        down = down_at(place, port)
    assert down.refused
    assert "is not trusted" in down.reason


@pytest.mark.parametrize(
    ("host", "days_ago", "words", "final"),
    [
        ("other.example.org", 0, "`host` must be a name in the certificate", True),
        ("127.0.0.1", 10, "certificate has expired: this device's clock says 20", True),
        ("127.0.0.1", -10, "not yet valid: this device's clock says 20", False),
    ],
)
def test_a_broker_with_the_wrong_name_or_time_is_not_trusted(
    place: RunningFleet, tmp_path: Path, host: str, days_ago: int, words: str, final: bool
) -> None:
    identity = signed(place, tmp_path, "fedge broker", days_ago, 5, host)
    with false_broker(identity) as port:
        down = down_at(place, port)
    assert words in down.reason
    assert down.refused == final


@pytest.mark.parametrize("name", ["+", "#", "mallory/../alice", "agents/alice", "coordinator/x"])
def test_a_certificate_with_a_malicious_name_gives_no_rights(
    place: RunningFleet, tmp_path: Path, name: str
) -> None:
    """Should the authority's key ever sign one: rules are literal, and there is none for it."""
    identity = signed(place, tmp_path, name, 0, 5)
    client = Client(place.port, context_of(place.devices / "alice" / "ca.crt", identity))
    try:
        client.connect()
        for tail in ("agents/alice/updates/1/0", "coordinator/status", f"agents/{name}/status"):
            with suppress(ValueError):  # paho publishes no wildcards
                assert client.publish(ROOT + tail) == NOT_AUTHORISED
        assert client.publish(f"{ROOT}round") == NOT_AUTHORISED
    finally:
        client.close()
    assert place.tells(f"{name} published 6 bytes on {ROOT}round: refused")


# --- shut out -------------------------------------------------------------------------------------


def has_no_rights(place: RunningFleet, client: Client, topic: str) -> bool:
    """Whether a client that was connected is shut out: the plugin ends its connection."""
    if place.fleet.register.plugin:
        return client.ended.get(timeout=5) != 0
    return client.publish(topic) == NOT_AUTHORISED


def test_a_revoked_device_loses_its_rights_at_once_and_cannot_reconnect(
    place: RunningFleet, connect: Connect
) -> None:
    folder = place.device("gone")
    update(place)
    coordinator, alice, gone = connect("coordinator"), connect("alice"), connect("gone")
    own, inbox = f"{ROOT}agents/gone/updates/1/0", f"{ROOT}agents/gone/inbox"
    coordinator.subscribe(*Topics(FEDERATION).from_agents)
    gone.subscribe(inbox, f"{ROOT}round")
    assert gone.publish(own, b"last words") == 0
    assert coordinator.heard() == [(own, b"last words")]
    devices.revoke(place.fleet, "gone", utc_now())
    update(place)
    assert has_no_rights(place, gone, own)
    coordinator.publish(inbox, b"receipt")
    coordinator.publish(f"{ROOT}round", b"plan")
    assert gone.heard() == []
    assert coordinator.heard(0) == []
    assert "it was revoked" in why_refused(place, folder / "agent.pem")
    assert place.tells(NOT_OURS)
    # Nobody else noticed.
    assert alice.ended.empty()
    assert coordinator.ended.empty()
    assert alice.publish(f"{ROOT}agents/alice/reports/1") == 0


@pytest.mark.parametrize("options", [[], ["--token"]])
def test_a_revoked_name_is_enrolled_again_and_the_old_certificate_stays_without_rights(
    place: RunningFleet, connect: Connect, unique: Callable[[str], str], options: list[str]
) -> None:
    name = unique("back")
    own, folder = f"{ROOT}agents/{name}/status", place.device(name)
    update(place)
    old = connect(name)
    assert old.publish(own) == 0
    fedge("broker", "revoke", place.fleet.folder, name)
    said = fedge("broker", "enrol", place.fleet.folder, name, *options)
    assert "the running broker" in said
    assert has_no_rights(place, old, own)
    assert "it was revoked" in why_refused(place, folder / "agent.pem")
    if not options:
        fedge("agent", "enrol", place.fleet.folder / f"bundles/{name}.bundle", "--dir", folder)
        assert connect(name).publish(own) == 0


def test_a_revoked_agent_ends_with_one_clear_line(place: RunningFleet) -> None:
    config = place.device("late") / "agent.yaml"
    devices.revoke(place.fleet, "late", utc_now())
    update(place)
    done = command("agent", "run", "--config", config)
    assert done.returncode == 3
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "refused our certificate (it was revoked; cert_file" in error


def test_a_rotated_certificate_of_the_coordinator_is_refused(
    program: Path, plugin: str, tmp_path: Path
) -> None:
    fleet = make_fleet(tmp_path / "fleet", plugin=plugin)
    identity, ca = (fleet.folder / "coordinator" / n for n in ("coordinator.pem", "ca.crt"))
    with running(fleet, tmp_path, program) as place:
        stolen = tmp_path / "stolen.pem"
        shutil.copy(identity, stolen)
        thief = Client(place.port, context_of(ca, stolen)).connect()
        assert thief.publish(f"{ROOT}round") == 0
        assert "the running broker" in fedge("broker", "rotate-coordinator", fleet.folder)
        assert "it was revoked" in why_refused(place, stolen, ca)
        assert has_no_rights(place, thief, f"{ROOT}round")
        coordinator = Client(place.port, context_of(ca, identity)).connect()
        assert coordinator.publish(f"{ROOT}round") == 0
        coordinator.close()
        thief.close()


def test_a_broker_with_another_name_is_accepted_without_a_restart(
    program: Path, tmp_path: Path
) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    with running(fleet, tmp_path, program) as place:
        device = place.device("alice")
        context = context_of(device / "ca.crt", device / "agent.pem")
        connected = Client(place.port, context).connect()
        before = served(place, context, "localhost")
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            served(place, context, "new.example.org")
        hosts = "new.example.org,localhost,127.0.0.1"
        said = fedge("broker", "rotate-broker", fleet.folder, "--host", hosts)
        assert "reloads its files" in said
        assert until(lambda: served(place, context, "localhost") != before)
        assert served(place, context, "new.example.org") != before
        assert connected.publish(f"{ROOT}agents/alice/status") == 0  # nobody was sent away
        connected.close()


def served(place: RunningFleet, context: ssl.SSLContext, name: str) -> bytes | None:
    """The certificate that a client sees who looks for the broker under `name`."""
    with (
        socket.create_connection(("127.0.0.1", place.port), 5) as plain,
        context.wrap_socket(plain, server_hostname=name) as sock,
    ):
        return sock.getpeercert(binary_form=True)


def resumed(
    place: RunningFleet, context: ssl.SSLContext, session: ssl.SSLSession | None, topic: str
) -> tuple[ssl.SSLSession | None, int]:
    """Connects over MQTT, perhaps with the ticket of an earlier connection, and publishes.

    Returns its own ticket, and the broker's reason code.
    """
    name = topic.encode()
    with socket.create_connection(("127.0.0.1", place.port), 5) as plain:
        sock = context.wrap_socket(plain, server_hostname="localhost", session=session)
        with sock:
            sock.sendall(b"\x10\x14\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x07ignored")
            answer = sock.recv(100)
            if answer[:1] != b"\x20":
                raise ConnectionError("no CONNACK")
            body = len(name).to_bytes(2, "big") + name + b"\x00\x01\x00"
            sock.sendall(bytes([0x32, len(body)]) + body)
            puback = sock.recv(100)
            assert puback[:1] == b"\x40", (answer, puback)
            return sock.session, puback[4] if puback[1] > 2 else 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("change", [devices.revoke, devices.rotate])
def test_an_earlier_tls_session_does_not_outlive_the_certificate(
    place: RunningFleet,
    version: ssl.TLSVersion,
    change: Callable[..., object],
    unique: Callable[[str], str],
) -> None:
    """OpenSSL looks at no list when a session goes on: without a reload rights are what counts."""
    name = unique(f"ticket-{version.name[-1]}")
    own = f"{ROOT}agents/{name}/status"
    place.device(name)
    update(place)
    context = context_as(place, name)
    context.minimum_version = context.maximum_version = version
    session, code = resumed(place, context, None, own)
    assert code < 0x80
    more = () if change is devices.revoke else (None, 30)
    change(place.fleet, name, utc_now(), *more)
    update(place)
    if place.fleet.register.plugin:
        assert resumed(place, context, session, own)[1] == NOT_AUTHORISED
        return
    with pytest.raises(OSError, match=r"(?i)revoked|reset|eof|CONNACK|broken pipe"):
        resumed(place, context, session, own)
    assert place.tells(NOT_OURS)


def test_a_rotated_device_connects_only_with_its_new_certificate(
    place: RunningFleet, connect: Connect, tmp_path: Path, unique: Callable[[str], str]
) -> None:
    name = unique("turner")
    folder = place.device(name)
    own = f"{ROOT}agents/{name}/status"
    update(place)
    old = tmp_path / "old.pem"
    shutil.copy(folder / "agent.pem", old)
    alice, thief = connect("alice"), connect(name)
    assert thief.publish(own) == 0
    bundle = devices.rotate(place.fleet, name, utc_now(), None, 30)
    update(place)
    assert has_no_rights(place, thief, own)
    assert "it was revoked" in why_refused(place, old)
    fedge("agent", "enrol", bundle, "--dir", folder)
    new = connect(name)
    assert new.publish(own) == 0
    connect(name)
    assert new.ended.get(timeout=5) != 0
    assert place.tells(f"{name} connected a second time: is its key on two machines?")
    assert alice.ended.empty()


def test_nobody_but_the_administrator_changes_the_rules(
    place: RunningFleet, connect: Connect
) -> None:
    if not place.fleet.register.plugin:
        pytest.skip("rules are a file here")
    command = {"command": "addClientRole", "username": "mallory", "rolename": "coordinator"}
    payload = json.dumps({"commands": [command]}).encode()
    for name in ("mallory", "coordinator"):
        client = connect(name)
        assert client.publish("$CONTROL/dynamic-security/v1", payload) == NOT_AUTHORISED
        assert client.subscribe("$CONTROL/#", "$CONTROL/dynamic-security/v1/response") == [
            NOT_AUTHORISED,
            NOT_AUTHORISED,
        ]
    assert connect("mallory").publish(f"{ROOT}round") == NOT_AUTHORISED


def test_the_administrator_may_do_nothing_else(place: RunningFleet, tmp_path: Path) -> None:
    identity = signed(place, tmp_path, "administrator", 0, 1)
    client = Client(place.port, context_of(place.devices / "alice" / "ca.crt", identity)).connect()
    try:
        assert client.publish(f"{ROOT}round") == NOT_AUTHORISED
        assert client.publish(f"{ROOT}agents/administrator/status") == NOT_AUTHORISED
        client.subscribe("#", f"{ROOT}agents/+/status", "$SYS/#")
        assert client.heard() == []
    finally:
        client.close()
