"""Many agents in one process over a real broker: as if each had a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from broker.link.link import LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.local.broker import LocalBroker
from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from broker.protocol.topics import AgentStatusTopic, Topics
from coordinator.records.records import RoundRecord
from edge_agent.config import AgentConfig
from fedge.errors import ConfigError, LinkError
from fleet.runs.host import AgentHost, find_agents
from fleet.runs.run import RunOptions, run_scenario
from models.package.package import INITIAL_FILE
from tests.conftest import need, take, wait_up
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
FEDGE = [sys.executable, "-P", "-m", "fedge"]
AGENTS = 40
BROKEN = "agent-7"
FEDERATION = "hosted"
TOPICS = Topics(FEDERATION)


def write_agent(folder: Path, name: str, port: int, federation: str = FEDERATION) -> None:
    """A house-price agent with a few rows of a line and some noise."""
    rng = np.random.default_rng(abs(hash_of(name)))
    x = rng.normal((3.7, 5.3), (1.5, 2.0), (60, 2)).astype(np.float32)
    y = (x @ np.array([0.6, -0.1]) + 0.5 + rng.normal(0, 0.1, 60)).astype(np.float32)
    (folder / name).mkdir(parents=True)
    np.savez(folder / name / "data.npz", features=x, y=y)
    config = {
        "federation": federation,
        "agent_id": name,
        "broker": {"port": port},
        "data": {"path": "data.npz"},
    }
    (folder / name / "agent.yaml").write_text(yaml.safe_dump(config))


def hash_of(name: str) -> int:
    """The same in every process, unlike `hash`."""
    return int.from_bytes(name.encode()[-4:])


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """A `fedge` command."""
    return subprocess.Popen(
        [*FEDGE, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


class Statuses:
    """The latest status of every agent of a federation."""

    def __init__(self, broker: LocalBroker, client_id: str) -> None:
        self.of: dict[str, AgentStatus] = {}
        self._link = MqttLink(broker.settings, client_id, session_expiry_s=0)
        self._link.subscribe(TOPICS.from_agents[0])
        self._link.open()

    def until(self, enough: Callable[[dict[str, AgentStatus]], bool], timeout_s: float) -> float:
        """Listens until there is enough; returns how long that took."""
        started = time.monotonic()
        while not enough(self.of):
            left_s = started + timeout_s - time.monotonic()
            assert left_s > 0, f"{len(self.of)} statuses: {list(self.of.items())[:3]}"
            event = self._link.poll(left_s)
            if isinstance(event, Received) and event.payload:
                topic = TOPICS.parse(event.topic)
                assert isinstance(topic, AgentStatusTopic)
                self.of[topic.agent_id] = messages.decode(event.payload, AgentStatus)
        return time.monotonic() - started

    def close(self) -> None:
        self._link.close()


@dataclass
class Seen:
    """What a run of a whole host showed."""

    rounds: list[RoundRecord] = field(default_factory=list)
    online: dict[str, AgentStatus] = field(default_factory=dict)
    offline: dict[str, AgentStatus] = field(default_factory=dict)
    stop_s: float = 0.0
    exit_code: int | None = None
    log: str = ""
    folder: Path = Path()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, mosquitto: LocalBroker) -> Iterator[Seen]:
    """Forty agents, the data of one broken, two rounds, then SIGTERM."""
    need("mosquitto")
    folder = tmp_path_factory.mktemp("host")
    found = Seen(folder=folder)
    for number in range(AGENTS):
        write_agent(folder / "agents", f"agent-{number}", mosquitto.port)
    (folder / "agents" / BROKEN / "data.npz").write_bytes(b"PK\x03\x04 cut off in mid-air")
    config = {
        "federation": FEDERATION,
        "model": "house_price",
        "broker": {"port": mosquitto.port},
        "rounds": 2,
        "start": {"agents": AGENTS - 1, "timeout_s": 30},
        "training": {"batch_size": 0, "learning_rate": 0.3, "epochs": 3},
        "codec": {"name": "int8"},
    }
    (folder / "coordinator.yaml").write_text(yaml.safe_dump(config))
    statuses = Statuses(mosquitto, "host-statuses")
    host = start("fleet", "host", folder / "agents")
    coordinator = start("coordinator", "run", "--config", folder / "coordinator.yaml", "--json")
    try:
        out, err = coordinator.communicate(timeout=60)
        assert coordinator.returncode == 0, err.decode()
        events = [json.loads(line) for line in out.splitlines()]
        found.rounds = [
            msgspec.convert(event["record"], RoundRecord)
            for event in events
            if event["event"] == "round"
        ]
        statuses.until(all_looked_at_their_data, 10)
        found.online = dict(statuses.of)
        host.send_signal(signal.SIGTERM)
        found.stop_s = statuses.until(all_offline, 10)
        found.log = host.communicate(timeout=10)[1].decode()
        found.offline = dict(statuses.of)
        found.exit_code = host.returncode
        yield found
    finally:
        for child in (host, coordinator):
            if child.poll() is None:
                child.kill()
                child.communicate()
        statuses.close()


def all_looked_at_their_data(of: dict[str, AgentStatus]) -> bool:
    return len(of) == AGENTS and all(s.unavailable_reason or s.train_examples for s in of.values())


def all_offline(of: dict[str, AgentStatus]) -> bool:
    return all(status.state == "offline" for status in of.values())


def test_every_hosted_agent_reports_in_every_round(seen: Seen) -> None:
    assert [(r.status, r.asked, r.reported) for r in seen.rounds] == [
        ("committed", AGENTS - 1, AGENTS - 1)
    ] * 2
    assert all(not r.refusals and not r.declined for r in seen.rounds)


def test_hosted_agents_learn(seen: Seen) -> None:
    first, second = (r.train_loss for r in seen.rounds)
    assert first is not None
    assert second is not None
    assert second < 0.5 * first


def test_a_broken_data_file_disturbs_nobody_else(seen: Seen) -> None:
    assert "not an .npz file" in seen.online[BROKEN].unavailable_reason
    others = [status for name, status in seen.online.items() if name != BROKEN]
    assert {(s.state, s.unavailable_reason, s.train_examples, s.test_examples) for s in others} == {
        ("online", "", 48, 12)
    }


def test_each_hosted_agent_is_an_instance_of_its_own(seen: Seen) -> None:
    assert len({status.agent_instance for status in seen.online.values()}) == AGENTS


def test_each_hosted_agent_keeps_its_own_files(seen: Seen) -> None:
    settled = sorted(seen.folder.glob("agents/*/state/settled.bin"))
    assert len(settled) == AGENTS - 1
    assert len({path.read_bytes() for path in settled}) == AGENTS - 1


def test_sigterm_ends_a_host_in_time_with_every_agent_offline(seen: Seen) -> None:
    assert seen.exit_code == 0
    assert seen.stop_s < 5
    assert all_offline(seen.offline)
    # By their own goodbye, not by the broker's will: that waits five seconds.
    assert {s.agent_instance for s in seen.offline.values()} == {
        s.agent_instance for s in seen.online.values()
    }


def test_the_log_of_a_host_names_what_went_wrong_and_no_more(seen: Seen) -> None:
    lines = [line for line in seen.log.splitlines() if "INFO: Created" not in line]
    assert len(lines) <= 4, seen.log


class Silent:
    """Watches a run and says nothing."""

    def begin(self, *_: object) -> None: ...
    def round(self, record: RoundRecord) -> None: ...
    def waiting(self, eligible: int, wanted: int) -> None: ...
    def note(self, text: str) -> None:
        pytest.fail(text)

    def working(self, what: str, done: int, of: int) -> None: ...


def test_hosted_agents_learn_what_agents_with_processes_of_their_own_learn(
    tmp_path: Path,
) -> None:
    need("mosquitto")
    document: dict[str, Any] = yaml.safe_load((ROOT / "examples/house_price.yaml").read_text())
    document["data"]["path"] = str(ROOT / "examples/data/housing_california.npz")
    document["federation"]["codec"] = {"name": "int8"}  # rounds at random, with each agent's seed
    document["federation"]["training"]["batch_size"] = 64  # in a random order, likewise
    document["baselines"] = {}
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(document))
    thetas = []
    changes = {"agents": 4, "federation.rounds": 2}
    for hosts in (0, 2):
        options = RunOptions(tmp_path / f"out-{hosts}", changes, "mosquitto", hosts)
        report = run_scenario(path, options, Silent())
        assert [r["reported"] for r in report["rounds"]] == [4, 4]
        thetas.append(np.load(tmp_path / f"out-{hosts}" / "model" / INITIAL_FILE))
    # The updates are the same bit for bit. They are added up in float64 in the order of their
    # arrival, which may change the last bit of a float32 parameter.
    np.testing.assert_allclose(thetas[0], thetas[1], rtol=1e-6, atol=1e-7)


def hosted(folder: Path) -> tuple[AgentHost, threading.Thread, list[BaseException]]:
    """A host in a thread, and what its `run` raised."""
    host = AgentHost(find_agents([folder]), give_up_s=1.0)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            host.run()
        except LinkError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return host, thread, raised


def test_an_agent_whose_broker_is_not_there_is_given_up_and_the_others_stay(
    tmp_path: Path, mosquitto: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    write_agent(tmp_path, "lost", free_port())
    write_agent(tmp_path, "there", mosquitto.port)
    statuses = Statuses(mosquitto, "given-up-statuses")
    host, thread, raised = hosted(tmp_path)
    try:
        statuses.until(lambda of: of.get("there", offline()).state == "online", 10)
        deadline = time.monotonic() + 10
        while "given up" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "gave up after 1 s" in caplog.text
        assert thread.is_alive()
        host.stop()
        statuses.until(lambda of: of["there"].state == "offline", 5)
    finally:
        host.stop()
        thread.join(15)
        statuses.close()
    assert not thread.is_alive()
    assert raised == []


def offline() -> AgentStatus:
    return AgentStatus(state="offline", agent_instance="none")


def test_a_host_without_a_broker_says_so_and_ends(tmp_path: Path) -> None:
    write_agent(tmp_path, "lost", free_port())
    _, thread, raised = hosted(tmp_path)
    thread.join(15)
    assert not thread.is_alive()
    assert "gave up after 1 s" in str(raised[0])


def test_two_agents_of_one_id_are_refused(tmp_path: Path) -> None:
    write_agent(tmp_path / "a", "twin", 1)
    write_agent(tmp_path / "b", "twin", 1)
    write_agent(tmp_path / "c", "twin", 1, federation="another")
    with pytest.raises(
        ConfigError, match="2 agents of hosted have the id twin: give each agent its own id"
    ):
        AgentHost(find_agents([tmp_path / "a", tmp_path / "b", tmp_path / "c"]))


def test_two_agents_of_one_state_folder_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_agent(tmp_path, name, 1)
    (tmp_path / "two" / "state").symlink_to("../one/state")
    (tmp_path / "one" / "state").mkdir()
    with pytest.raises(ConfigError, match=f"two/state is in use by process {os.getpid()}"):
        AgentHost(find_agents([tmp_path]))


def test_a_folder_is_an_agents_or_holds_agents(tmp_path: Path) -> None:
    write_agent(tmp_path / "many", "one", 1)
    write_agent(tmp_path / "many", "two", 1)
    found = find_agents([tmp_path / "many", tmp_path / "many" / "one"])
    assert [(config.agent_id, base.name) for config, base in found] == [
        ("one", "one"),
        ("two", "two"),
        ("one", "one"),
    ]
    assert all(isinstance(config, AgentConfig) for config, _ in found)
    with pytest.raises(ConfigError, match=r"state: no agent\.yaml here or in a folder below"):
        find_agents([tmp_path / "many" / "one" / "state"])


def test_a_link_notifies_once_for_each_event(
    mosquitto: LocalBroker, unique: Callable[[str], str]
) -> None:
    told = threading.Semaphore(0)
    with NetworkLoop() as network:
        link = MqttLink(
            mosquitto.settings,
            unique("notified"),
            network=network,
            session_expiry_s=0,
            notify=told.release,
        )
        try:
            link.subscribe(unique("topic"))
            link.open()
            assert told.acquire(timeout=10)
            assert isinstance(link.poll(0.0), LinkUp)
            for number in range(3):
                link.publish(unique("topic"), bytes([number]))
            link.post("from elsewhere")
            for _ in range(4):
                assert told.acquire(timeout=10)
            assert all(link.poll(0.0) is not None for _ in range(4))
            assert not told.acquire(blocking=False)
            assert link.poll(0.0) is None
        finally:
            link.close()


def test_many_links_close_at_once(mosquitto: LocalBroker, unique: Callable[[str], str]) -> None:
    with NetworkLoop() as network:
        links = [
            MqttLink(
                mosquitto.settings, unique(f"closing-{n}"), network=network, session_expiry_s=0
            )
            for n in range(20)
        ]
        listener = MqttLink(mosquitto.settings, unique("listener"), session_expiry_s=0)
        listener.subscribe(unique("goodbyes"))
        listener.open()
        wait_up(listener)
        try:
            for link in links:
                link.open()
            for link in links:
                wait_up(link)
                link.publish(unique("goodbyes"), b"bye")
                link.begin_close()
            for link in links:
                link.close()
                with pytest.raises(LinkError, match="is closed"):
                    link.publish(unique("goodbyes"), b"more")
            assert len(take(listener, len(links))) == len(links)
        finally:
            listener.close()
