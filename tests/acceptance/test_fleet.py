"""Whole fleets: real processes, a real broker, real data, and what goes wrong in the field."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from broker.link.link import Received
from broker.link.mqtt import MqttLink
from broker.local.broker import LocalBroker
from broker.protocol import messages
from broker.protocol.messages import AgentStatus, RoundPlan
from broker.protocol.topics import AgentStatusTopic, ReportTopic, RoundTopic, Topics, UpdateTopic
from fedge.errors import WireError
from tests.acceptance.federation import children_of, eventually
from tests.conftest import wait_up

ROOT = Path(__file__).parents[2]
HOUSE_PRICE = ROOT / "examples" / "house_price.yaml"
HOUSING = ROOT / "examples" / "data" / "housing_california.npz"
#: No command of these tests takes so long.
_LONGEST_S = 50.0
FEDGE = [sys.executable, "-P", "-m", "fedge"]


@contextmanager
def process(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `fedge` command that does not outlive the test."""
    child = subprocess.Popen(
        [*FEDGE, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    watchdog = threading.Timer(_LONGEST_S, child.kill)  # who reads its output waits no longer
    watchdog.start()
    try:
        yield child
    finally:
        watchdog.cancel()
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
        child.communicate()


def ended(child: subprocess.Popen[bytes], timeout_s: float = 80.0) -> int:
    """Its exit code; what it said is shown when it takes too long."""
    try:
        child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        pytest.fail(f"still running after {timeout_s} s: {(out + err)[-2000:].decode()}")
    return child.returncode


def processes_of(folder: Path) -> dict[int, str]:
    """Running processes whose command line names the folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(folder) in command and int(entry.name) != os.getpid():
                    found[int(entry.name)] = command
    return found


def scenario(folder: Path, **federation: Any) -> Path:
    """The house price scenario with another federation, without baselines."""
    document = yaml.safe_load(HOUSE_PRICE.read_text())
    document["data"]["path"] = str(HOUSING)
    document["federation"] |= federation
    document["baselines"] = {}
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class Listener:
    """A client that hears everything on a broker."""

    def __init__(self, broker: LocalBroker, name: str) -> None:
        self.link = MqttLink(broker.settings, client_id=name, session_expiry_s=0)
        self.link.subscribe("fedge/#")
        self.link.open()
        wait_up(self.link)
        self.heard: list[Received] = []

    def listen(self, for_s: float = 0.05) -> None:
        event = self.link.poll(for_s)
        while event is not None:
            if isinstance(event, Received):
                self.heard.append(event)
            event = self.link.poll(0)

    def plan(self, round_id: int, phase: str = "train") -> tuple[Topics, RoundPlan] | None:
        """The plan of a round, once it was heard."""
        self.listen()
        for message in self.heard:
            topics = Topics(message.topic.split("/")[2])
            with suppress(WireError):
                if message.payload and topics.parse(message.topic) == RoundTopic():
                    plan = messages.decode(message.payload, RoundPlan)
                    if (plan.round_id, plan.phase_name) == (round_id, phase):
                        return topics, plan
        return None


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker("auto") as broker:
        yield broker


@pytest.fixture
def listener(broker: LocalBroker) -> Iterator[Listener]:
    listener = Listener(broker, "listener")
    yield listener
    listener.link.close()


def address(broker: LocalBroker) -> str:
    return f"mqtt://127.0.0.1:{broker.port}"


def losses(report: dict[str, Any]) -> list[float]:
    return [r["loss"] for r in report["rounds"] if r["status"] == "committed"]


#: Full batches and tiny steps: a second or so of training a round, and a loss that keeps falling.
SLOW = {
    "training": {"epochs": 1500, "batch_size": 0, "optimizer": "sgd", "learning_rate": 0.0001},
    "round": {"deadline_s": 60, "minimum": 1},
}


def test_a_fleet_of_three_writes_a_report_with_all_the_names_of_its_contract(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    run = ("fleet", "run", HOUSE_PRICE, "--agents", "3", "--rounds", "2", "--out", out, "--json")
    with process(*run) as child:
        printed, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    report = json.loads((out / "report.json").read_text())
    assert json.loads(printed) == report
    assert {"scenario", "agents", "parameters", "codec", "runtime", "broker"} <= set(report)
    assert (report["scenario"], report["agents"], report["parameters"]) == ("house_price", 3, 3)
    assert [r["round_id"] for r in report["rounds"]] == [1, 2]
    for record in report["rounds"]:
        assert {"loss", "metrics", "bytes_up", "bytes_down", "seconds"} <= set(record)
        assert (record["asked"], record["reported"], record["refused"]) == (3, 3, 0)
        assert record["bytes_up"] > 3 * 200
        assert record["bytes_down"] > 3 * 200
        assert set(record["agents"]) == {"site-0", "site-1", "site-2"}
        for agent in record["agents"].values():
            assert {"loss", "metrics", "num_examples"} <= set(agent)
    first, second = losses(report)
    assert second < first
    final = report["final"]
    assert final["loss"] == second
    assert final["metrics"] == {"mae": report["rounds"][1]["metrics"]["mae"]}
    assert final["bytes_up"] == sum(r["bytes_up"] for r in report["rounds"])
    assert final["seconds"] > 0
    assert report["baselines"]["pooled_on_own"] == pytest.approx(final["metrics"]["mae"], abs=0.01)
    assert sorted(p.name for p in (out / "model").iterdir()) == [
        "architecture.json",
        "initial.npy",
        "program.tflite",
        "spec.json",
    ]
    assert processes_of(out) == {}


def test_an_agent_killed_in_the_middle_of_a_round_does_not_hang_the_run(
    tmp_path: Path, broker: LocalBroker, listener: Listener
) -> None:
    out, path = tmp_path / "out", scenario(tmp_path, **SLOW)
    run = ("fleet", "run", path, "--agents", "3", "--rounds", "3", "--out", out)
    with process(*run, "--broker", address(broker)) as child:
        eventually("round 2 begins", lambda: listener.plan(2))
        ((pid, _),) = [
            (pid, command)
            for pid, command in processes_of(out).items()
            if "site-1/agent.yaml" in command
        ]
        os.kill(pid, signal.SIGKILL)
        assert ended(child) == 0
    report = json.loads((out / "report.json").read_text())
    assert [(r["asked"], r["reported"]) for r in report["rounds"]] == [(3, 3), (3, 2), (2, 2)]
    assert report["rounds"][1]["closed"] == "everyone"
    assert losses(report) == sorted(losses(report), reverse=True)
    assert len(set(losses(report))) == 3


def test_a_device_that_sends_rubbish_is_refused_and_stops_nobody(
    tmp_path: Path, broker: LocalBroker, listener: Listener
) -> None:
    out, path = tmp_path / "out", scenario(tmp_path, **SLOW)
    run = ("fleet", "run", path, "--agents", "3", "--rounds", "2", "--out", out)
    rubbish = [b"", b"\x00", b"rubbish", b'{"session":"\xff"}', b"[" * 5000, os.urandom(5000)]
    rubbish += [b"FDC1" + os.urandom(100), b"FDG1" + os.urandom(100), b"\x80\x04\x95pickle."]
    with process(*run, "--broker", address(broker)) as child:
        topics, first_plan = eventually("round 1 begins", lambda: listener.plan(1))
        birth = AgentStatus(
            state="online",
            agent_instance="evil",
            phases=("train",),
            train_examples=10,
            codecs=("float32",),
            algorithms=("fedavg",),
            coordinator_instance=first_plan.coordinator_instance,
        )
        status = topics.name(AgentStatusTopic("evil"))
        listener.link.publish(status, messages.encode(birth), retain=True)
        _, plan = eventually("round 2 asks it", lambda: listener.plan(2))
        assert "evil" in (plan.cohort.ids or ())
        for payload in rubbish:
            for topic in (UpdateTopic("evil", 2, 0), ReportTopic("evil", 2)):
                listener.link.publish(topics.name(topic), payload)
            listener.link.publish(status, payload)
            listener.link.publish(topics.name(UpdateTopic("evil", 1, 0)), payload)
        eventually("the new weights are measured", lambda: listener.plan(2, "evaluate"))
        offline = AgentStatus(state="offline", agent_instance="evil")
        listener.link.publish(status, messages.encode(offline), retain=True)
        assert ended(child) == 0
    report = json.loads((out / "report.json").read_text())
    second = report["rounds"][1]
    assert (second["status"], second["asked"], second["reported"]) == ("committed", 4, 3)
    assert second["refusals"] == {"malformed": len(rubbish)}
    assert second["closed"] == "everyone"
    assert "evil" not in second["agents"]
    first, last = losses(report)
    assert last < first


def test_ctrl_c_ends_everything_and_says_so(tmp_path: Path) -> None:
    out, path = tmp_path / "out", scenario(tmp_path, **SLOW)
    with process("fleet", "run", path, "--agents", "3", "--out", out) as child:
        children: list[int] = eventually(
            "broker, coordinator and three agents run",
            lambda: len(found := children_of(child.pid)) == 5 and found,
        )
        eventually("they have begun", lambda: any(out.glob("processes/coordinator/state/*")))
        child.send_signal(signal.SIGINT)
        assert ended(child) == 130
    assert processes_of(out) == {}
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.parametrize(
    ("name", "learners"), [("audio_visual_digit", 4), ("anomaly_autoencoder", 2)]
)
def test_agents_without_a_sense_and_agents_without_labels_learn(
    tmp_path: Path, name: str, learners: int
) -> None:
    """NaN in an input, and no target at all, go through each agent's own file."""
    document = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    document["data"]["path"] = str(ROOT / "examples" / document["data"]["path"])
    document["baselines"] = {}
    path, out = tmp_path / "scenario.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(document))
    options = ("--agents", "8", "--rounds", "2", "--hosts", "1", "--out", out)
    with process("fleet", "run", path, *options) as child:
        assert ended(child) == 0
    report = json.loads((out / "report.json").read_text())
    found = [(r["status"], r["reported"], r["declined"]) for r in report["rounds"]]
    assert found == [("committed", learners, {})] * 2
    measured = report["rounds"][-1]["agents"]
    assert len(measured) == 8
    assert all(np.isfinite(agent["loss"]) for agent in measured.values())
    assert report["rounds"][0]["loss"] != report["rounds"][1]["loss"]


def test_a_run_ends_when_no_agent_can_take_part_and_says_why(tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "examples" / "handwritten_digit.yaml").read_text())
    data = {"x": np.zeros((60, 28, 28), np.float32), "y": np.full(60, 1.5)}
    np.savez(tmp_path / "halves.npz", **data)
    document["data"]["path"] = "halves.npz"
    document |= {"partition": {"kind": "iid", "clients": 3}, "unseen": [], "baselines": {}}
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(document))
    with process("fleet", "run", path, "--out", tmp_path / "out") as child:
        out, err = child.communicate(timeout=_LONGEST_S)
    assert child.returncode == 2
    assert b"3 of 3 agents cannot take part, a round needs 3" in err
    assert b"1.5 is not one of 10 classes" in err
    assert out.count(b"cannot take part (no_data: ") == 3


