"""A real Mosquitto with a fleet's generated configuration, and clients that do as they please."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.link.link import LinkDown, LinkUp
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings, TlsSettings
from broker.local.broker import find_mosquitto
from broker.local.child_process import bound_to_parent
from broker.security import devices
from broker.security.certificate_authority import Authority
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.log_reader import RefusalReader
from broker.security.mosquitto.config import find_plugin
from broker.security.running_broker import update_broker
from edge_agent.enrolment.enrol import enrol
from fedge.files import Account
from tests.ports import free_ports

REPOSITORY = Path(__file__).parents[2]
FEDERATION = "houses"
ROOT = f"fedge/v1/{FEDERATION}/"
NOT_AUTHORISED = 0x87


def brokers() -> list[Path]:
    """Every Mosquitto here: the installed one, and those that `make brokers` fetched."""
    installed = find_mosquitto()
    fetched = sorted(REPOSITORY.glob(".brokers/*/mosquitto"))
    return [*([Path(installed)] if installed else []), *fetched]


def plugin_of(mosquitto: Path | None) -> str:
    """The dynamic security plugin that belongs to a Mosquitto; empty: there is none."""
    if mosquitto is None or mosquitto.parent.name in ("bin", "sbin"):
        return find_plugin()
    found = mosquitto.parent / "lib" / "mosquitto_dynamic_security.so"
    return str(found) if found.is_file() else ""


def make_fleet(
    folder: Path, port: int | None = None, now: datetime | None = None, *, plugin: str = ""
) -> Fleet:
    """A fleet whose broker listens on loopback and runs as whoever runs the tests."""
    free, enrolment_port = free_ports(2)
    settings = FleetSettings(
        FEDERATION,
        ["localhost", "127.0.0.1"],
        port or free,
        "127.0.0.1",
        Account.current().name,
        enrolment_port,
        plugin=plugin,
    )
    return create_fleet(folder, settings, now or utc_now())


@dataclass
class RunningFleet:
    """A fleet with its broker running, and the folders of its devices."""

    fleet: Fleet
    devices: Path
    log: Path
    begins: int = 0  # where `tells` begins to read the log

    @property
    def port(self) -> int:
        return self.fleet.register.port

    def device(self, agent_id: str) -> Path:
        """A newly enrolled device's folder."""
        bundle = devices.enrol(self.fleet, agent_id, utc_now(), None, 30)
        enrol(bundle, self.devices / agent_id, None, "")
        return self.devices / agent_id

    def said(self) -> str:
        """The broker's log."""
        return self.log.read_text()

    def tells(self, words: str) -> bool:
        """Whether an operator who reads the refusals soon finds `words`."""

        return bool(until(lambda: self.tells_now(words)))

    def tells_now(self, words: str) -> bool:
        """Whether it finds them already."""
        reader = RefusalReader(Fleet(self.fleet.folder).register)
        lines = self.said()[self.begins :].split("\n")
        return any(words in (reader.read(line) or "") for line in lines)


@contextlib.contextmanager
def running(fleet: Fleet, folder: Path, mosquitto: Path | None = None) -> Iterator[RunningFleet]:
    """Runs a Mosquitto with the fleet's configuration; it dies with the tests.

    Where a reload ended it, which is the fault of 2.0, it is started again, as its unit does.
    """
    log = folder / "mosquitto.log"
    config = fleet.broker_folder / "mosquitto.conf"
    config.write_text(config.read_text().replace("\n#log_type", "\nlog_type"))  # all refusals
    program = str(mosquitto or find_mosquitto() or "mosquitto")
    process, is_over = (
        start_logged([*bound_to_parent(os.getpid()), program, "-c", str(config)], log),
        threading.Event(),
    )

    def keep() -> None:
        nonlocal process
        while not is_over.wait(0.05):
            if process.poll() is not None and log.read_text().endswith("Reloading config.\n"):
                process = start_logged(
                    [*bound_to_parent(os.getpid()), program, "-c", str(config)], log
                )

    keeper = threading.Thread(target=keep)
    try:
        until(lambda: listens(fleet.register.port) or process.poll() is not None, 10)
        assert process.poll() is None, log.read_text()
        keeper.start()
        yield RunningFleet(fleet, folder / "devices", log)
    finally:
        is_over.set()
        if keeper.is_alive():
            keeper.join()
        process.terminate()
        process.wait(10)


