"""Whole federations in virtual time: repeatable to the byte, and right whatever goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.config import CoordinatorConfig, EvaluationConfig, RoundConfig, StartConfig
from coordinator.machine.events import Commit
from fedge.errors import FleetError
from fleet.cli.main import cli
from fleet.virtual.event_trace import BrokerKilled, Ended, Entry, Handled, Sent
from fleet.virtual.faults import (
    COORDINATOR,
    BrokerRestart,
    Crash,
    Delay,
    FaultPlan,
    Partition,
    RandomCrashes,
)
from fleet.virtual.invariants import Invariants, InvariantViolated
from fleet.virtual.profiles import DeviceProfile
from fleet.virtual.scenario_generator import draw_dataset
from fleet.virtual.shells import Shell
from fleet.virtual.simulated_worker import SimulatedWorker
from fleet.virtual.simulation import Setting, Simulation, make_device
from fleet.virtual.sweep import plan_of, shrink, sweep, try_seed
from models.zoo import load_zoo

SCENARIO = Path(__file__).parents[2] / "examples" / "house_price.yaml"
PACKAGE = load_zoo("house_price")
WORKER = SimulatedWorker()
TROUBLE = """
until_s: 200
delay: {kind: lognormal, seconds: 0.05, spread: 0.8}
reorder: 0.05
duplicate: 0.05
cut: 0.02
drop: 0.02
broker_restarts: [{at_s: 65, down_s: 3, lose: all}]
crashes: [{who: [coordinator], at_s: 61, after_actions: 1, down_s: 4}]
random_crashes: [{mean_s: 60, down_s: 5}]
"""


class Played:
    """A federation of four agents, its history, and what came of it."""

    def __init__(self, faults: FaultPlan | None = None, **changes: Any) -> None:
        facts: dict[str, Any] = {
            "federation": "f",
            "model": "house_price",
            "rounds": 4,
            "start": StartConfig(agents=4),
            "round": RoundConfig(deadline_s=120.0),
            "evaluation": EvaluationConfig(deadline_s=20.0),
        }
        config = CoordinatorConfig(**(facts | changes))
        plan = faults or FaultPlan()
        devices = [
            make_device(
                f"pi-{n}",
                "f",
                DeviceProfile(seconds_per_step=0.5 * (n + 1)),
                plan,
                dataset=draw_dataset(1, n),
                heartbeat_s=20.0,
            )
            for n in range(4)
        ]
        self.history: list[Entry] = []
        invariants = Invariants(config, PACKAGE)
        self.simulation = Simulation(
            Setting(
                config,
                PACKAGE,
                devices,
                faults=plan,
                observers=[self.history.append, invariants],
                worker=WORKER,
            )
        )
        invariants.watch(self.simulation)
        self.reason = self.simulation.run(settle_s=120.0)
        invariants.check_quiescence(self.simulation)
        self.progress = self.simulation.coordinator.coordinator.progress
        self.records = self.simulation.coordinator.store.history()

    def ends(self, node: str, how: str) -> int:
        """How often a process ended so."""
        return sum(isinstance(e, Ended) and (e.node, e.how) == (node, how) for e in self.history)

    def counted(self) -> dict[int, list[str]]:
        """Agents whose updates made a version, by round, in the order in which they came."""
        found: dict[int, list[str]] = {}
        for entry in self.history:
            for action in entry.actions if isinstance(entry, Handled) else ():
                if isinstance(action, Commit):
                    found[action.record.round_id] = list(action.record.agents)
        return found


@pytest.fixture(scope="module")
def undisturbed() -> Played:
    return Played()


def simulate(folder: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["simulate", str(SCENARIO), "--out", str(folder), *options])
    return result.exit_code, result.output


# -- the command ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_files_byte_for_byte(tmp_path: Path) -> None:
    faults = tmp_path / "faults.yaml"
    faults.write_text(TROUBLE)
    options = ("--faults", str(faults), "--agents", "6", "--rounds", "4")
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        code, output = simulate(tmp_path / name, "--seed", seed, *options)
        assert code == 0, output
    a, b, c = ((tmp_path / name / "trace.jsonl").read_bytes() for name in "abc")
    assert a == b != c
    assert len(a.splitlines()) > 300
    reports = [json.loads((tmp_path / name / "report.json").read_bytes()) for name in "ab"]
    for report in reports:
        del report["run"]["started"], report["run"]["options"]["out"]
    assert reports[0] == reports[1]


def test_the_report_has_the_names_of_a_run_and_the_loss_falls(tmp_path: Path) -> None:
    code, output = simulate(tmp_path, "--seed", "3")
    assert code == 0, output
    assert "virtual seconds in" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seed"] == 3
    assert report["virtual_seconds"] == report["final"]["seconds"] > 0
    assert report["broker"] == "memory"
    assert report["stopped"] == "rounds"
    losses = [entry["loss"] for entry in report["rounds"]]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)
    assert report["baselines"]["least_squares_distance"] < 0.02
    assert (tmp_path / "model" / "initial.npy").is_file() or list((tmp_path / "model").iterdir())


def test_whom_faults_concern_is_told_and_stands_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text('crashes: [{who: ["site-[12]"], at_s: 3}]\ncut: 0.01\nuntil_s: 9')
    code, output = simulate(tmp_path, "--faults", str(path), "--rounds", "2", "--agents", "4")
    assert code == 0, output
    everyone = ["site-0", "site-1", "site-2", "site-3"]
    assert f"faults: cut: the coordinator and 4 agents ({', '.join(everyone)})" in output
    assert "faults: crashes[0]: 2 agents (site-1, site-2)" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["faults"] == {
        "cut": {"agents": 4, "names": everyone, "coordinator": True},
        "crashes[0]": {"agents": 2, "names": ["site-1", "site-2"], "coordinator": False},
    }


@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ("cutt: 1", 2, "cutt"),
        ("partitions: [{who: [coordinator], from_s: 0, to_s: 1e8}]", 4, "did not finish"),
    ],
)
def test_what_cannot_be_simulated_ends_with_its_code(
    tmp_path: Path, faults: str, code: int, words: str
) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(faults)
    found, output = simulate(tmp_path / "out", "--faults", str(path), "--no-trace")
    assert found == code
    assert words in output
    assert not (tmp_path / "out" / "report.json").exists()


# -- power cuts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("after_actions", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("at_s", [0.6, 2.0, 4.5, 6.2])
def test_a_coordinator_that_dies_in_mid_round_reaches_the_same_theta(
    undisturbed: Played, at_s: float, after_actions: int
) -> None:
    crash = Crash(who=(COORDINATOR,), at_s=at_s, after_actions=after_actions, down_s=0.5)
    played = Played(FaultPlan(crashes=(crash,)))
    assert played.ends(COORDINATOR, "crash") == 1
    assert [r.reported for r in played.records] == [4] * 4
    if played.counted() == undisturbed.counted():  # a sum of floats depends on its order
        assert played.progress.theta.tobytes() == undisturbed.progress.theta.tobytes()
    assert played.progress.theta == pytest.approx(undisturbed.progress.theta, abs=1e-6)


def test_the_same_updates_in_the_same_order_make_the_same_bits(undisturbed: Played) -> None:
    crash = Crash(who=(COORDINATOR,), at_s=2.0, after_actions=1, down_s=0.2)
    played = Played(FaultPlan(crashes=(crash,)))
    assert played.ends(COORDINATOR, "crash") == 1
    assert played.counted() == undisturbed.counted()
    assert played.progress.theta.tobytes() == undisturbed.progress.theta.tobytes()


@pytest.mark.parametrize("at_s", [0.3, 1.5, 3.0, 5.0])
def test_an_agent_that_dies_with_its_update_spooled_sends_it_again(at_s: float) -> None:
    crash = Crash(who=("pi-1",), at_s=at_s, after_actions=1, down_s=0.3)
    played = Played(FaultPlan(crashes=(crash,)))
    assert played.ends("pi-1", "crash") == 1
    assert played.reason == "rounds"
    assert played.progress.version == 4
    assert {"pi-1"} <= {name for agents in played.counted().values() for name in agents}


# -- brokers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", ["none", "queued", "retained", "all"])
@pytest.mark.parametrize("at_s", [0.4, 2.1, 5.3])
def test_a_broker_that_forgot_is_repaired(undisturbed: Played, at_s: float, lose: Any) -> None:
    restart = BrokerRestart(at_s=at_s, down_s=1.0, lose=lose)
    played = Played(FaultPlan(broker_restarts=(restart,)))
    assert any(isinstance(entry, BrokerKilled) for entry in played.history)
    assert played.progress.version == undisturbed.progress.version == 4
    assert [r.status for r in played.records] == ["committed"] * 4
    assert played.simulation.now_s < 1000


@pytest.mark.parametrize("at_s", [0.03, 0.2, 0.8, 2.1, 5.3, 7.7])
def test_an_outage_of_hours_costs_its_time_and_nobodys_answer(at_s: float) -> None:
    restart = BrokerRestart(at_s=at_s, down_s=9000.0)
    slow = Delay(kind="constant", seconds=0.01)
    played = Played(
        FaultPlan(delay=slow, until_s=20_000.0, broker_restarts=(restart,)),
        start=StartConfig(agents=4, timeout_s=20_000.0),
        round=RoundConfig(deadline_s=20_000.0),
        evaluation=EvaluationConfig(deadline_s=20_000.0),
    )
    assert [r.reported for r in played.records] == [4] * 4
    sent = [entry for entry in played.history if isinstance(entry, Sent)]
    assert not [entry for entry in sent if at_s + 5 < entry.time_s < at_s + 8990], "while offline"


def test_who_is_cut_off_catches_up() -> None:
    partition = Partition(who=("pi-3",), from_s=1.0, to_s=90.0)
    played = Played(FaultPlan(partitions=(partition,)))
    asked = [record.asked for record in played.records]
    assert asked[0] == 4
    assert min(asked) == 3
    newest = played.simulation.agents["pi-3"].agent.plan
    assert newest is not None
    assert newest.state == "finished"


def test_a_federation_survives_everything_at_once() -> None:
    played = Played(
        FaultPlan(
            until_s=100.0,
            delay=Delay(kind="exponential", seconds=0.3),
            reorder=0.2,
            duplicate=0.2,
            cut=0.05,
            drop=0.05,
            max_payload_bytes=4096,
            broker_restarts=(BrokerRestart(at_s=20.0),),
            random_crashes=(RandomCrashes(mean_s=20.0, down_s=3.0),),
        ),
    )
    assert played.progress.version == 4
    assert sum(isinstance(e, Ended) and e.how == "crash" for e in played.history) > 3


def test_a_device_that_is_never_there_keeps_nobody_waiting_for_ever() -> None:
    partition = Partition(who=("agent:*",), from_s=0.0, to_s=1e8)
    with pytest.raises(FleetError, match="did not finish in"):
        Played(FaultPlan(partitions=(partition,)))


# -- many seeds -----------------------------------------------------------------------------------


def test_eighty_seeds_keep_every_promise() -> None:
    """`fedge fleet sweep --seeds N` tries as many as one has time for."""
    outcomes = list(sweep(range(20_000, 20_080), jobs=1))
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    assert problems == []
    assert sum(outcome.checks for outcome in outcomes) > 20_000


def test_signed_federations_keep_every_promise_too() -> None:
    """What is refused because it is old must not be missed: lost, late, doubled, turned round."""
    outcomes = list(sweep(range(30_000, 30_025), jobs=1, signed=True))
    assert [outcome.problem for outcome in outcomes if outcome.problem] == []
    assert sum(outcome.checks for outcome in outcomes) > 5_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 30),
    cut=st.floats(0, 0.1),
    drop=st.floats(0, 0.2),
    duplicate=st.floats(0, 0.5),
    crashes=st.lists(
        st.builds(
            Crash,
            who=st.tuples(st.sampled_from([COORDINATOR, "pi-0", "pi-1"])),
            at_s=st.floats(0, 60),
            after_actions=st.integers(0, 5),
            down_s=st.floats(0, 20),
        ),
        max_size=4,
    ),
    restarts=st.lists(
        st.builds(
            BrokerRestart,
            at_s=st.floats(0, 60),
            down_s=st.floats(0, 20),
            lose=st.sampled_from(["none", "queued", "retained", "all"]),
        ),
        max_size=2,
    ),
)
def test_no_combination_of_faults_breaks_a_promise(
    seed: int,
    cut: float,
    drop: float,
    duplicate: float,
    crashes: list[Crash],
    restarts: list[BrokerRestart],
) -> None:
    plan = FaultPlan(
        until_s=90.0,
        cut=cut,
        drop=drop,
        duplicate=duplicate,
        crashes=tuple(crashes),
        broker_restarts=tuple(restarts),
    )
    assert try_seed(seed, plan).problem == ""


def test_a_failing_seed_is_told_with_the_faults_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect put in on purpose: after a crash of pi-0 nothing starts again."""

    def starts_once(self: Shell) -> None:
        if self.instance == 0:
            start(self)

    start = Shell.start
    monkeypatch.setattr(Shell, "start", starts_once)
    extra = (Crash(who=("pi-1",), at_s=5.0), Crash(who=(COORDINATOR,), at_s=1.0))
    plan = FaultPlan(until_s=60.0, cut=0.01, duplicate=0.1, crashes=extra)
    assert "did not finish" in try_seed(1, plan).problem
    left = shrink(1, plan)
    assert left == FaultPlan(until_s=60.0, crashes=(extra[1],))
    path = tmp_path / "faults.yaml"
    path.write_text("until_s: 60\ncrashes: [{who: [coordinator], at_s: 1.0}]\nduplicate: 0.1\n")
    arguments = ["sweep", "--seeds", "1", "--start", "1", "--faults", str(path)]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == InvariantViolated.exit_code == 7
    assert "seed 1, fewest faults with which it fails" in result.output
    assert "duplicate" not in (tmp_path / "out" / "seed-1.yaml").read_text()
    assert (tmp_path / "out" / "seed-1.jsonl").stat().st_size > 1000


def test_a_sweep_that_finds_nothing_ends_with_zero(tmp_path: Path) -> None:
    arguments = ["sweep", "--seeds", "4", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "4 seeds" in result.output
    assert not (tmp_path / "out").exists()
    assert plan_of(1) == plan_of(1)