def test_nobodys_rows_appear_on_the_wire(
    tmp_path: Path, broker: LocalBroker, listener: Listener
) -> None:
    out = tmp_path / "out"
    run = ("fleet", "run", HOUSE_PRICE, "--agents", "3", "--rounds", "2", "--out", out)
    with process(*run, "--broker", address(broker)) as child:

        def over() -> bool:
            listener.listen()
            return child.poll() is not None

        eventually("the run is over", over)
        assert child.returncode == 0
    listener.listen(0.2)
    wire = b"\n".join(message.payload for message in listener.heard)
    assert sum("/updates/" in message.topic for message in listener.heard) == 6
    theta = np.load(out / "model" / "initial.npy")
    assert theta.astype("<f4").tobytes() in wire  # what does travel is found
    with np.load(HOUSING) as file:
        x, y = file["x"], file["y"]
    spec = json.loads((ROOT / "models/zoo/packages/house_price/spec.json").read_text())
    mean, std = (np.array(spec["inputs"][0][key]) for key in ("mean", "std"))
    rows = np.c_[x, y]
    scaled = np.c_[(x - mean) / std, y * 1e-5]
    for values in (rows, scaled, rows[:, :2], scaled[:, :2]):
        for dtype in ("<f8", ">f8", "<f4", ">f4"):
            for row in values[::19].astype(dtype):
                assert row.tobytes() not in wire
    for row in rows[::19].tolist():
        assert json.dumps(row).encode()[1:-1] not in wire


