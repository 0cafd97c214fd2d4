"""A device comes with a token: real commands, a real Mosquitto, and some who should not come."""

from __future__ import annotations

import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from broker.enrolment.messages import Answer, Request, decode_answer
from broker.security.create_fleet import create_fleet
from broker.security.fleet import utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.running_broker import update_broker
from edge_agent.enrolment.request_certificate import ask_for_certificate
from fedge.errors import ConfigError, LinkError
from fedge.files import Account
from tests.conftest import gone_within, wait_up
from tests.integration.enrolment import TOPICS, Service, request_in, serving, started
from tests.integration.fleet_folder import (
    FEDERATION,
    NOT_AUTHORISED,
    REPOSITORY,
    ROOT,
    RunningFleet,
    command,
    fedge,
    link_with,
    make_fleet,
    running,
    until,
    why_refused,
)
from tests.ports import free_ports

pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def service(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("enrolment")
    with serving(make_fleet(folder / "fleet"), folder, program) as service:
        yield service


@pytest.fixture
def name(unique: Callable[[str], str]) -> str:
    """A device that no other test knows, and no other try of the same test."""
    return f"{unique('pi')}-{os.urandom(2).hex()}"


# --- who has a token ------------------------------------------------------------------------------


def test_a_device_with_a_token_joins_without_a_reload(
    service: Service, program: Path, tmp_path: Path, name: str
) -> None:
    fleet, folder = service.fleet, tmp_path / "devices" / name
    printed = fedge("broker", "enrol", fleet.folder, name, "--token").splitlines()
    (token,) = [line for line in printed if line.startswith("fedge://")]
    with running(fleet, tmp_path, program) as place:  # not told again after this
        said = fedge("agent", "enrol", token, "--dir", folder)
        assert f"{name} of federation houses" in said
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert modes.pop("agent.pem") == 0o600
        assert modes == dict.fromkeys(("ca.crt", "agent.yaml", "coordinator.pub"), 0o644)
        link = link_with(place, folder / "ca.crt", folder / "agent.pem")
        try:
            link.open()
            wait_up(link)
        finally:
            link.close()
        assert f"as {name}" in place.said()
    assert service.says(f"{name} enrolled with certificate ")
    key = (folder / "agent.pem").read_text().split("PRIVATE KEY-----")[1].strip()
    for path in fleet.folder.rglob("*"):  # it never left the device
        assert path.is_dir() or key.encode() not in path.read_bytes(), path
    assert key not in service.said()
    assert token.rpartition("/")[2] not in service.said()


def test_a_token_from_stdin_is_in_no_list_of_processes(
    service: Service, tmp_path: Path, name: str
) -> None:
    run = [sys.executable, "-P", "-m", "fedge", "agent", "enrol", "-", "--dir", str(tmp_path / "d")]
    text = str(service.token(name))
    done = subprocess.run(
        run, input=text, capture_output=True, text=True, cwd=REPOSITORY, timeout=40
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d" / "agent.yaml").exists()


def test_a_device_that_lost_the_answer_repeats_its_request(
    service: Service, tmp_path: Path, name: str
) -> None:
    """The key of the attempt that was cut short is still there, so it is the same device."""
    token, folder = service.token(name), tmp_path / name
    lost = ask_for_certificate(token, request_in(folder), 20)
    fedge("agent", "enrol", str(token), "--dir", folder)
    assert lost.certificate in (folder / "agent.pem").read_text()
    assert service.says(f"{name} repeated its request and got the same certificate")


def test_a_rotation_by_token_ends_the_old_certificate(
    service: Service, program: Path, tmp_path: Path, name: str
) -> None:
    with running(service.fleet, tmp_path, program) as place:
        folder = place.device(name)
        update_broker(service.fleet)
        old = (folder / "agent.pem").read_bytes()
        said = fedge("broker", "rotate", service.fleet.folder, name, "--token")
        (token,) = [line for line in said.splitlines() if line.startswith("fedge://")]
        assert "certificates renewed" in fedge("agent", "enrol", token, "--dir", folder)
        assert service.says(f"earlier certificates of {name} revoked: the running broker (process")
        (tmp_path / "old.pem").write_bytes(old)
        reason = why_refused(place, tmp_path / "old.pem", folder / "ca.crt")
        assert "it was revoked" in reason


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("used", "was used with another key"),
        ("late", "has expired"),
        ("withdrawn", "was withdrawn"),
        ("guessed", "did not make this token"),
    ],
)
def test_an_invalid_token_is_refused_with_a_reason_and_logged(
    service: Service, tmp_path: Path, name: str, what: str, words: str
) -> None:
    token = service.token(name, -1.0 if what == "late" else 1.0)
    if what == "used":
        ask_for_certificate(token, request_in(tmp_path / "first"), 20)
    if what == "withdrawn":
        fedge("broker", "tokens", service.fleet.folder, "--withdraw", name)
    if what == "guessed":
        token = replace(token, secret="A" * 22)
    done = command("agent", "enrol", str(token), "--dir", tmp_path / "pi")
    assert done.returncode == 2
    assert f"error: refused: {'the token of ' + name if what != 'guessed' else ''}" in done.stderr
    assert words in done.stderr
    assert service.says(words)
    assert sorted(path.name for path in (tmp_path / "pi").iterdir()) == ["agent.key"]


