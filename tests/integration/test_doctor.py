"""What the doctors find at real brokers, with and without TLS, healthy and sick."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import numpy as np
import pytest

from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings, TlsSettings
from broker.link.transport_settings import ProxyKind, ProxySettings
from broker.local.broker import LocalBroker, find_mosquitto
from broker.protocol import blobs, messages
from broker.protocol.messages import AgentStatus, CoordinatorStatus, ProgramManifest
from broker.protocol.signed_messages import read_public_keys
from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    Topics,
)
from broker.security import devices
from broker.security.certificate_authority import Authority
from broker.security.create_fleet import create_fleet
from broker.security.fleet import utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.signing import Signer, SigningKeys
from coordinator.config import CoordinatorConfig
from coordinator.doctor import diagnose as diagnose_coordinator
from edge_agent.config import AgentConfig
from edge_agent.doctor.doctor import diagnose
from edge_agent.machine.trust import TrustRecord
from edge_agent.storage.trust_file import TrustFile
from fedge.check_result import Check, exit_code
from fedge.command import cli
from fedge.files import Account
from fedge.yaml_config import load_config
from models.zoo import load_zoo
from tests.conftest import need, take, wait_up
from tests.gateway import Gateway
from tests.integration.fleet_folder import (
    RunningFleet,
    link_with,
    listens,
    make_fleet,
    running,
    signed,
    until,
    update,
)
from tests.ports import free_port
from tests.transports import Transports

pytestmark = pytest.mark.mosquitto

TOPICS = Topics("houses")
PACKAGE = load_zoo("house_price")
MODEL = PACKAGE.content
NAMES = ["median_income", "rooms_per_household", "price"]


def write_houses(path: Path, rows: int = 40, names: list[str] = NAMES, scale: float = 1.0) -> None:
    rng = np.random.default_rng(0)
    lines = [",".join(names)]
    for _ in range(rows):
        income, rooms = scale * rng.uniform(2, 5), rng.uniform(4, 7)
        lines.append(f"{income:.3f},{rooms:.3f},{rng.integers(100_000, 400_000)}")
    path.write_text("\n".join(lines) + "\n")


def agent_config(folder: Path, broker: BrokerSettings, **changes: Any) -> AgentConfig:
    if not (folder / "houses.csv").exists():
        write_houses(folder / "houses.csv")
    text: dict[str, Any] = {
        "federation": "houses",
        "agent_id": "alice",
        "data": {"path": "houses.csv", "target": {"column": "price", "scale": 1e-5}},
    }
    (folder / "agent.yaml").write_text(json.dumps(text | changes))
    config = load_config(folder / "agent.yaml", AgentConfig)
    return msgspec.structs.replace(config, broker=broker)


class Found:
    """All checks of a run."""

    def __init__(self, checks: Iterator[Check]) -> None:
        self.checks = list(checks)
        self.exit_code = exit_code(self.checks)

    def named(self, name: str) -> list[Check]:
        return [check for check in self.checks if check.name == name]

    def one(self, name: str) -> Check:
        (check,) = self.named(name)
        return check

    @property
    def failed(self) -> list[str]:
        return [check.name for check in self.checks if check.state == "failed"]

    @property
    def only_failure(self) -> Check:
        (check,) = [check for check in self.checks if check.state == "failed"]
        assert check.advice
        return check


def look(folder: Path, broker: BrokerSettings, **changes: Any) -> Found:
    """The way to the broker, and the broker."""
    checks = diagnose(agent_config(folder, broker, **changes), folder, MODEL)
    return Found(itertools.takewhile(lambda check: check.name != "disk", checks))


def look_at_all(folder: Path, broker: BrokerSettings, model: Any = MODEL, **changes: Any) -> Found:
    return Found(diagnose(agent_config(folder, broker, **changes), folder, model))


# -- without TLS ----------------------------------------------------------------------------------


def test_a_broker_without_access_rules_is_a_warning(mosquitto: LocalBroker, tmp_path: Path) -> None:
    found = look_at_all(tmp_path, BrokerSettings(port=mosquitto.port))
    assert found.failed == []
    assert found.exit_code == 0
    able, unwanted = found.named("access")
    assert able.state == "ok"
    assert unwanted.state == "warning"
    assert {"publish plans", "read what other agents send"} <= set(unwanted.facts["allowed"])
    assert found.one("round trip").facts["median_s"] > 0
    assert found.one("program").facts["step_s"] > 0
    assert found.one("data").facts == {"train_rows": 32, "test_rows": 8, "left_out_rows": 0}


def test_the_doctor_changes_nothing_at_the_broker(mosquitto: LocalBroker, tmp_path: Path) -> None:
    settings = BrokerSettings(port=mosquitto.port)
    look(tmp_path, settings, federation="untouched")
    config = CoordinatorConfig(federation="untouched", model="house_price", broker=settings)
    found = Found(diagnose_coordinator(config, tmp_path))
    assert found.failed == []
    assert found.one("agents").facts == {"known": 0, "online": 0, "able": 0}
    again = look(tmp_path, settings, federation="untouched")
    assert "no word" in again.one("coordinator").found
    assert not (tmp_path / "state").exists()


def test_the_coordinator_counts_a_fleet_that_is_larger_than_a_window(
    mosquitto: LocalBroker, tmp_path: Path
) -> None:
    settings = BrokerSettings(port=mosquitto.port)
    link = MqttLink(settings, "many")
    link.open()
    wait_up(link)
    names = [Topics("large").name(AgentStatusTopic(f"pi-{n}")) for n in range(250)]
    for n, name in enumerate(names):
        paused = "too_hot: 80 °C, limit 75" if n < 10 else ""
        status = AgentStatus(
            state="online",
            agent_instance="b",
            pause_reason=paused,
            phases=("train",),
            codecs=("int8",),
            algorithms=("fedavg",) if n % 50 else (),
        )
        link.publish(name, messages.encode(status), retain=True)
    config = CoordinatorConfig(federation="large", model="house_price", broker=settings)
    found = Found(diagnose_coordinator(config, tmp_path))
    for name in names:
        link.publish(name, b"", retain=True)
    link.close()
    assert found.one("agents").facts == {"known": 250, "online": 250, "able": 236}
    assert "236 can take part, 10 paused; 4 do not know algorithm 'fedavg'" in (
        found.one("agents").found
    )


def test_a_closed_port_is_distinguished_from_a_wrong_port(
    mosquitto: LocalBroker, tmp_path: Path
) -> None:
    found = look_at_all(tmp_path, BrokerSettings(port=free_port()))
    assert found.only_failure.name == "tcp"
    assert found.exit_code == 3
    assert found.one("login").state == "skipped"
    assert found.one("program").state == "ok"  # what does not need the broker is looked at


def test_an_unknown_host_name_is_reported(tmp_path: Path) -> None:
    found = look(tmp_path, BrokerSettings(host="broker.invalid"))
    assert found.only_failure.name == "names"
    assert "broker.invalid was not found" in found.only_failure.found
    assert found.exit_code == 3


def test_a_server_that_speaks_no_mqtt_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = look(tmp_path, BrokerSettings(port=port, connect_timeout_s=0.5))
    assert found.only_failure.name == "login"
    assert "did not answer" in found.only_failure.found


def test_a_missing_password_file_is_reported(mosquitto: LocalBroker, tmp_path: Path) -> None:
    settings = BrokerSettings(port=mosquitto.port, username="a", password_file="none").located(
        tmp_path
    )
    found = look(tmp_path, settings)
    assert found.only_failure.name == "files"
    assert found.exit_code == 2


# -- with TLS -------------------------------------------------------------------------------------


def tls_of(place: RunningFleet, **changes: Any) -> BrokerSettings:
    folder = place.devices / "alice"
    identity = str(changes.pop("identity", folder / "agent.pem"))
    ca_file = str(changes.pop("ca", folder / "ca.crt"))
    tls = TlsSettings(ca_file=ca_file, cert_file=identity, key_file=identity)
    return msgspec.structs.replace(BrokerSettings(port=place.port, tls=tls), **changes)


def test_an_enrolled_device_has_exactly_its_rights(place: RunningFleet, tmp_path: Path) -> None:
    found = look(tmp_path, tls_of(place))
    assert found.failed == []
    assert [check.state for check in found.named("access")] == ["ok", "ok"]
    assert found.one("tls").facts["version"] == "TLSv1.3"
    assert found.one("packets").facts["max_packet_bytes"] == 1_114_112
    assert any("our certificate 'alice." in check.found for check in found.named("files"))


def test_the_coordinator_has_exactly_its_rights(place: RunningFleet, tmp_path: Path) -> None:
    folder = place.fleet.folder / "coordinator"
    identity = str(folder / "coordinator.pem")
    tls = TlsSettings(ca_file=str(folder / "ca.crt"), cert_file=identity, key_file=identity)
    broker = BrokerSettings(port=place.port, tls=tls)
    config = CoordinatorConfig(federation="houses", model="house_price", broker=broker)
    found = Found(diagnose_coordinator(config, tmp_path))
    assert found.failed == []
    assert [check.state for check in found.named("access")] == ["ok", "ok"]


def test_a_device_of_another_federation_has_no_rights_in_ours(
    place: RunningFleet, tmp_path: Path
) -> None:
    found = look(tmp_path, tls_of(place), federation="boats")
    assert found.only_failure.name == "access"
    assert "write fedge/v1/boats/agents/alice/status" in found.only_failure.found
    assert found.exit_code == 3


def test_another_devices_certificate_is_noticed(place: RunningFleet, tmp_path: Path) -> None:
    found = look(tmp_path, tls_of(place), agent_id="bob")
    (own,) = [check for check in found.named("files") if check.state == "warning"]
    assert "for 'alice." in own.found
    assert "not for 'bob'" in own.found
    assert found.only_failure.name == "access"


def test_a_foreign_authority_is_named_with_what_the_broker_shows(
    place: RunningFleet, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(Authority.create("houses", utc_now()).certificate)
    failure = look(tmp_path, tls_of(place, ca=ca)).only_failure
    assert failure.name == "tls"
    assert "is that this fleet's authority?" in failure.found
    assert "made for localhost, 127.0.0.1" in failure.advice


def test_a_host_that_is_not_in_the_certificate_is_reported(tmp_path: Path) -> None:
    need("mosquitto")
    settings = FleetSettings(
        "houses", ["broker.example"], free_port(), "127.0.0.1", Account.current().name
    )
    fleet = create_fleet(tmp_path / "fleet", settings, utc_now())
    with running(fleet, tmp_path) as place:
        place.device("alice")
        failure = look(tmp_path, tls_of(place)).only_failure
    assert failure.name == "tls"
    assert "not 127.0.0.1" in failure.found
    assert "made for broker.example" in failure.advice


def test_an_expired_certificate_of_the_broker_is_reported(tmp_path: Path) -> None:
    need("mosquitto")
    fleet = make_fleet(tmp_path / "fleet")
    place = RunningFleet(fleet, tmp_path / "devices", tmp_path / "mosquitto.log")
    place.device("alice")
    identity = signed(place, tmp_path, "fedge broker", 10, 5, host="127.0.0.1")
    shutil.copy(identity, fleet.broker_folder / "server.pem")
    with running(fleet, tmp_path) as place:
        failure = look(tmp_path, tls_of(place)).only_failure
    assert failure.name == "tls"
    assert "expired" in failure.found


def test_our_expired_certificate_is_reported_before_the_broker_is_asked(
    place: RunningFleet, tmp_path: Path
) -> None:
    identity = signed(place, tmp_path, "alice", 10, 5)
    found = look(tmp_path, tls_of(place, identity=identity))
    assert found.only_failure.name == "files"
    assert "expired on" in found.only_failure.found
    assert found.exit_code == 2


def test_a_certificate_from_the_future_is_reported_as_a_wrong_clock(
    place: RunningFleet, tmp_path: Path
) -> None:
    identity = signed(place, tmp_path, "alice", -10, 5)
    failure = look(tmp_path, tls_of(place, identity=identity)).only_failure
    assert "clock says" in failure.found
    assert failure.advice == "set the clock"


def test_a_certificate_that_ends_soon_is_a_warning(place: RunningFleet, tmp_path: Path) -> None:
    login = next(r.login for r in place.fleet.register.devices if r.agent_id == "alice")
    identity = signed(place, tmp_path, login, 10, 20)
    found = look(tmp_path, tls_of(place, identity=identity))
    assert found.failed == []
    ends = (utc_now() + timedelta(days=10)).strftime("%Y-%m-%d")
    assert any(f"expires on {ends}" in check.found for check in found.named("files"))


def test_a_key_readable_by_every_user_is_a_warning(place: RunningFleet, tmp_path: Path) -> None:
    identity = tmp_path / "agent.pem"
    shutil.copy(place.devices / "alice" / "agent.pem", identity)
    identity.chmod(0o644)
    found = look(tmp_path, tls_of(place, identity=identity))
    assert found.failed == []
    assert any("is readable by every user" in check.found for check in found.named("files"))


def test_a_revoked_certificate_is_named(tmp_path: Path) -> None:
    need("mosquitto")
    # A broker of its own: a reload is not good for Mosquitto 2.0's sessions (docs/security.md).
    with running(make_fleet(tmp_path / "fleet"), tmp_path) as place:
        place.device("alice")
        devices.revoke(place.fleet, "alice", utc_now())
        update(place)
        found = look(tmp_path, tls_of(place))
    assert found.only_failure.name == "login"
    assert "it was revoked" in found.only_failure.found
    assert found.exit_code == 3


def test_tls_on_a_plain_port_and_vice_versa_is_reported(
    place: RunningFleet, mosquitto: LocalBroker, tmp_path: Path
) -> None:
    wrong = look(tmp_path, tls_of(place, port=mosquitto.port)).only_failure
    assert (wrong.name, "TLS" in wrong.advice) == ("tls", True)
    plain = look(tmp_path, BrokerSettings(port=place.port, connect_timeout_s=1)).only_failure
    assert plain.name == "login"
    assert "a port for TLS needs broker.tls with the fleet's ca_file" in plain.advice


# -- the coordinator's word -----------------------------------------------------------------------


@pytest.fixture
def coordinator_link(place: RunningFleet) -> Iterator[MqttLink]:
    """The coordinator's place at the broker, without a coordinator."""
    folder = place.fleet.folder / "coordinator"
    link = link_with(place, folder / "ca.crt", folder / "coordinator.pem")
    link.open()
    wait_up(link)
    yield link
    for topic in (CoordinatorStatusTopic(), ProgramTopic()):
        link.publish(TOPICS.name(topic), b"", retain=True)
    link.close()