def write_federation(folder: Path, broker: LocalBroker, agents: int, rounds: int) -> None:
    """Configurations of a coordinator and some agents, and the agents' rows."""
    at = {"host": "127.0.0.1", "port": broker.port}
    coordinator = {
        "federation": "f",
        "model": "house_price",
        "broker": at,
        "state_dir": "state",
        "rounds": rounds,
        "start": {"agents": agents},
        "codec": {"name": "int8"},
        "training": {"epochs": 300, "batch_size": 0, "learning_rate": 0.0002},
    }
    (folder / "coordinator.yaml").write_text(yaml.safe_dump(coordinator))
    with np.load(HOUSING) as file:
        x, y = file["x"], file["y"]
    for number in range(agents):
        own = folder / f"pi-{number}"
        own.mkdir(exist_ok=True)
        np.savez(own / "rows.npz", x=x[number:1000:agents], y=y[number:1000:agents])
        agent = {
            "federation": "f",
            "agent_id": f"pi-{number}",
            "broker": at,
            "data": {
                "path": "rows.npz",
                "inputs": {"features": {"array": "x"}},
                "target": {"array": "y", "scale": 1e-5},
                "test_fraction": 0.2,
            },
        }
        (own / "agent.yaml").write_text(yaml.safe_dump(agent))


def read_records(lines: Any, count: int) -> list[dict[str, Any]]:
    """The next round records that a coordinator prints."""
    records: list[dict[str, Any]] = []
    for line in lines:
        event = json.loads(line)
        if event["event"] == "round":
            records.append(event["record"])
        if len(records) == count:
            break
    return records


def test_a_coordinator_that_was_killed_goes_on_with_the_next_round(
    tmp_path: Path, broker: LocalBroker
) -> None:
    write_federation(tmp_path, broker, agents=2, rounds=6)
    config = tmp_path / "coordinator.yaml"
    run = ("coordinator", "run", "--config", config, "--json")
    agents = [("agent", "run", "--config", tmp_path / f"pi-{n}" / "agent.yaml") for n in range(2)]
    with process(*agents[0]), process(*agents[1]):
        with process(*run) as first:
            records = read_records(first.stdout, 2)
            first.kill()
            assert first.stdout is not None
            records += read_records(first.stdout, 6)
        with process(*run) as second:
            again = read_records(second.stdout, 6)
            assert ended(second) == 0
    assert 2 <= len(records) < 6, "the first coordinator ran its rounds until it was killed"
    assert again, "the second one went on"
    ids = [record["round_id"] for record in records + again]
    # The kill may fall between the commit of a round and the line that tells of it.
    assert ids in ([1, 2, 3, 4, 5, 6], [n for n in range(1, 7) if n != len(records) + 1])
    assert again[-1]["version"] == 6
    values = [record["loss"] for record in records + again]
    assert values == sorted(values, reverse=True)
    assert (tmp_path / "state" / "model" / "initial.npy").is_file()
    with process("coordinator", "status", "--config", config, "--json") as status:
        document = json.loads(status.communicate(timeout=20)[0])
    assert [r["round_id"] for r in document["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert document["finished"] == "rounds"


def test_a_broker_that_crashes_and_forgets_everything_costs_no_round(
    tmp_path: Path, broker: LocalBroker, listener: Listener
) -> None:
    out, path = tmp_path / "out", scenario(tmp_path, **SLOW)
    run = ("fleet", "run", path, "--agents", "3", "--rounds", "3", "--out", out)
    with process(*run, "--broker", address(broker)) as child:
        eventually("round 2 begins", lambda: listener.plan(2))
        broker.kill()
        broker.start()
        assert ended(child) == 0
    report = json.loads((out / "report.json").read_text())
    committed = [r for r in report["rounds"] if r["status"] == "committed"]
    assert [(r["asked"], r["reported"]) for r in committed] == [(3, 3), (3, 3), (3, 3)]
    assert losses(report) == sorted(losses(report), reverse=True)
    assert report["final"]["version"] == 3