def test_a_folder_of_another_device_leaves_the_token_valid(
    service: Service, tmp_path: Path, name: str
) -> None:
    fedge("agent", "enrol", str(service.token(f"{name}-a")), "--dir", tmp_path / "pi")
    token = service.token(f"{name}-b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "pi").iterdir()}
    done = command("agent", "enrol", str(token), "--dir", tmp_path / "pi")
    assert done.returncode == 2
    assert f"is of {name}-a in federation houses, not of {name}-b" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "pi").iterdir()} == before
    csv = command("agent", "enrol", str(token), "--dir", tmp_path / "b", "--data", "x.csv")
    assert "--target COLUMN" in csv.stderr
    fedge("agent", "enrol", str(token), "--dir", tmp_path / "b")


# --- whom the device trusts -----------------------------------------------------------------------


def test_the_secret_is_sent_to_no_service_of_another_fleet(
    service: Service, tmp_path: Path
) -> None:
    ours = make_fleet(tmp_path / "ours")
    token = Service(ours, service.log, service.process).token("pi-1")
    astray = replace(token, port=service.port)  # as somebody on the way would have it
    before = service.said().count("refused")
    with pytest.raises(ConfigError, match="is not of the fleet that made this token"):
        ask_for_certificate(astray, request_in(tmp_path / "pi"), 20)
    assert service.said().count("refused") == before


def test_a_service_under_another_name_is_not_told_the_secret(program: Path, tmp_path: Path) -> None:
    me, (port, enrolment_port) = Account.current().name, free_ports(2)
    settings = FleetSettings(
        FEDERATION, ["broker.example.org"], port, "127.0.0.1", me, enrolment_port
    )
    with serving(
        create_fleet(tmp_path / "fleet", settings, utc_now()), tmp_path, program
    ) as service:
        token = replace(service.token("pi-name"), host="127.0.0.1")
        with pytest.raises(LinkError, match="must be a name in the certificate"):
            ask_for_certificate(token, request_in(tmp_path / "pi"), 5)
        assert "enrolled" not in service.said()