def say(link: MqttLink, signer: Signer | None) -> None:
    """As a coordinator does when it has connected."""
    ref, chunks = blobs.split(PACKAGE.wire)
    manifest = ProgramManifest(
        name="house_price", package=ref, fingerprint=PACKAGE.spec.fingerprint
    )
    status = CoordinatorStatus(state="online", session="s1", version=3)
    for n, chunk in enumerate(chunks):
        link.publish(TOPICS.name(ChunkTopic(ref.sha256, n)), chunk, retain=True)
    for topic, message in ((ProgramTopic(), manifest), (CoordinatorStatusTopic(), status)):
        name, payload = TOPICS.name(topic), messages.encode(message)
        payload = signer.signed(name, payload) if signer else payload
        link.publish(name, payload, retain=True)


def test_the_federations_own_model_is_fetched_and_tried(
    place: RunningFleet, coordinator_link: MqttLink, tmp_path: Path
) -> None:
    keys = SigningKeys.read(place.fleet.signing_file)
    say(coordinator_link, Signer(keys, 0, lambda number: None))
    trusted = str(place.devices / "alice" / "coordinator.pub")
    found = look_at_all(tmp_path, tls_of(place), None, trusted_keys=trusted)
    assert found.failed == []
    word = found.one("coordinator")
    assert word.state == "ok"
    assert word.found.startswith("online, version 3, model house_price, signed by ")
    assert found.one("program").facts["step_s"] > 0
    assert found.one("data").state == "ok"