def start_logged(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def listens(port: int) -> bool:
    """Whether somebody takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def until(found: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """The first true answer; the last one when there is none in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (answer := found()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return answer


def context_of(ca: Path, identity: Path | None) -> ssl.SSLContext:
    """TLS as a client of the fleet would set it up."""
    context = ssl.create_default_context(cafile=str(ca))
    if identity is not None:
        context.load_cert_chain(identity)
    return context


class Client:
    """An MQTT 5 client without manners: it asks for anything and notes what it is told."""

    def __init__(
        self, port: int, context: ssl.SSLContext | None, client_id: str = "anyone"
    ) -> None:
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.ended: queue.Queue[int] = queue.Queue()
        self._answers: queue.Queue[tuple[str, list[int]]] = queue.Queue()
        self._port = port
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5
        )
        if context is not None:
            self.paho.tls_set_context(context)
        self.paho.on_connect = lambda _c, _d, _f, code, _p: self._note("connect", code)
        self.paho.on_disconnect = lambda _c, _d, _f, code, _p: self.ended.put(code.value)
        self.paho.on_publish = lambda _c, _d, _m, code, _p: self._note("publish", code)
        self.paho.on_subscribe = lambda _c, _d, _m, codes, _p: self._note("subscribe", *codes)
        self.paho.on_message = lambda _c, _d, m: self.messages.put((m.topic, bytes(m.payload)))

    def _note(self, what: str, *codes: Any) -> None:
        self._answers.put((what, [code.value for code in codes]))

    def _answer(self, what: str) -> list[int]:
        while True:
            kind, codes = self._answers.get(timeout=5)
            if kind == what:
                return codes

    def connect(self, **arguments: Any) -> Client:
        """Connects; raises when TLS or the broker refuses."""
        self.paho.connect("127.0.0.1", self._port, 10, **arguments)
        self.paho.loop_start()
        assert self._answer("connect") == [0]
        return self

    def publish(self, topic: str, payload: bytes = b"forged", *, retain: bool = False) -> int:
        """The broker's reason code; 0 for every success (0x10: nobody listens)."""
        self.paho.publish(topic, payload, 1, retain)
        code = self._answer("publish")[0]
        return code if code >= 0x80 else 0

    def subscribe(self, *filters: str) -> list[int]:
        """The broker's reason codes."""
        self.paho.subscribe([(name, 1) for name in filters])
        return self._answer("subscribe")

    def heard(self, for_s: float = 0.15) -> list[tuple[str, bytes]]:
        """What came, and comes within a moment."""
        time.sleep(for_s)
        return [self.messages.get() for _ in range(self.messages.qsize())]

    def close(self) -> None:
        """Ends without further ado."""
        self.paho.disconnect()
        self.paho.loop_stop()


def context_as(place: RunningFleet, name: str) -> ssl.SSLContext:
    if name == "coordinator":
        folder, identity = place.fleet.folder / "coordinator", "coordinator.pem"
    else:
        folder, identity = place.devices / name, "agent.pem"
    return context_of(folder / "ca.crt", folder / identity)


def update(place: RunningFleet) -> None:
    """Gives the broker the fleet's rules, and waits until it has them."""
    before = place.said().count("Reloading config")
    said = update_broker(place.fleet)
    if place.fleet.register.plugin:
        assert "has " in said
        return
    assert "reloads its files" in said
    assert until(lambda: place.said().count("Reloading config") > before), place.said()


def link_with(
    place: RunningFleet, ca: Path, identity: Path | None, port: int = 0, session_expiry_s: int = 0
) -> MqttLink:
    """Whose session ends with it: Mosquitto 2.0 is damaged by SIGHUP while one is kept."""
    file = str(identity or "")
    tls = TlsSettings(ca_file=str(ca), cert_file=file, key_file=file)
    settings = BrokerSettings(
        port=port or place.port, tls=tls, backoff_min_s=0.05, backoff_max_s=0.5
    )
    return MqttLink(settings, "fedge-houses-mallory", session_expiry_s=session_expiry_s)


def why_refused(place: RunningFleet, identity: Path | None, ca: Path | None = None) -> str:
    """What the device says; tried again for some seconds, since a broker that was told to read
    its files anew says that it was told, and not when it has.
    """
    return until(lambda: _refusal(place, identity, ca)) or "it was let in"


def _refusal(place: RunningFleet, identity: Path | None, ca: Path | None) -> str:
    """Empty when it was let in."""
    link = link_with(place, ca or place.devices / "alice" / "ca.crt", identity)
    try:
        link.open()
        event = link.poll(10)
        assert isinstance(event, LinkUp | LinkDown)
        if isinstance(event, LinkUp):
            return ""
        assert event.refused
        return event.reason
    finally:
        link.abort()


def signed(
    place: RunningFleet, folder: Path, name: str, days_ago: int, days: int, host: str = ""
) -> Path:
    """A certificate that this fleet's authority signed some days ago: a broker's with `host`."""
    authority = place.fleet.folder / "authority"
    root = Authority((authority / "ca.crt").read_bytes(), (authority / "ca.key").read_bytes())
    now = utc_now() - timedelta(days=days_ago)
    issued = root.issue(name, "server" if host else "client", now, days, [host] if host else [])
    path = folder / "identity.pem"
    path.write_bytes(issued.certificate + issued.key)
    return path


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A `fedge` command that has ended."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "fedge", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=40,
    )


def fedge(*arguments: str | Path) -> str:
    """What a command says on stdout."""
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout
