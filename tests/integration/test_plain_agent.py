"""An agent without TLS: it loads no OpenSSL, and its errors of the network are told as ever."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import yaml

from broker.local.broker import LocalBroker
from tests.conftest import need
from tests.ports import free_ports


def wait_for(log: Path, text: str, times: int = 1) -> None:
    until_s = time.monotonic() + 20
    while log.read_text().count(text) < times:
        if time.monotonic() > until_s:
            raise TimeoutError(f"{text!r} is not in:\n{log.read_text()}")
        time.sleep(0.05)


@pytest.mark.parametrize("websocket", [False, True], ids=["tcp", "websocket"])
def test_an_agent_without_tls_survives_its_broker_without_openssl(
    tmp_path: Path, websocket: bool
) -> None:
    need("mosquitto")
    port, other = free_ports(2)
    np.savez(tmp_path / "data.npz", features=np.ones((9, 2), np.float32), y=np.ones(9))
    where = {"port": port, "backoff_max_s": 0.5, **({"websocket": {}} if websocket else {})}
    config = {"federation": "f", "agent_id": "a", "broker": where, "data": {"path": "data.npz"}}
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(config))
    extra = f"listener {port} 127.0.0.1\nprotocol websockets\nallow_anonymous true\n"
    broker = LocalBroker(
        "mosquitto", other if websocket else port, extra_config=extra if websocket else ""
    )
    log = tmp_path / "log"
    with ExitStack() as stack:
        agent = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedge", "agent", "run", "--config", "agent.yaml"],
            cwd=tmp_path,
            stderr=stack.enter_context(log.open("wb")),
        )
        stack.callback(agent.wait, 20)
        stack.callback(agent.kill)
        wait_for(log, "trying again")  # nobody listens yet
        with broker:
            wait_for(log, "INFO    connected")
        wait_for(log, "trying again", 2)
        with broker:
            wait_for(log, "INFO    connected", 2)
            maps = Path(f"/proc/{agent.pid}/maps").read_text()
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(20) == 0
    assert "Traceback" not in log.read_text()
    assert "libcrypto" not in maps
