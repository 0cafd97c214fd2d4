"""Broker on this machine for experiments and tests: starts it, waits for it, stops it.

It listens on the loopback interface only and admits all clients. For a fleet that other machines
join, install Mosquitto as a service (see `deploy/`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from broker.link.settings import BrokerSettings
from broker.local.child_process import bound_to_parent
from broker.local.end_process import end_process
from fedge.errors import ConfigError
from fedge.open_files import raise_file_limit

log = logging.getLogger(__name__)

Kind = Literal["auto", "mosquitto", "embedded"]

HOST = "127.0.0.1"
#: Debian installs brokers in folders that are not in an ordinary user's PATH.
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_START_S = 15.0
_STOP_S = 3.0
_TRIES = 3
#: CONNECT of an MQTT 5 client "fedge-probe": keep-alive 10 s, no properties, session not clean
#: (the embedded broker requires it), and the DISCONNECT that follows.
_CONNECT = b"\x10\x18\x00\x04MQTT\x05\x00\x00\x0a\x00\x00\x0bfedge-probe"
_DISCONNECT = b"\xe0\x00"
_CONNACK = b"\x20"


def find_mosquitto() -> str | None:
    """Returns the path of the Mosquitto broker; None: not installed."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_FOLDERS))
    return shutil.which("mosquitto", path=path)


def has_embedded() -> bool:
    """Returns whether the embedded broker is installed."""
    return importlib.util.find_spec("iotcore") is not None


def choose_kind(kind: Kind) -> Literal["mosquitto", "embedded"]:
    """Returns the kind to run; with `auto` Mosquitto if it is installed.

    Raises:
        ConfigError: not installed; tells what to install.
    """
    if kind != "embedded" and find_mosquitto():
        return "mosquitto"
    if kind != "mosquitto" and has_embedded():
        return "embedded"
    mosquitto = "Mosquitto (apt install mosquitto)"
    embedded = "the embedded broker (comes with fedge's extra: fedge[fleet])"
    missing = {"mosquitto": mosquitto, "embedded": embedded}.get(kind, f"{mosquitto} or {embedded}")
    raise ConfigError(f"no {kind if kind != 'auto' else 'MQTT'} broker here: install {missing}")


class LocalBroker:
    """Runs a broker while the `with` block lasts.

    The broker ends with this process, even if the process is killed, and with the thread that
    started it: start it from a thread that lives as long.

    Attributes:
        kind: kind of the broker.
        port: port on 127.0.0.1 (0 before the start if none was given).
        extra_config: more lines for Mosquitto's configuration, read at each start.

    Args:
        kind: mosquitto, embedded, or auto: Mosquitto if it is installed.
        port: None: a free port.
        extra_config: more lines for Mosquitto's configuration.

    Raises:
        ConfigError: the kind is not installed; or, on entering, the port is in use.
    """

    def __init__(
        self, kind: Kind = "auto", port: int | None = None, *, extra_config: str = ""
    ) -> None:
        self.kind = choose_kind(kind)
        self.port = port or 0
        self.extra_config = extra_config
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> BrokerSettings:
        """Settings to connect to the broker."""
        return BrokerSettings(host=HOST, port=self.port)

    @property
    def pid(self) -> int:
        """Process id of the broker; 0: not running."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> LocalBroker:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the broker and waits until it answers MQTT. Later starts use the same port.

        Raises:
            ConfigError: the port is in use, or the broker ends at once; shows its output.
        """
        raise_file_limit()  # inherited by the broker, which needs one file per client
        self._folder = tempfile.TemporaryDirectory(prefix="fedge-broker-")
        try:
            if self.port:
                _check_port(self.port)
                self._start_on(self.port)
            else:
                self.port = self._start_on_free_port()
        except BaseException:
            self.stop()
            raise

    def _start_on_free_port(self) -> int:
        # Another process may take the port before the broker listens on it.
        for attempt in range(_TRIES):
            port = free_port()
            try:
                self._start_on(port)
            except ConfigError:
                self._end_process()
                if attempt == _TRIES - 1:
                    raise
            else:
                return port
        raise AssertionError("the loop returns or raises")

    def _start_on(self, port: int) -> None:
        assert self._folder is not None
        folder = Path(self._folder.name)
        command = self._command(folder, port)
        log_file = folder / "log"
        with log_file.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=folder
            )
        deadline_s = time.monotonic() + _START_S
        while not answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                output_text = log_file.read_text(errors="replace").strip()[-500:] or "no output"
                raise ConfigError(f"{self.kind} broker did not start on port {port}: {output_text}")
            time.sleep(0.01)
        log.debug("%s broker listens on %s:%d", self.kind, HOST, port)

    def _command(self, folder: Path, port: int) -> list[str]:
        if self.kind == "embedded":
            config = folder / "broker.toml"
            config.write_text(_EMBEDDED_CONFIG.format(host=HOST, port=port))
            return [sys.executable, "-P", str(Path(__file__).parent / "embedded.py"), str(config)]
        config = folder / "mosquitto.conf"
        config.write_text(_mosquitto_config(port) + self.extra_config)
        return [
            *bound_to_parent(os.getpid()),
            find_mosquitto() or "mosquitto",
            "-c",
            str(config),
        ]

    def stop(self) -> None:
        """Stops the broker (SIGTERM, then SIGKILL) and removes its files. Safe to call twice."""
        self._end_process()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def kill(self) -> None:
        """Kills the broker with SIGKILL, like a crash. `start` starts it again without its data."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def wait(self, timeout_s: float) -> int | None:
        """Returns the broker's exit code; None: it still runs after `timeout_s`."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        end_process(process, _STOP_S)
        assert process.stdin is not None
        process.stdin.close()


_EMBEDDED_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
# Limits of the message log, which grows to gigabytes with the defaults.
max_segment_size = 16777216
max_segment_count = 2

[v5.1]
name = "loopback"
listen = "{host}:{port}"
next_connection_delay_ms = 0

[v5.1.connections]
connection_timeout_ms = 60000
# The default refuses more than 20 KB.
max_payload_size = 20971520
max_inflight_count = 100
dynamic_filters = true
"""


def _mosquitto_config(port: int) -> str:
    lines = [
        f"listener {port} {HOST}",
        "allow_anonymous true",
        "persistence false",
        "set_tcp_nodelay true",
        "max_inflight_messages 100",
        # With the default of 1,000 Mosquitto silently drops messages for offline clients.
        "max_queued_messages 100000",
        "max_queued_bytes 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if os.geteuid() == 0:
        # Started as root it would change to the user "mosquitto", and the kernel would no longer
        # end it with its parent (see `child_process`).
        lines.append("user root")
    return "\n".join(lines) + "\n"


def answers(port: int, timeout_s: float = 1.0) -> bool:
    """Returns whether a broker on `port` of this machine answers CONNECT, even with a refusal."""
    try:
        with socket.create_connection((HOST, port), timeout_s) as sock:
            sock.sendall(_CONNECT)
            answer = sock.recv(1)
            sock.sendall(_DISCONNECT)
    except OSError:
        return False
    return answer[:1] == _CONNACK


def free_port() -> int:
    """Returns a port of the loopback interface that is free now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def _check_port(port: int) -> None:
    with socket.socket() as sock:
        # As brokers do: closed connections of an earlier broker do not block the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except PermissionError as error:
            raise ConfigError(
                f"port {port} needs root: choose one above 1023 with --port"
            ) from error
        except OSError as error:
            raise ConfigError(f"port {port} is in use: choose another with --port") from error
