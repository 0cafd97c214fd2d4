"""A real enrolment service, and a client of its broker without manners."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from broker.enrolment.invitations import invite
from broker.enrolment.messages import EnrolmentTopics
from broker.enrolment.token import Token
from broker.security.fleet import Fleet, utc_now
from edge_agent.enrolment.private_key import certificate_request, own_key
from tests.integration.fleet_folder import FEDERATION, REPOSITORY, Client, until

TOPICS = EnrolmentTopics(FEDERATION)


@dataclass
class Service:
    """A fleet and its running enrolment service."""

    fleet: Fleet
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return self.fleet.register.enrolment_port

    def token(self, agent_id: str, hours: float = 1.0) -> Token:
        return invite(self.fleet, agent_id, utc_now(), timedelta(hours=hours), 30)

    def said(self) -> str:
        return self.log.read_text()

    def says(self, words: str) -> bool:
        """Whether it says so soon."""
        return bool(until(lambda: words in self.said()))

    def is_connected(self) -> bool:
        """Whether it has reached its broker."""
        return " INFO    connected" in self.said()

    def stranger(self, client_id: str = "") -> Client:
        """Somebody without a certificate, who does not care whom it talks to."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return Client(self.port, context, client_id or os.urandom(16).hex())


@contextlib.contextmanager
def serving(fleet: Fleet, folder: Path, mosquitto: Path) -> Iterator[Service]:
    """Runs `fedge broker serve-enrolment` until it is stopped; devices may ask at once."""
    with started(fleet, folder, mosquitto) as service:
        until(lambda: service.is_connected() or service.process.poll() is not None, 20)
        assert service.is_connected(), service.said()
        yield service


@contextlib.contextmanager
def started(fleet: Fleet, folder: Path, mosquitto: Path, *options: str) -> Iterator[Service]:
    """Starts `fedge broker serve-enrolment` and does not wait for anything."""
    log = folder / "enrolment.log"
    arguments = ["broker", "serve-enrolment", str(fleet.folder), *options]
    path = f"{mosquitto.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedge", *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": path, "TMPDIR": str(folder)},
            stdout=output,
            stderr=output,
        )
    try:
        yield Service(fleet, log, process)
    finally:
        process.terminate()
        process.wait(10)


def request_in(folder: Path) -> str:
    """A certificate request of a device."""
    folder.mkdir(exist_ok=True)
    own_key(folder / "agent.key")
    return certificate_request(folder / "agent.key", "anybody")
