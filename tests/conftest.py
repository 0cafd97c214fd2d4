"""Brokers that tests share: each is started once a session, on loopback and a free port."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from broker.link.link import LinkDown, LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.local.broker import LocalBroker, find_mosquitto, has_embedded
from broker.memory.link import MemoryLink
from tests.transports import Transports, mosquitto_of_all_transports

AnyLink = MqttLink | MemoryLink

_numbers = itertools.count(1)


# No example has a deadline: how long one takes depends on what else the machine does.
hypothesis.settings.register_profile("fedge", deadline=None)
hypothesis.settings.load_profile("fedge")


def pytest_configure() -> None:
    """A shell starts what it runs in the background deaf to Ctrl-C, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def need(kind: str) -> None:
    """Skips the test where a kind of broker is missing; in CI that is a failure."""
    if find_mosquitto() if kind == "mosquitto" else has_embedded():
        return
    reason = f"no {kind} broker on this machine"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI must have it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[LocalBroker]:
    """A Mosquitto that lets everyone in."""
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[LocalBroker]:
    """The embedded broker."""
    need("embedded")
    with LocalBroker("embedded") as broker:
        yield broker


@pytest.fixture(scope="session")
def transports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transports]:
    """A Mosquitto that listens for TLS and WebSockets too."""
    need("mosquitto")
    with mosquitto_of_all_transports(tmp_path_factory.mktemp("transports")) as made:
        yield made


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes ids and topics that no other test on the same broker uses."""
    number = next(_numbers)
    return lambda name: f"t{os.getpid()}-{number}-{name}"


def wait_up(link: AnyLink, timeout_s: float = 10.0) -> LinkUp:
    """The next LinkUp; other events before it are skipped."""
    for _ in range(1000):
        event = link.poll(timeout_s)
        if isinstance(event, LinkUp):
            return event
        assert event is not None, "the link did not come up"
    raise AssertionError("a thousand events and no LinkUp")


def wait_down(link: AnyLink, timeout_s: float = 10.0) -> LinkDown:
    """The next LinkDown; other events before it are skipped."""
    for _ in range(1000):
        event = link.poll(timeout_s)
        if isinstance(event, LinkDown):
            return event
        assert event is not None, "the link did not go down"
    raise AssertionError("a thousand events and no LinkDown")


def take(link: AnyLink, count: int = 1, timeout_s: float = 10.0) -> list[Received]:
    """The next `count` messages; other events between them are skipped."""
    messages: list[Received] = []
    while len(messages) < count:
        event = link.poll(timeout_s)
        assert event is not None, f"{len(messages)} of {count} messages came"
        if isinstance(event, Received):
            messages.append(event)
    return messages


def nothing_comes(link: AnyLink, for_s: float = 0.15) -> bool:
    """Whether no message comes for a while."""
    return not isinstance(link.poll(for_s), Received)


def lives(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    deadline_s = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return not lives(pid)