def test_a_coordinator_with_an_unknown_key_is_not_trusted(
    place: RunningFleet, coordinator_link: MqttLink, tmp_path: Path
) -> None:
    trusted = str(place.devices / "alice" / "coordinator.pub")
    say(coordinator_link, Signer(SigningKeys.generate(), 0, lambda number: None))
    found = look(tmp_path, tls_of(place), trusted_keys=trusted)
    assert found.only_failure.name == "coordinator"
    assert "does not trust" in found.only_failure.found
    say(coordinator_link, None)
    assert "not signed" in look(tmp_path, tls_of(place), trusted_keys=trusted).only_failure.found


def test_a_key_that_the_agent_learned_is_trusted(
    place: RunningFleet, coordinator_link: MqttLink, tmp_path: Path
) -> None:
    newer = SigningKeys.generate()
    trusted = place.devices / "alice" / "coordinator.pub"
    pinned = tuple(key.hex() for key in read_public_keys(trusted))
    learned = tuple(key.hex() for key in newer.public)
    TrustFile(tmp_path / "state").write(TrustRecord(pinned=pinned, keys=learned))
    say(coordinator_link, Signer(newer, 0, lambda number: None))
    assert look_at_all(tmp_path, tls_of(place), None, trusted_keys=str(trusted)).failed == []


