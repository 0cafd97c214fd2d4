"""Free ports of the loopback interface for brokers that a test starts."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

from broker.local.broker import HOST

#: Below the ports that Linux gives to connecting clients (32768 and above): between a test's choice
#: and the start of its broker no connection of another test takes the port.
_FIRST, _LAST = 10_000, 32_000
#: Workers of pytest-xdist choose from different ports.
_WORKERS = 16
#: Not the seeds of tests: two runs on one machine would choose the same ports in the same order.
_rng = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Returns different ports on which nobody listens now."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    ports: list[int] = []
    for port in _rng.sample(range(_FIRST + worker, _LAST, _WORKERS), 500):
        if len(ports) == count:
            break
        with suppress(OSError), socket.socket() as sock:
            sock.bind((HOST, port))
            ports.append(port)
    assert len(ports) == count, f"{len(ports)} free ports found, {count} needed"
    return ports


def free_port() -> int:
    """Returns a port on which nobody listens now."""
    return free_ports(1)[0]
