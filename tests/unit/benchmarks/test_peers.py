"""benchmarks/peers: the work is the same for fedge and for the others, and its check can tell."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

PEERS = Path(__file__).parents[3] / "benchmarks" / "peers"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of the benchmark, as its own scripts do."""
    monkeypatch.setattr(sys, "path", [str(PEERS), str(PEERS / "tasks"), *sys.path])
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if name in ("work", "measured", "mlp", "relay"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "words", ["numpy_loop", "numpy_batched", "fedge_simulate exact", "fedge_simulate bytes"]
)
def test_scripts_end_with_the_same_weights(load: Load, tmp_path: Path, words: str) -> None:
    script, *arguments = words.split()
    work = load("work")
    given = work.write_work(tmp_path / "work.npz", clients=3, rounds=4)
    work.write_scenario(tmp_path, given)
    result = tmp_path / "theta.npy"
    command = [sys.executable, str(PEERS / "tasks" / f"{script}.py"), str(given.path), str(result)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rounds"] == 4
    assert work.distance(given, work.reference(given), np.load(result)) < 1e-5


def test_another_order_of_rows_is_told(load: Load, tmp_path: Path) -> None:
    work = load("work")
    given = work.write_work(tmp_path / "work.npz", clients=3, rounds=4)
    expected = work.reference(given)
    given.orders[3, 2] = np.roll(given.orders[3, 2], 1)
    assert work.distance(given, expected, work.reference(given)) > 10 * work.TOLERANCE


def test_the_relay_counts_the_bytes_of_a_client_both_ways(load: Load) -> None:
    heads: list[bytes] = []
    began = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        load("relay").Relay(server.getsockname()[1], heads.append) as relay,
    ):

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"12345")

        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection(("127.0.0.1", relay.port)) as client:
            client.sendall(b"I am pi-1")
            assert client.recv(100) == b"12345"
            assert relay.between(began, time.monotonic(), b"pi-1") == (9, 5)
            assert relay.between(began, time.monotonic(), b"pi-2") == (0, 0)
        thread.join()
    assert heads == [b"I am pi-1"]