def test_without_trusted_keys_no_program_is_run(
    place: RunningFleet, coordinator_link: MqttLink, tmp_path: Path
) -> None:
    say(coordinator_link, Signer(SigningKeys.generate(), 0, lambda number: None))
    found = look_at_all(tmp_path, tls_of(place), None, trusted_keys="absent.pub")
    assert found.only_failure.name == "keys"
    assert "for which model?" in found.one("data").found


def test_an_unchecked_signature_is_a_warning(
    place: RunningFleet, coordinator_link: MqttLink, tmp_path: Path
) -> None:
    say(coordinator_link, Signer(SigningKeys.generate(), 0, lambda number: None))
    word = look(tmp_path, tls_of(place)).one("coordinator")
    assert (word.state, "nobody here checks" in word.found) == ("warning", True)


def is_interrupted(found: Found) -> bool:
    assert found.failed == []
    return any("stop it and repeat this check" in check.advice for check in found.checks)


def test_a_running_agent_reconnects_and_misses_nothing(place: RunningFleet, tmp_path: Path) -> None:
    folder = place.devices / "alice"
    link = link_with(place, folder / "ca.crt", folder / "agent.pem", session_expiry_s=3600)
    inbox = TOPICS.name(InboxTopic("alice"))
    link.subscribe(inbox)
    link.open()
    wait_up(link)
    # A broker that goes by certificates: it is the agent's own session that the doctor is given,
    # until the agent wants it back.
    # It may be through before that: then once more.
    assert until(lambda: is_interrupted(look(tmp_path, tls_of(place))), 30)
    folder = place.fleet.folder / "coordinator"
    coordinator_link = link_with(place, folder / "ca.crt", folder / "coordinator.pem")
    coordinator_link.open()
    wait_up(coordinator_link)
    coordinator_link.publish(inbox, b"a receipt")
    coordinator_link.close()
    # What the doctor had subscribed to in our session comes as well.
    while (message := take(link, 1, 30)[0]).topic != inbox:
        pass
    assert message.payload == b"a receipt"
    link.close()


