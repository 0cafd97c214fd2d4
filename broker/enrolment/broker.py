"""Enrolment broker: a separate Mosquitto for devices that have no certificate yet.

It is separate because a listener without certificates accepts any user name and client id, and both
are valid in the whole broker. This broker has no identities to impersonate, no retained messages
and no sessions of value, and a flood of messages stays in it.

A device connects without a user name and may use two topics below its random client id. The service
connects on the loopback interface with a password that is made for each run. So does Mosquitto's
listener for devices: `FrontDoor` limits connections before they reach it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import subprocess
import tempfile
import time
from pathlib import Path

from broker.enrolment.front_door import FrontDoor
from broker.enrolment.messages import EnrolmentTopics
from broker.link.settings import BrokerSettings
from broker.local.broker import HOST, answers, find_mosquitto, free_port
from broker.local.child_process import bound_to_parent
from broker.local.end_process import end_process
from broker.security.access_control import SERVER_FILE
from broker.security.fleet import Fleet
from fedge.errors import ConfigError, LinkError
from fedge.files import Account, write_whole

_USER = "enrolment"
_START_S, _STOP_S = 15.0, 3.0
#: Iterations of PBKDF2 with SHA-512 in Mosquitto's password file. The password is 256 random bits.
_ITERATIONS = 101


class EnrolmentBroker:
    """Runs the enrolment broker while the `with` block lasts; its log goes to stderr.

    Args:
        fleet: the fleet, whose enrolment port and server certificate the broker uses.

    Raises:
        ConfigError: Mosquitto is not installed; or, on entering, does not start.
    """

    def __init__(self, fleet: Fleet) -> None:
        program = find_mosquitto()
        if program is None:
            raise ConfigError("enrolment needs Mosquitto on this machine: apt install mosquitto")
        self._program = program
        self._fleet = fleet
        self._inner_port = 0
        self._tls_port = 0
        self._door: FrontDoor | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EnrolmentBroker:
        self._folder = tempfile.TemporaryDirectory(prefix="fedge-enrolment-")
        try:
            self._start(Path(self._folder.name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._door is not None:
            self._door.__exit__()
        if self._process is not None:
            end_process(self._process, _STOP_S)
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def settings(self) -> BrokerSettings:
        """Settings of the service's connection."""
        assert self._folder is not None
        secret = str(Path(self._folder.name) / "secret")
        return BrokerSettings(
            host=HOST, port=self._inner_port, username=_USER, password_file=secret
        )

    def check(self) -> None:
        """Checks that the broker still runs.

        Raises:
            LinkError: the broker has ended.
        """
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise LinkError(f"the enrolment broker ended by itself (exit code {code})")

    def _start(self, folder: Path) -> None:
        register = self._fleet.register
        account = Account.for_files(register.user)
        password = secrets.token_urlsafe(32)
        self._inner_port, self._tls_port = free_port(), free_port()
        write_whole(folder / "secret", password.encode())
        texts = {
            "passwords": _password_line(password),
            "access.acl": _rules(register.federation),
            "mosquitto.conf": _config(folder, self._fleet, self._inner_port, self._tls_port),
        }
        for name, text in texts.items():
            write_whole(folder / name, text.encode(), owner=account)
        if account.uid != os.geteuid():
            os.chown(folder, account.uid, account.gid)
        # Never as root: a process that strangers can reach must not have rights.
        parent = f"{os.getpid()}:{account.uid}:{account.gid}" if os.geteuid() == 0 else os.getpid()
        command = [*bound_to_parent(parent), self._program, "-c", str(folder / "mosquitto.conf")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + _START_S
        while not answers(self._inner_port):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise ConfigError(
                    "the enrolment broker did not start: see Mosquitto's messages above"
                )
            time.sleep(0.02)
        target = (HOST, self._tls_port)
        self._door = FrontDoor(register.bind, register.enrolment_port, target).__enter__()


def _password_line(password: str) -> str:
    salt = secrets.token_bytes(12)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    parts = (base64.b64encode(part).decode() for part in (salt, key))
    return f"{_USER}:$7${_ITERATIONS}${'$'.join(parts)}\n"


def _rules(federation: str) -> str:
    topics = EnrolmentTopics(federation)
    request, answer = topics.request("%c"), topics.answer("%c")
    return f"""\
user {_USER}
topic readwrite {topics.requests}
topic write {topics.answer("+")}

pattern write {request}
pattern read {answer}
"""


def _config(folder: Path, fleet: Fleet, inner_port: int, tls_port: int) -> str:
    register = fleet.register
    return _CONFIG.format(
        folder=folder,
        broker=fleet.broker_folder,
        user=register.user,
        listener=f"{tls_port} {HOST}",
        inner=f"{inner_port} {HOST}",
        server=SERVER_FILE,
    )


_CONFIG = """\
per_listener_settings false
user {user}
# Devices connect without a user name; the service's user name has a password.
allow_anonymous true
password_file {folder}/passwords
acl_file {folder}/access.acl

listener {listener}
protocol mqtt
certfile {broker}/{server}
keyfile {broker}/{server}
tls_version tlsv1.2
max_connections 200
max_qos 1

listener {inner}
protocol mqtt
max_connections 20
max_qos 1

max_packet_size 81920
max_keepalive 60
max_inflight_messages 10
max_queued_messages 100
max_queued_bytes 1048576
queue_qos0_messages false
memory_limit 134217728
persistent_client_expiration 1h
max_topic_alias 10
set_tcp_nodelay true
sys_interval 0
persistence false

log_dest stderr
log_type error
log_type warning
log_type notice
log_timestamp_format enrolment broker: %Y-%m-%dT%H:%M:%S
"""
