"""Tokens: what stands in one, who may use it, how often, and what is kept of it."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from broker.enrolment.invitations import TokenRefused, invite, redeem, withdraw
from broker.enrolment.messages import PER_SESSION, Answer, EnrolmentTopics, Request, decode_answer
from broker.enrolment.registrar import AT_ONCE, BUSY_AT_ONCE, Granted, Note, Refused, Registrar
from broker.enrolment.token import Token, fingerprint
from broker.link.link import LinkUp, Received
from broker.link.settings import TlsSettings
from broker.security import devices
from broker.security.access_control import is_login_of
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from broker.service.events import MessageArrived, Publish, Started, Subscribe
from edge_agent.enrolment import request_certificate
from edge_agent.enrolment.enrol import token_in
from edge_agent.enrolment.private_key import certificate_request, forget_used_key, own_key
from fedge.command import cli
from fedge.errors import ConfigError, LinkError
from fedge.files import Account

DAY = timedelta(days=1)
STRANGE = ["a/b", "+", "#", "", "x" * 65, "ä", "a\nuser b", "..", "$SYS", "a\0"]


def fedge(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def line_of(result: Result, exit_code: int = 2) -> str:
    """The one line of a command that failed."""
    assert result.exit_code == exit_code, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    hosts = ["broker.example.org", "10.1.2.3"]
    settings = FleetSettings("houses", hosts, user=Account.current().name)
    return create_fleet(tmp_path / "fleet", settings, utc_now())


def request_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str = "pi-1") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    greedy = x509.BasicConstraints(ca=True, path_length=None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = builder.add_extension(greedy, True).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


# --- what stands in one ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["broker.example.org", "10.1.2.3", "fd00::1"])
def test_a_token_reads_as_it_was_written(host: str) -> None:
    token = Token(host, 8884, "houses", "pi-1", "s" * 22, "a" * 43)
    assert Token.parse(f" {token}\n") == token
    assert "s" * 22 not in repr(token)
    assert token.address == (f"[{host}]:8884" if ":" in host else f"{host}:8884")


@pytest.mark.parametrize("kept", [0, 8, 30, -1, -44])
def test_an_incomplete_token_is_reported_and_not_shown(fleet: Fleet, kept: int) -> None:
    text = str(invite(fleet, "pi-1", utc_now(), DAY, 30))[:kept]
    with pytest.raises(ConfigError, match="damaged or incomplete") as raised:
        Token.parse(text)
    assert text[30:] not in str(raised.value) or not text[30:]
    with pytest.raises(ConfigError, match="incomplete"):
        Token.parse("fedge://h:99999/f/a/" + "s" * 22 + "." + "a" * 43)


def test_a_token_names_the_service_and_the_authority(fleet: Fleet) -> None:
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    assert (token.host, token.port) == ("broker.example.org", 8884)
    assert (token.federation, token.agent_id) == ("houses", "pi-1")
    assert token.authority == fingerprint((fleet.broker_folder / "ca.crt").read_text())


def test_a_token_may_come_in_a_file(fleet: Fleet, tmp_path: Path) -> None:
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    path = tmp_path / "token"
    path.write_text(f"{token}\n")
    assert token_in(str(path)) == token_in(str(token)) == token
    assert token_in(str(tmp_path / "nothing")) is None
    path.write_text(str(token)[:-5])
    with pytest.raises(ConfigError, match="incomplete"):
        token_in(str(path))


# --- who is invited -------------------------------------------------------------------------------


def test_only_the_hash_of_a_secret_is_stored(fleet: Fleet) -> None:
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    for path in fleet.folder.rglob("*"):
        assert path.is_dir() or token.secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", STRANGE)
def test_an_invalid_name_is_not_invited(fleet: Fleet, name: str) -> None:
    before = (fleet.folder / "fleet.json").read_bytes()
    with pytest.raises(ConfigError, match="is not allowed"):
        invite(fleet, name, utc_now(), DAY, 30)
    assert "is not allowed" in line_of(
        fedge("broker", "enrol", fleet.folder, "good", name, "--token")
    )
    assert (fleet.folder / "fleet.json").read_bytes() == before


def test_access_rules_are_written_with_the_token(fleet: Fleet) -> None:
    invite(fleet, "pi-1", utc_now(), DAY, 30)
    assert b"user pi-1." in (fleet.broker_folder / "access.acl").read_bytes()
    withdraw(fleet, "pi-1", utc_now())
    assert b"user pi-1." not in (fleet.broker_folder / "access.acl").read_bytes()
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    redeem(fleet, token.secret, request_of(new_key()), utc_now())
    login = fleet.register.devices[0].login
    assert login.encode() in (fleet.broker_folder / "access.acl").read_bytes()


def test_only_new_names_are_invited_and_only_known_ones_rotated(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    with pytest.raises(ConfigError, match="is enrolled already"):
        invite(fleet, "pi-1", utc_now(), DAY, 30)
    with pytest.raises(ConfigError, match="pi-2 is not enrolled"):
        invite(fleet, "pi-2", utc_now(), DAY, 30, replaces=True)


def test_the_commands_make_list_and_withdraw_tokens(fleet: Fleet) -> None:
    folder = fleet.folder
    assert "there are no tokens" in fedge("broker", "tokens", folder).stdout
    result = fedge("broker", "enrol", folder, "pi-1", "pi-2", "--token", "--json")
    tokens = [Token.parse(row["token"]) for row in json.loads(result.stdout)]
    assert [token.agent_id for token in tokens] == ["pi-1", "pi-2"]
    redeem(fleet, tokens[0].secret, request_of(new_key()), utc_now())
    assert fedge("broker", "tokens", folder, "--withdraw", "pi-2").exit_code == 0
    fedge("broker", "rotate", folder, "pi-1", "--token")
    rows = json.loads(fedge("broker", "tokens", folder, "--json").stdout)
    assert [(row["agent_id"], row["state"]) for row in rows] == [
        ("pi-1", "used"),
        ("pi-2", "withdrawn"),
        ("pi-1", "open"),
    ]
    assert "pi-2  withdrawn" in fedge("broker", "tokens", folder).stdout
    refused = fedge("broker", "tokens", folder, "--withdraw", "pi-2")
    assert "has no open token" in line_of(refused)
    assert "--out is for one bundle" in line_of(
        fedge("broker", "enrol", folder, "pi-3", "--token", "--out", "x")
    )


# --- who gets a certificate -----------------------------------------------------------------------


def test_a_certificate_has_the_invited_name_whatever_was_asked_for(fleet: Fleet) -> None:
    token, key = invite(fleet, "pi-1", utc_now(), DAY, 30), new_key()
    done = redeem(fleet, token.secret, request_of(key, "coordinator"), utc_now())
    certificate = x509.load_pem_x509_certificate(done.certificate.encode())
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert is_login_of(str(name.value), "pi-1")
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()
    (record,) = Fleet(fleet.folder).register.devices
    assert (record.agent_id, record.serial) == ("pi-1", done.serial)


def test_a_token_is_valid_once_and_the_same_key_gets_the_same_answer(fleet: Fleet) -> None:
    token, request = invite(fleet, "pi-1", utc_now(), DAY, 30), request_of(new_key())
    first = redeem(fleet, token.secret, request, utc_now())
    again = redeem(fleet, token.secret, request, utc_now() + 9 * DAY)  # the answer was lost
    assert (again.certificate, again.is_new) == (first.certificate, False)
    with pytest.raises(
        TokenRefused,
        match="was used with another key: ask for a new one; if you",
    ):
        redeem(fleet, token.secret, request_of(new_key()), utc_now())
    devices.revoke(fleet, "pi-1", utc_now())
    with pytest.raises(TokenRefused, match="was revoked meanwhile"):
        redeem(fleet, token.secret, request, utc_now())
    assert len(Fleet(fleet.folder).register.devices) == 1


def test_a_refused_token_tells_why(fleet: Fleet) -> None:
    now, request = utc_now(), request_of(new_key())

    def refusal(secret: str, late: timedelta = timedelta()) -> str:
        with pytest.raises(TokenRefused) as raised:
            redeem(fleet, secret, request, now + late)
        return str(raised.value)

    first = invite(fleet, "pi-1", now, DAY, 30)
    second = invite(fleet, "pi-1", now, DAY, 30)
    assert "pi-1 was withdrawn" in refusal(first.secret), "a new one ends the earlier"
    assert "of pi-1 has expired (valid until 20" in refusal(second.secret, 2 * DAY)
    assert "did not make this token" in refusal("x" * 22)
    devices.revoke(fleet, "pi-1", now)
    assert "was withdrawn" in refusal(second.secret), "revoking a device ends its token"
    third = invite(fleet, "pi-3", now, DAY, 30)
    devices.enrol(fleet, "pi-3", now, None, 30)
    assert "was enrolled in another way" in refusal(third.secret)
    fourth = invite(fleet, "pi-3", now, DAY, 30, replaces=True)
    devices.revoke(fleet, "pi-3", now)
    assert "was withdrawn" in refusal(fourth.secret)
    assert all(record.agent_id == "pi-3" for record in fleet.register.devices)


def test_a_damaged_request_leaves_the_token_valid(fleet: Fleet) -> None:
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    big = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    good = request_of(new_key()).splitlines()
    forged = "\n".join([*good[:-2], good[-2][:-8] + "AAAAAAA=", good[-1]])
    for request, words in (
        ("", "damaged"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "damaged"),
        (request_of(big), "not for a P-256 key"),
        (request_of(ec.generate_private_key(ec.SECP384R1())), "not for a P-256 key"),
        (forged, "damaged|not signed by its own key"),
    ):
        with pytest.raises(TokenRefused, match=words):
            redeem(fleet, token.secret, request, utc_now())
    assert redeem(fleet, token.secret, request_of(new_key()), utc_now()).is_new


@pytest.mark.parametrize("keep_old", [False, True])
def test_a_rotation_revokes_the_old_certificate_when_the_new_one_is_issued(
    fleet: Fleet, keep_old: bool
) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    token = invite(fleet, "pi-1", utc_now(), DAY, 30, replaces=True, keep_old=keep_old)
    assert [r.revoked for r in fleet.register.devices] == [None]
    done = redeem(fleet, token.secret, request_of(new_key()), utc_now())
    assert done.revoked == (not keep_old)
    assert [r.revoked is None for r in fleet.register.devices] == [keep_old, True]


# --- the registrar --------------------------------------------------------------------------------

TOPICS = EnrolmentTopics("houses")
ASK = msgspec.json.encode(Request(secret="s" * 22, csr="c"))


def ask(registrar: Registrar, session: str, now_s: float = 0.0, payload: bytes = ASK) -> list[str]:
    """What a request leads to, but for the clearing of what it may have left."""
    arrived = MessageArrived(TOPICS.request(session), payload)
    actions = registrar.handle(arrived, now_s)
    cleared = Publish(TOPICS.request(session), b"", retain=True)
    return [type(action).__name__ for action in actions if action != cleared]


def test_the_registrar_listens_to_requests_only() -> None:
    registrar = Registrar("houses", "PEM")
    assert registrar.handle(Started(), 0.0) == [Subscribe("fedge/v1/houses/enrolment/+/request")]
    for topic in ("fedge/v1/houses/round", TOPICS.answer("a" * 32), TOPICS.request("short")):
        (note,) = registrar.handle(MessageArrived(topic, ASK), 0.0)
        assert isinstance(note, Note)
    assert registrar.handle(MessageArrived(TOPICS.request("a" * 32), b""), 0.0) == []


def test_any_client_may_read_the_authority_and_nothing_else() -> None:
    registrar, session = Registrar("houses", "PEM"), "a" * 32
    arrived = MessageArrived(TOPICS.request(session), msgspec.json.encode(Request()))
    (answer,) = registrar.handle(arrived, 0.0)[1:]
    assert isinstance(answer, Publish)
    assert answer.topic == TOPICS.answer(session)
    assert decode_answer(answer.payload) == Answer(authority="PEM")


def test_a_refusal_is_answered_and_logged() -> None:
    answer, note = Registrar("houses", "PEM").handle(Refused("a" * 32, "no such token"), 0.0)
    assert isinstance(answer, Publish)
    assert decode_answer(answer.payload).refused == "no such token"
    assert note == Note("a device was refused: no such token")


@pytest.mark.parametrize(
    "payload",
    [b"{", b"[]", b"\xff", b'{"secret": 1}', b" " * 9000, b'{"more":' + b"[" * 8000],
)
def test_a_malformed_request_is_refused(payload: bytes) -> None:
    assert ask(Registrar("houses", "PEM"), "a" * 32, payload=payload) == ["Publish", "Note"]


def test_requests_of_a_session_are_limited() -> None:
    registrar = Registrar("houses", "PEM")
    answers = [ask(registrar, "a" * 32, now_s=float(n)) for n in range(PER_SESSION + 3)]
    assert answers[:PER_SESSION] == [["Redeem"]] * PER_SESSION
    assert answers[PER_SESSION:] == [["Note"]] * 3
    assert ask(registrar, "b" * 32, 9.0) == ["Redeem"]


def test_the_common_rate_limit_does_not_count_against_a_session() -> None:
    registrar, session = Registrar("houses", "PEM"), "a" * 32
    for number in range(int(AT_ONCE)):
        assert ask(registrar, f"{number:032x}") == ["Redeem"]
    for _ in range(2 * PER_SESSION):
        assert "Redeem" not in ask(registrar, session)
    later = [ask(registrar, session, now_s=9.0) for _ in range(PER_SESSION + 1)]
    assert later == [["Redeem"]] * PER_SESSION + [["Note"]]


def test_a_device_beyond_the_common_rate_is_told_that_the_service_is_busy() -> None:
    registrar = Registrar("houses", "PEM")
    for number in range(int(AT_ONCE)):
        ask(registrar, f"{number:032x}")
    arrived = MessageArrived(TOPICS.request("b" * 32), b"{}")
    _, answer, note = registrar.handle(arrived, 0.0)
    assert isinstance(answer, Publish)
    assert decode_answer(answer.payload) == Answer(busy=True)
    assert isinstance(note, Note)
    assert "ask again later" in note.text


def test_an_exhausted_session_does_not_use_the_common_rate() -> None:
    registrar = Registrar("houses", "PEM")
    for _ in range(10 * int(AT_ONCE)):
        ask(registrar, "a" * 32)
    others = [ask(registrar, f"{number:032x}") for number in range(int(AT_ONCE))]
    assert others.count(["Redeem"]) == AT_ONCE - PER_SESSION


class DeafService:
    """A link to a service that hears nothing until a later session."""

    def __init__(self, sessions: list[DeafService], answers_in: int) -> None:
        sessions.append(self)
        self.asked = 0
        self._answers = len(sessions) == answers_in
        self._events: list[LinkUp | Received] = [LinkUp(False, 1 << 20)]

    def __getattr__(self, name: str) -> object:
        return lambda *_: None

    def publish(self, topic: str, payload: bytes) -> None:
        self.asked += 1
        if self._answers:
            said = msgspec.json.encode(Answer(authority="PEM"))
            self._events.append(Received(topic, said, False, 0))

    def poll(self, timeout_s: float) -> LinkUp | Received | None:
        return self._events.pop(0) if self._events else None


def test_a_device_without_answers_starts_a_new_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions: list[DeafService] = []
    ids: list[str] = []

    def link(settings: object, session: str, **_: object) -> DeafService:
        ids.append(session)
        return DeafService(sessions, answers_in=3)

    monkeypatch.setattr(request_certificate, "MqttLink", link)
    monkeypatch.setattr(request_certificate, "_ASK_AGAIN_S", 0.0)
    token = Token("localhost", 8884, "houses", "pi-1", "s" * 22, "a" * 43)
    answer = request_certificate._ask(token, TlsSettings(), Request(), time.monotonic() + 60)
    assert answer == Answer(authority="PEM")
    assert [session.asked for session in sessions] == [PER_SESSION, PER_SESSION, 1]
    assert len(set(ids)) == 3


class BusyService(DeafService):
    """A link to a service that is busy at first."""

    def publish(self, topic: str, payload: bytes) -> None:
        self.asked += 1
        said = Answer(authority="PEM") if self.asked > 2 * PER_SESSION else Answer(busy=True)
        self._events.append(Received(topic, msgspec.json.encode(said), False, 0))


def test_a_device_asks_a_busy_service_again_in_the_same_session(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sessions: list[DeafService] = []
    monkeypatch.setattr(
        request_certificate, "MqttLink", lambda *_, **__: BusyService(sessions, answers_in=0)
    )
    monkeypatch.setattr(request_certificate, "_BUSY_S", 0.0)
    token = Token("localhost", 8884, "houses", "pi-1", "s" * 22, "a" * 43)
    answer = request_certificate._ask(token, TlsSettings(), Request(), time.monotonic() + 60)
    assert answer == Answer(authority="PEM")
    assert [session.asked for session in sessions] == [2 * PER_SESSION + 1]
    assert caplog.messages == ["enrolment service localhost:8884 is busy: waiting for it"]


def test_a_service_that_stays_busy_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[DeafService] = []
    monkeypatch.setattr(
        request_certificate, "MqttLink", lambda *_, **__: BusyService(sessions, answers_in=0)
    )
    token = Token("localhost", 8884, "houses", "pi-1", "s" * 22, "a" * 43)
    with pytest.raises(LinkError, match=r"is busy with other devices; try again later"):
        request_certificate._ask(token, TlsSettings(), Request(), time.monotonic() + 0.2)


def test_guessing_is_slow_and_makes_few_lines() -> None:
    registrar = Registrar("houses", "PEM")
    kinds = [ask(registrar, f"{n:032x}", now_s=1.0) for n in range(5000)]
    assert kinds.count(["Redeem"]) == AT_ONCE
    assert kinds.count(["Publish", "Note"]) == 20
    assert kinds.count(["Publish"]) == BUSY_AT_ONCE - 20  # told that it is busy
    assert kinds.count([]) == 5000 - AT_ONCE - BUSY_AT_ONCE
    assert ask(registrar, "f" * 32, now_s=2.0) == ["Redeem"]
    (_, note) = registrar.handle(Refused("f" * 32, "no such token"), 9.0)
    assert isinstance(note, Note)
    assert f"({5000 - AT_ONCE - 20:.0f} earlier lines not logged)" in note.text


def test_the_answer_is_a_bundle_without_the_key(fleet: Fleet) -> None:
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    done = redeem(fleet, token.secret, request_of(new_key()), utc_now())
    bundle = fleet.bundle(done.agent_id, done.certificate)
    (answer,) = Registrar("houses", "PEM").handle(Granted("a" * 32, bundle), 0.0)
    assert isinstance(answer, Publish)
    assert decode_answer(answer.payload).bundle == bundle
    assert bundle.key == ""
    assert b"PRIVATE KEY" not in answer.payload


# --- the device's key -----------------------------------------------------------------------------


def test_a_key_is_made_once_and_signs_its_own_request(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "agent.key"
    key = own_key(path)
    assert own_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    token = invite(fleet, "pi-1", utc_now(), DAY, 30)
    request = certificate_request(path, "pi-1")
    assert "PRIVATE KEY" not in request
    done = redeem(fleet, token.secret, request, utc_now())
    loaded = serialization.load_pem_private_key(key.encode(), None)
    certificate = x509.load_pem_x509_certificate(done.certificate.encode())
    assert certificate.public_key() == loaded.public_key()


def test_a_key_that_is_in_use_is_not_used_again(tmp_path: Path) -> None:
    """The power was cut between the writing of the identity and the removal of the key."""
    path, identity = tmp_path / "agent.key", tmp_path / "agent.pem"
    key = own_key(path)
    forget_used_key(path, identity)
    identity.write_text("-----BEGIN CERTIFICATE-----\nof another key\n")
    forget_used_key(path, identity)
    assert own_key(path) == key, "the key of an attempt that was cut short is kept"
    identity.write_text(f"-----BEGIN CERTIFICATE-----\n{key}")
    forget_used_key(path, identity)
    assert own_key(path) != key


def test_a_key_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.key").write_text("-----BEGIN PRIVATE KEY-----\nMIG")
    with pytest.raises(ConfigError, match=r"openssl req failed: .*half.key is damaged delete it"):
        certificate_request(tmp_path / "half.key", "pi-1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt install openssl"):
        own_key(tmp_path / "agent.key")
    assert not (tmp_path / "agent.key").exists()