# -- other ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["tls", "mutual", "websockets", "wss", "3.1.1"])
def test_every_transport_is_checked(transports: Transports, tmp_path: Path, way: str) -> None:
    settings = transports.settings(way)
    found = look(tmp_path, settings)
    assert found.failed == []
    login = found.one("login")
    assert ("over WebSockets" in login.found) == (settings.websocket is not None)
    assert login.facts["mqtt"] == ("3.1.1" if way == "3.1.1" else "5")
    able, unwanted = found.named("access")
    assert "publish plans" in unwanted.facts["allowed"]  # we hear it ourselves
    assert ("does not tell" in able.found) == (way == "3.1.1")


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_behind_a_proxy_tls_is_checked_at_the_login(
    transports: Transports, tmp_path: Path, kind: ProxyKind
) -> None:
    with Gateway() as gateway:
        proxy = ProxySettings(kind=kind, host="127.0.0.1", port=gateway.port)
        settings = msgspec.structs.replace(transports.settings("tls"), proxy=proxy)
        found = look(tmp_path, settings)
    assert found.failed == []
    assert "the proxy 127.0.0.1" in found.one("tcp").found
    assert found.one("tls").state == "skipped"
    assert f"through the {kind} proxy" in found.one("login").found


def test_wrong_missing_and_right_passwords_are_distinguished(tmp_path: Path) -> None:
    need("mosquitto")
    salt = bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", b"right", salt, 101)  # as mosquitto_passwd writes it
    encoded = [base64.b64encode(part).decode() for part in (salt, digest)]
    accounts, config = tmp_path / "accounts", tmp_path / "mosquitto.conf"
    accounts.write_text(f"pi:$7$101${encoded[0]}${encoded[1]}\n")
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "user root", "allow_anonymous false"]
    config.write_text("\n".join([*lines, f"password_file {accounts}", ""]))
    process = subprocess.Popen(
        [find_mosquitto() or "", "-c", str(config)], stderr=subprocess.DEVNULL
    )
    try:
        assert until(lambda: listens(port))
        secret = tmp_path / "secret"
        settings = BrokerSettings(port=port, username="pi", password_file=str(secret))
        secret.write_text("wrong\n")
        secret.chmod(0o600)
        wrong = look(tmp_path, settings).only_failure
        assert (wrong.name, f"the password in {secret}" in wrong.found) == ("login", True)
        assert "requires a username" in look(tmp_path, BrokerSettings(port=port)).only_failure.found
        secret.write_text("right\n")
        assert "connected as pi" in look(tmp_path, settings).one("login").found
        secret.chmod(0o644)
        found = look(tmp_path, settings).named("files")[0].found
        assert found == f"password_file {secret} is readable by every user"
    finally:
        process.terminate()
        process.wait(10)


