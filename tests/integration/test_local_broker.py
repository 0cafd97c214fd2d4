"""Brokers on this machine: started, waited for, stopped, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.link.mqtt import MqttLink
from broker.local.broker import LocalBroker, answers, choose_kind
from fedge.errors import ConfigError
from tests.conftest import gone_within, lives, need, take, wait_up
from tests.ports import free_port

KINDS = ["mosquitto", "embedded"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


def test_it_serves_while_the_block_lasts(kind: str) -> None:
    with LocalBroker(kind) as broker:  # type: ignore[arg-type]
        pid, port = broker.pid, broker.port
        assert lives(pid)
        link = MqttLink(broker.settings, "client")
        link.subscribe("t")
        link.open()
        wait_up(link)
        link.publish("t", b"x")
        assert take(link)[0].payload == b"x"
        link.close()
    assert not lives(pid)
    assert not answers(port)
    assert broker.pid == 0


def test_it_listens_on_loopback_only(kind: str) -> None:
    with LocalBroker(kind) as broker:  # type: ignore[arg-type]
        listening = [
            line.split()
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        ]
        hexadecimal = f"{broker.port:04X}"
        addresses = {
            fields[1].partition(":")[0]
            for fields in listening
            if fields[3] == "0A" and fields[1].endswith(f":{hexadecimal}")
        }
    assert addresses == {"0100007F"}


def test_a_port_in_use_is_reported_with_advice(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use: choose another with --port"):
            LocalBroker(kind, port).start()  # type: ignore[arg-type]


def test_a_broker_that_ends_at_once_is_reported_with_its_output() -> None:
    need("mosquitto")
    with pytest.raises(ConfigError, match=r"did not start on port \d+: .*no_such_option"):
        LocalBroker("mosquitto", free_port(), extra_config="no_such_option true\n").start()


def test_a_missing_kind_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.local.broker.find_mosquitto", lambda: None)
    monkeypatch.setattr("broker.local.broker.has_embedded", lambda: False)
    with pytest.raises(ConfigError, match=r"no mosquitto broker here: .*apt install mosquitto"):
        choose_kind("mosquitto")
    with pytest.raises(ConfigError, match=r"no embedded broker here: .*extra: fedge"):
        choose_kind("embedded")
    with pytest.raises(ConfigError, match=r"apt install mosquitto.* or .*extra: fedge"):
        choose_kind("auto")
    monkeypatch.setattr("broker.local.broker.has_embedded", lambda: True)
    assert choose_kind("auto") == "embedded"


def test_it_restarts_on_the_same_port_after_a_crash(kind: str) -> None:
    with LocalBroker(kind) as broker:  # type: ignore[arg-type]
        port, pid = broker.port, broker.pid
        broker.kill()
        assert not lives(pid)
        broker.start()
        assert broker.port == port
        assert answers(port)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent-death signal")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_broker(kind: str, number: signal.Signals) -> None:
    code = (
        "import sys, time\n"
        "from broker.local.broker import LocalBroker\n"
        f"with LocalBroker({kind!r}) as broker:\n"
        "    print(broker.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert lives(pid)
        parent.send_signal(number)
        parent.wait(10)
    assert gone_within(pid, 5.0)


@pytest.fixture
def command(kind: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    arguments = ["broker", "run", "--port", str(free_port()), "--kind", kind, "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedge", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    yield process, json.loads(process.stdout.readline())
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("group", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_the_command_runs_until_it_is_stopped(
    command: tuple[subprocess.Popen[str], dict[str, object]], kind: str, group: bool
) -> None:
    process, told = command
    assert told["kind"] == kind
    assert answers(int(str(told["port"])))
    if group:  # a terminal sends Ctrl-C to the broker as well
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (0, "", "")
    assert gone_within(int(str(told["pid"])), 5.0)


def test_the_command_tells_a_person_how_to_connect(kind: str) -> None:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "fedge", "broker", "run", "--port", str(port), "--kind", kind],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert f"listens on 127.0.0.1:{port} (this machine only" in process.stdout.readline()
        assert f"port: {port}" in process.stdout.readline()
        process.terminate()
        assert process.wait(10) == 0


def test_the_command_ends_with_2_when_the_port_is_in_use() -> None:
    need("mosquitto")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "fedge", "broker", "run", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert result.returncode == 2
    assert result.stderr == f"error: port {port} is in use: choose another with --port\n"


def test_the_command_reports_a_broker_that_ends(
    command: tuple[subprocess.Popen[str], dict[str, object]],
) -> None:
    process, told = command
    os.kill(int(str(told["pid"])), signal.SIGKILL)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 3
    assert "ended by itself" in errors
