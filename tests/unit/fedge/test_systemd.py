"""What systemd is told, read off a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.memory.link import MemoryBroker, MemoryLink
from broker.service.service import StopRequested
from fedge.systemd import Supervisor
from tests.unit.broker.test_service import Recorder, RefusingLink, Unreachable


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address.replace("\0", "@")}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = {"path": str(tmp_path / "notify"), "abstract": f"\0fedge-test-{os.getpid()}"}
    made = Manager(name[request.param])
    yield made
    made.close()


def test_ready_status_and_stopping_are_reported(manager: Manager) -> None:
    supervisor = Supervisor(manager.environment)
    supervisor.ready()
    supervisor.status("cannot reach\nthe broker")
    supervisor.stopping()
    assert manager.heard() == ["READY=1", "STATUS=cannot reach the broker", "STOPPING=1"]


def test_no_pings_are_sent_without_a_watchdog(manager: Manager) -> None:
    supervisor = Supervisor(manager.environment)
    supervisor.alive()
    assert manager.heard() == []
    assert supervisor.pause_s(5.0) == 5.0


def test_the_watchdog_gets_three_pings_per_timeout(
    manager: Manager,
) -> None:
    now_s = 100.0
    asked = {**manager.environment, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    supervisor = Supervisor(asked, lambda: now_s)
    for _ in range(30):
        supervisor.alive()
        now_s += 0.1
    assert manager.heard() == ["WATCHDOG=1"] * 3
    assert supervisor.pause_s(5.0) == 1.0
    assert supervisor.pause_s(0.2) == 0.2


@pytest.mark.parametrize(
    "watchdog",
    [
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},  # another process's
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
    ],
)
def test_a_watchdog_for_another_process_gets_no_pings(
    manager: Manager, watchdog: dict[str, str]
) -> None:
    supervisor = Supervisor({**manager.environment, **watchdog})
    supervisor.alive()
    assert manager.heard() == []
    assert supervisor.pause_s(5.0) == 5.0


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    supervisor = Supervisor({**environment, "WATCHDOG_USEC": "3000000"})
    supervisor.ready()
    supervisor.alive()
    supervisor.stopping()


def test_a_manager_that_does_not_read_does_not_block(manager: Manager) -> None:
    supervisor = Supervisor(manager.environment)
    for number in range(2000):  # more than a socket's queue holds
        supervisor.status(f"{number}")
    assert manager.heard()[0] == "STATUS=0"


@pytest.fixture
def told(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Manager:
    """A manager that this process's environment names, with a watchdog."""
    for name, value in {**manager.environment, "WATCHDOG_USEC": "60000000"}.items():
        monkeypatch.setenv(name, value)
    return manager


def test_a_service_is_ready_before_it_is_connected_and_says_when_it_is(told: Manager) -> None:
    broker = MemoryBroker()
    link = MemoryLink(broker, "me")
    broker.at(1.0, link.post, StopRequested())
    Recorder(link).run()
    assert told.heard() == ["READY=1", "WATCHDOG=1", "STATUS=connected", "STOPPING=1"]


def test_a_service_without_its_broker_is_ready_and_says_what_it_waits_for(told: Manager) -> None:
    broker = MemoryBroker(Unreachable())
    link = MemoryLink(broker, "me")
    broker.at(1.0, link.post, StopRequested())
    Recorder(link).run()
    heard = told.heard()
    assert heard[:2] == ["READY=1", "WATCHDOG=1"]
    assert heard[2].startswith("STATUS=cannot reach the broker")
    assert heard[-1] == "STOPPING=1"


def test_a_service_that_is_refused_does_not_say_that_it_stops(told: Manager) -> None:
    with pytest.raises(Exception, match="not authorised"):
        Recorder(RefusingLink(MemoryBroker(), "me")).run()
    assert "STOPPING=1" not in told.heard()