def test_an_unreachable_proxy_is_distinguished_from_the_broker(tmp_path: Path) -> None:
    proxy = ProxySettings(host="127.0.0.1", port=free_port())
    settings = BrokerSettings(host="broker.invalid", proxy=proxy)
    failure = look(tmp_path, settings).only_failure
    assert failure.name == "tcp"
    assert "is the proxy running?" in failure.advice


# -- the device -----------------------------------------------------------------------------------


def locally(folder: Path, **changes: Any) -> Found:
    config = agent_config(folder, BrokerSettings(), **changes)
    return Found(diagnose(config, folder, MODEL, offline=True))


def test_missing_data_is_reported(tmp_path: Path) -> None:
    data = {"path": "gone.csv", "target": {"column": "price"}}
    for model in (MODEL, None):
        config = agent_config(tmp_path, BrokerSettings(), data=data)
        found = Found(diagnose(config, tmp_path, model, offline=True))
        assert "gone.csv: cannot be read: No such file or directory" in found.only_failure.found
        assert found.exit_code == 2
        assert found.one("program").state == "ok"


def test_unreadable_data_is_reported(tmp_path: Path) -> None:
    """As in a folder of another user; here by a name that is too long."""
    data = {"path": "x" * 300 + ".csv", "target": {"column": "price"}}
    for model in (MODEL, None):
        config = agent_config(tmp_path, BrokerSettings(), data=data)
        found = Found(diagnose(config, tmp_path, model, offline=True))
        assert found.only_failure.name == "data"
        assert "cannot be read: File name too long" in found.only_failure.found