def test_a_wrong_clock_is_named(program: Path, tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet", now=utc_now() + timedelta(days=10))
    with serving(fleet, tmp_path, program) as service:
        token = service.token("pi-1")
        done = command("agent", "enrol", str(token), "--dir", tmp_path / "pi", "--timeout", "2")
    assert done.returncode == 3
    assert "not yet valid: this device's clock says 20" in done.stderr


def test_without_a_service_there_is_one_line(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    fedge("broker", "enrol", fleet.folder, "pi-1", "--token")
    tokens = fedge("broker", "enrol", fleet.folder, "pi-2", "--token").splitlines()
    done = command("agent", "enrol", tokens[1], "--dir", tmp_path / "pi", "--timeout", "1")
    assert done.returncode == 3
    assert "Connection refused; does `fedge broker serve-enrolment` run" in done.stderr


# --- the listener allows nothing else -------------------------------------------------------------


@pytest.mark.parametrize(
    "topic",
    [
        *(f"{ROOT}round", f"{ROOT}program", f"{ROOT}agents/alice/status", "anything", "$SYS/x"),
        *(TOPICS.request("a" * 32), TOPICS.answer("a" * 32), f"{TOPICS.root}authority"),
    ],
)
def test_a_stranger_can_write_only_its_own_request(service: Service, topic: str) -> None:
    stranger = service.stranger().connect()
    try:
        assert stranger.publish(topic, retain=True) == NOT_AUTHORISED
    finally:
        stranger.close()


def test_a_stranger_reads_no_requests_or_answers_of_others(
    service: Service, tmp_path: Path, name: str
) -> None:
    stranger = service.stranger().connect()
    try:
        stranger.subscribe("#", "+/#", TOPICS.requests, TOPICS.answer("+"), "$SYS/#")
        stranger.subscribe(
            f"$share/thieves/{TOPICS.requests}", f"$share/thieves/{TOPICS.answer('+')}"
        )
        ask_for_certificate(service.token(name), request_in(tmp_path / "pi"), 20)
        assert stranger.heard() == []
    finally:
        stranger.close()


@pytest.mark.parametrize("client_id", ["+", "#", "a/../b", f"{'a' * 32}/request", "x" * 200])
def test_a_malicious_client_id_gives_no_rights(service: Service, client_id: str) -> None:
    stranger = service.stranger(client_id).connect()
    try:
        stranger.subscribe("#")
        for topic in (TOPICS.request("b" * 32), TOPICS.answer("b" * 32), f"{ROOT}round"):
            assert stranger.publish(topic) == NOT_AUTHORISED
        assert stranger.heard(0.1) == []
    finally:
        stranger.close()


@pytest.mark.parametrize("user", ["enrolment", "coordinator", "alice"])
def test_no_user_name_gives_rights(service: Service, user: str) -> None:
    for password in (None, "", "guessed"):
        stranger = service.stranger()
        stranger.paho.username_pw_set(user, password)
        with pytest.raises(AssertionError):
            stranger.connect()
        stranger.close()
    assert service.says("not authorised")


def test_a_session_with_too_many_requests_is_ignored(service: Service) -> None:
    stranger = service.stranger().connect()
    session = stranger.paho._client_id.decode()
    try:
        stranger.subscribe(TOPICS.answer(session))
        for _ in range(40):
            guess = msgspec.json.encode(Request(secret="guessed", csr="x"))
            stranger.publish(TOPICS.request(session), guess, retain=True)
        answers = [decode_answer(payload) for _, payload in stranger.heard(0.5)]
    finally:
        stranger.close()
    words = (
        "this fleet did not make this token, deleted it after it expired, or it was copied wrongly"
    )
    assert answers == [Answer(refused=words)] * 5
    assert service.says("requests were ignored: rate limit reached")


def test_a_retained_request_is_deleted(service: Service) -> None:
    """A request that asks to be retained is not there for the next to read or to fill memory."""
    name = "c" * 32
    first = service.stranger(name).connect()
    first.publish(TOPICS.request(name), b"{}", retain=True)
    first.close()
    again = service.stranger(name).connect()
    again.subscribe(TOPICS.request(name))
    assert again.heard() == []
    again.close()


def test_an_oversized_packet_ends_the_connection(service: Service) -> None:
    name = "d" * 32
    stranger = service.stranger(name).connect()
    stranger.paho.publish(TOPICS.request(name), bytes(100_000), 1)
    assert stranger.ended.get(timeout=5) != 0
    stranger.close()
    assert until(lambda: re.search("oversize|too large", service.said()))


def test_certificates_of_the_fleet_give_no_rights_at_the_enrolment_broker(
    service: Service, tmp_path: Path, name: str
) -> None:
    place = RunningFleet(service.fleet, tmp_path / "devices", service.log)
    folder = place.device(name)
    link = link_with(place, folder / "ca.crt", folder / "agent.pem", service.port)
    link.open()
    wait_up(link)
    link.close()
    stranger = service.stranger(name).connect()
    assert stranger.publish(f"{ROOT}agents/{name}/status") == NOT_AUTHORISED
    stranger.close()


def test_a_flood_of_connections_leaves_the_fleet_alone(program: Path, tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    with (
        running(fleet, tmp_path, program) as place,
        serving(fleet, tmp_path, program) as service,
        ExitStack() as stack,
    ):
        device = place.device("alice")
        update_broker(fleet)
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 5))
        assert service.says("connection from 127.0.0.1 refused: 32 connections are open, limit 32")
        link = link_with(place, device / "ca.crt", device / "agent.pem")
        link.open()
        wait_up(link)
        link.close()
        stack.close()
        ask_for_certificate(service.token("pi-after"), request_in(tmp_path / "pi"), 20)


# --- its end --------------------------------------------------------------------------------------


def test_it_ends_after_its_running_time_and_leaves_no_process(
    program: Path, tmp_path: Path
) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    with started(fleet, tmp_path, program, "--for", "0.02") as service:
        assert service.process.wait(40) == 0, service.said()
        assert "enrolment time is over" in service.said()
        assert "enrolment broker: " in service.said()  # there was a broker
        with pytest.raises(OSError, match="refused"):
            service.stranger().connect()


def test_the_enrolment_broker_does_not_run_as_root(program: Path) -> None:
    if os.geteuid() != 0 or "mosquitto" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("needs root and a user mosquitto")
    uid = pwd.getpwnam("mosquitto").pw_uid
    with tempfile.TemporaryDirectory(prefix="fedge-test-") as name:
        Path(name).chmod(0o755)  # unlike pytest's folders: other accounts pass through
        port, enrolment_port = free_ports(2)
        settings = FleetSettings(
            FEDERATION, ["localhost"], port, "127.0.0.1", "mosquitto", enrolment_port
        )
        fleet = create_fleet(Path(name) / "fleet", settings, utc_now())
        with serving(fleet, Path(name), program) as service:
            pid = service.process.pid
            (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            status = Path(f"/proc/{child}/status").read_text()
            assert re.search(rf"^Uid:\t{uid}\t{uid}\t", status, re.MULTILINE)
            ask_for_certificate(service.token("pi"), request_in(Path(name) / "pi"), 20)
            service.process.kill()  # and it dies with the service, however that ends
            service.process.wait(10)
            assert gone_within(int(child), 10.0)


def test_a_port_in_use_is_named(service: Service) -> None:
    done = command("broker", "serve-enrolment", service.fleet.folder)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"enrolment cannot listen on port {service.port}: " in line
    assert "already in use" in line
