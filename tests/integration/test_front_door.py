"""Connections to the enrolment port that say nothing, too many at once: with real sockets."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from broker.enrolment.doorkeeper import DoorLimits
from broker.enrolment.front_door import BUSY_ALERT, FrontDoor
from broker.enrolment.invitations import invite
from broker.security.fleet import utc_now
from edge_agent.enrolment.request_certificate import ask_for_certificate
from fedge.errors import ConfigError, LinkError
from tests.integration.enrolment import Service, request_in, serving
from tests.integration.fleet_folder import command, make_fleet

HOST = "127.0.0.1"
#: Another address of this machine.
INTRUDER = "127.0.0.9"
QUICK = DoorLimits(per_address=2, total=3, handshake_s=0.4, idle_s=2.0, lifetime_s=30.0)


class Echo:
    """A server that answers what it gets, in place of the broker."""

    def __init__(self) -> None:
        self._server = socket.create_server((HOST, 0))
        self.address = (HOST, self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(1 << 16):
                    sock.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._server.close()


@contextmanager
def door(limits: DoorLimits = QUICK) -> Iterator[FrontDoor]:
    echo = Echo()
    try:
        with FrontDoor(HOST, 0, echo.address, limits) as front:
            yield front
    finally:
        echo.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., socket.socket]]:
    with ExitStack() as stack:

        def connect(port: int, source: str = HOST) -> socket.socket:
            sock = socket.create_connection((HOST, port), 5, source_address=(source, 0))
            return stack.enter_context(sock)

        yield connect


Connect = Callable[..., socket.socket]


def answer(sock: socket.socket, data: bytes) -> bytes:
    """Sends and gets as many bytes back; fewer when the connection ends."""
    sock.sendall(data)
    return received(sock, len(data))


def received(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (part := sock.recv(count - len(found))):
        found += part
    return found


def has_ended(sock: socket.socket) -> bool:
    """Waits for the end of a connection on which nothing more is said."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def close_all(held: list[socket.socket]) -> None:
    for sock in held:
        sock.close()


def test_bytes_pass_both_ways_unchanged(connect: Connect) -> None:
    with door(replace(QUICK, handshake_s=30.0, idle_s=30.0)) as front:
        sock = connect(front.port)
        data = bytes(range(256)) * 2000
        assert answer(sock, b"x") == b"x"
        assert answer(sock, data) == data


def test_whoever_says_nothing_is_dropped_and_whoever_talks_is_not(connect: Connect) -> None:
    with door() as front:
        silent, talker = connect(front.port), connect(front.port)
        for _ in range(2):
            assert answer(talker, b"hello") == b"hello"
        assert has_ended(silent)  # no handshake
        assert answer(talker, b"again") == b"again"
        assert has_ended(talker)  # silent for too long
        assert answer(connect(front.port), b"x") == b"x"  # there is room again


def test_too_many_of_one_address_are_told_that_it_is_busy(connect: Connect) -> None:
    with door(replace(QUICK, handshake_s=30.0)) as front:
        first = [connect(front.port) for _ in range(2)]
        assert [answer(sock, b"x") for sock in first] == [b"x", b"x"]
        third = connect(front.port)
        third.sendall(b"client hello")
        assert received(third, 100) == BUSY_ALERT
        assert answer(connect(front.port, INTRUDER), b"y") == b"y"  # another address
        assert [answer(sock, b"z") for sock in first] == [b"z", b"z"]


def test_the_alert_is_one_that_tls_understands(connect: Connect) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with door(replace(QUICK, per_address=0)) as front:
        with pytest.raises(ssl.SSLError) as caught:
            context.wrap_socket(connect(front.port))
        assert caught.value.reason.endswith("USER_CANCELLED")


def test_a_full_house_makes_room_for_an_address_that_has_none(connect: Connect) -> None:
    with door(replace(QUICK, handshake_s=30.0, idle_s=30.0)) as front:
        greedy = [connect(front.port, INTRUDER) for _ in range(2)]
        other = connect(front.port, "127.0.0.8")
        assert [answer(sock, b"x") for sock in (*greedy, other)] == [b"x"] * 3
        assert answer(connect(front.port), b"y") == b"y"
        assert has_ended(greedy[0])
        assert answer(greedy[1], b"z") == b"z"


def test_a_port_in_use_is_one_line() -> None:
    with door() as front, pytest.raises(ConfigError, match=f"listen on port {front.port}"):
        FrontDoor(HOST, front.port, (HOST, 1)).__enter__()


# --- the whole service -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("door")
    with serving(make_fleet(folder / "fleet"), folder, program) as service:
        yield service


@pytest.mark.mosquitto
def test_a_device_gets_in_while_another_address_holds_all_it_can(
    service: Service, tmp_path: Path, connect: Connect
) -> None:
    for _ in range(300):
        connect(service.port, INTRUDER)
    token = service.token("pi-1")
    assert ask_for_certificate(token, request_in(tmp_path / "pi"), 20).agent_id == "pi-1"
    refusals = [line for line in service.said().splitlines() if f"from {INTRUDER} refused" in line]
    assert 0 < len(refusals) <= 20  # the 1st, 2nd, 4th ... of two reasons


@pytest.mark.mosquitto
def test_a_device_is_told_that_the_service_is_busy_and_gets_in_when_it_is_not(
    service: Service, tmp_path: Path, connect: Connect
) -> None:
    token = service.token("pi-2")
    held = [connect(service.port) for _ in range(40)]  # the device's own address
    with pytest.raises(LinkError) as caught:
        ask_for_certificate(token, request_in(tmp_path / "pi"), 1.5)
    assert "is busy: it takes no more connections for now" in str(caught.value)
    assert str(caught.value).endswith("try again later with the same token")
    began_s = time.monotonic()
    threading.Timer(1.0, close_all, [held]).start()
    assert ask_for_certificate(token, request_in(tmp_path / "pi"), 25).agent_id == "pi-2"
    assert time.monotonic() - began_s < 25


@pytest.mark.mosquitto
def test_the_command_ends_with_the_code_of_the_network(
    service: Service, tmp_path: Path, connect: Connect
) -> None:
    token = str(invite(service.fleet, "pi-3", utc_now(), timedelta(hours=1), 30))
    for _ in range(40):
        connect(service.port)
    done = command("agent", "enrol", token, "--dir", tmp_path / "pi", "--timeout", "1")
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "is busy" in line