def test_a_missing_column_is_reported(tmp_path: Path) -> None:
    found = locally(tmp_path, data={"path": "houses.csv", "target": {"column": "prize"}})
    assert found.only_failure.name == "data"
    assert "prize" in found.only_failure.found


def test_a_reading_in_another_unit_is_noticed(tmp_path: Path) -> None:
    write_houses(tmp_path / "houses.csv", scale=1000.0)
    found = locally(tmp_path)
    check = found.one("input features")
    assert check.state == "warning"
    assert "far from the model's data: median_income" in check.found


def test_a_model_that_does_not_fit_into_memory_is_reported(tmp_path: Path) -> None:
    found = locally(tmp_path, limits={"max_memory_bytes": 2_000_000})
    assert found.only_failure.name == "fits"
    assert found.named("program") == []


def test_quiet_hours_are_reported(tmp_path: Path) -> None:
    found = locally(tmp_path, limits={"quiet_hours": ["00:00-12:00", "12:00-00:00"]})
    assert "quiet_hours" in found.one("limits").found


def test_an_interpreter_that_crashes_does_not_take_the_doctor_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a wheel for another processor does; this one ends its process in the same way."""
    package = tmp_path / "site" / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text(
        "import os, signal\n"
        "def Interpreter(**arguments):\n"
        "    os.kill(os.getpid(), signal.SIGILL)\n"
    )
    record = tmp_path / "site" / "ai_edge_litert-9.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: ai-edge-litert\nVersion: 9.0\n")
    for name in [name for name in sys.modules if name.startswith("ai_edge_litert")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    found = locally(tmp_path, runtime="ai-edge-litert")
    for name in ("ai_edge_litert.interpreter", "ai_edge_litert"):
        sys.modules.pop(name, None)  # for good: monkeypatch would put the impostor back
    assert found.only_failure.name == "runtime"
    # Its version was perhaps read before, of the real one.
    assert found.only_failure.found.startswith("ai-edge-litert ")
    assert "crashes here (SIGILL)" in found.only_failure.found
    assert found.one("program").state == "skipped"


# -- the command ----------------------------------------------------------------------------------


def run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, list(arguments))


def test_json_contains_every_check(tmp_path: Path) -> None:
    agent_config(tmp_path, BrokerSettings())
    file = str(tmp_path / "agent.yaml")
    done = run("agent", "doctor", "--config", file, "--offline", "--model", "house_price", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["exit_code"] == document["counts"]["failed"] == 0
    assert {check["name"] for check in document["checks"]} >= {"packages", "clock", "disk", "data"}
    assert {check["area"] for check in document["checks"]} == {"here"}


def test_the_exit_code_says_who_must_act(tmp_path: Path) -> None:
    write_houses(tmp_path / "houses.csv", names=["a", "b", "c"])
    agent_config(tmp_path, BrokerSettings())
    file = str(tmp_path / "agent.yaml")
    done = run("agent", "doctor", "--config", file, "--offline", "--model", "house_price")
    assert done.exit_code == 2
    assert "failed   data" in done.output
    assert done.output.strip().splitlines()[-1].endswith("skipped")
    (tmp_path / "coordinator.yaml").write_text(
        f"federation: f\nmodel: house_price\nbroker: {{port: {free_port()}}}\n"
        "round: {minimum: 3}\nstart: {agents: 2}\n"
    )
    done = run("coordinator", "doctor", "--config", str(tmp_path / "coordinator.yaml"))
    assert done.exit_code == 3
    assert "failed   tcp" in done.output
    assert "start.agents is 2, a round needs 3" in done.output
