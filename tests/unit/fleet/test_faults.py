"""Fault plans and device profiles: their files, and the route of packets under a plan."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from random import Random
from typing import Any

import pytest

from broker.memory.broker import Packet
from fedge.errors import ConfigError
from fedge.yaml_config import load_config
from fleet.virtual.fault_hits import fault_hits, hit_document, hit_lines
from fleet.virtual.faults import (
    BrokerRestart,
    ClockSkew,
    Crash,
    Delay,
    FaultPlan,
    Partition,
    RandomCrashes,
    SlowLink,
    concerns,
)
from fleet.virtual.profiles import DeviceProfile, Profiles, load_profiles
from fleet.virtual.route import FaultyRoute
from fleet.virtual.scenario_generator import draw_agents, draw_faults
from fleet.virtual.simulation import skew_of
from fleet.virtual.sweep import plan_text, without_one
from learning.algorithms.training import TrainingPlan

EVERYTHING = """
until_s: 300
delay: {kind: lognormal, seconds: 0.05, spread: 0.8}
reorder: 0.05
duplicate: 0.05
cut: 0.02
drop: 0.02
max_queued_messages: 100
max_payload_bytes: 131072
partitions: [{who: [pi-1, "site-*"], from_s: 10, to_s: 20}]
slow_links: [{who: ["agent:*"], bytes_per_s: 5000}]
broker_restarts: [{at_s: 65, down_s: 3, lose: all}]
crashes: [{who: [coordinator], at_s: 61, after_actions: 1, down_s: 4}]
random_crashes: [{mean_s: 60, down_s: 5}]
clock_skews: [{who: [pi-1], offset_s: 3600, rate: 1.01}]
"""


def load(tmp_path: Path, text: str) -> FaultPlan:
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    return load_config(path, FaultPlan)


def packet(client_id: str = "c-pi-1", size: int = 100, *, upward: bool = True) -> Packet:
    return Packet(client_id, upward, "t", size)


def route(seed: int = 0, **plan: Any) -> FaultyRoute:
    names = {"c-pi-1": "pi-1", "c-pi-2": "pi-2", "c-coordinator": "coordinator"}
    return FaultyRoute(FaultPlan(**plan), seed, names)


def test_a_plan_may_hold_every_fault(tmp_path: Path) -> None:
    plan = load(tmp_path, EVERYTHING)
    assert plan.crashes == (Crash(who=("coordinator",), at_s=61.0, after_actions=1, down_s=4.0),)
    assert plan.broker_restarts == (BrokerRestart(at_s=65.0, down_s=3.0, lose="all"),)
    assert plan.random_crashes == (RandomCrashes(who=("*",), mean_s=60.0, down_s=5.0),)
    assert plan.calm_s == 300.0
    assert load(tmp_path, plan_text(plan)) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cutt: 0.1", "cutt"),
        ("cut: 0.9", "cut"),
        ("delay: {kind: uniform, seconds: 1, spread: 2}", "spread 2 is larger than seconds 1"),
        ("delay: {kind: lognormal, spread: 9}", "spread 9 of a logarithm"),
        ("partitions: [{from_s: 5, to_s: 5}]", "to_s 5 is not after from_s 5"),
        ("broker_restarts: [{at_s: 1, lose: some}]", "lose"),
        ("crashes: [{who: [], at_s: 1}]", "who"),
        ("max_payload_bytes: 100", "max_payload_bytes"),
    ],
)
def test_invalid_plan_is_rejected_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "faults.yaml"))


def test_calm_begins_after_the_last_fault() -> None:
    assert FaultPlan().calm_s == 0.0
    assert FaultPlan(partitions=(Partition(from_s=1, to_s=9),)).calm_s == 9.0
    assert FaultPlan(crashes=(Crash(who=("*",), at_s=4, down_s=6),)).calm_s == 10.0
    assert FaultPlan(cut=0.1, until_s=50).calm_s == 50.0


@pytest.mark.parametrize(
    ("who", "agents", "coordinator"),
    [
        (("*",), ["pi-1", "site-1"], True),
        (("agent:*",), ["pi-1", "site-1"], False),
        (("coordinator",), [], True),
        (("site-*", "none"), ["site-1"], False),
    ],
)
def test_patterns_match_processes(
    who: tuple[str, ...], agents: list[str], coordinator: bool
) -> None:
    assert [name for name in ("pi-1", "site-1") if concerns(who, name)] == agents
    assert concerns(who, "coordinator") == coordinator


@pytest.mark.parametrize(
    ("delay", "median"),
    [
        (Delay(seconds=0.2), 0.2),
        (Delay(kind="uniform", seconds=0.2, spread=0.1), 0.2),
        (Delay(kind="exponential", seconds=0.2), 0.2 * math.log(2)),
        (Delay(kind="lognormal", seconds=0.2, spread=0.5), 0.2),
    ],
)
def test_delays_are_distributed_as_named(delay: Delay, median: float) -> None:
    rng = Random(1)
    drawn = [delay.draw(rng) for _ in range(4000)]
    assert min(drawn) >= 0
    assert statistics.median(drawn) == pytest.approx(median, rel=0.08)


def test_packets_of_one_direction_keep_their_order() -> None:
    way = route(delay=Delay(kind="exponential", seconds=1.0))
    arrivals = [now + way.delays(now, packet())[0] for now in (0.1 * n for n in range(200))]
    assert arrivals == sorted(arrivals)


def test_packets_are_reordered_duplicated_and_cut() -> None:
    plan: dict[str, Any] = {"delay": Delay(kind="exponential", seconds=1.0), "until_s": 100.0}
    way = route(reorder=0.5, duplicate=0.2, cut=0.1, **plan)
    found = [(0.01 * n, way.delays(0.01 * n, packet())) for n in range(5000)]
    copies = [len(delays) for _, delays in found]
    assert copies.count(0) / 5000 == pytest.approx(0.1, abs=0.02)
    assert copies.count(2) / 5000 == pytest.approx(0.18, abs=0.03)
    arrivals = [now + delays[0] for now, delays in found if delays]
    assert arrivals != sorted(arrivals)
    assert len(way.delays(100.0, packet())) == 1  # calm from until_s on


def test_a_slow_link_lets_packets_wait_for_those_before_them() -> None:
    slow = (SlowLink(who=("pi-1",), bytes_per_s=100),)
    way = route(delay=Delay(seconds=0.0), slow_links=slow)
    assert [way.delays(0.0, packet(size=200))[0] for _ in range(3)] == [2.0, 4.0, 6.0]
    assert way.delays(0.0, packet("c-pi-2", 200))[0] == 0.0
    assert way.delays(0.0, packet(size=200, upward=False))[0] == 2.0
    assert way.connect_s(5.0, "c-pi-1") == 0.0  # what was under way is gone with the connection
    assert way.delays(5.0, packet(size=200))[0] == 2.0


def test_a_partition_disconnects_its_processes() -> None:
    way = route(partitions=(Partition(who=("pi-1",), from_s=10, to_s=20),))
    assert [way.connect_s(t, "c-pi-1") is None for t in (9.9, 10.0, 19.9, 20.0)] == [
        False,
        True,
        True,
        False,
    ]
    assert way.delays(15.0, packet()) == ()
    assert way.connect_s(15.0, "c-pi-2") is not None


def test_nobody_connects_to_a_broker_that_is_down() -> None:
    way = route()
    way.broker_down(7.0)
    assert way.connect_s(6.9, "c-pi-1") is None
    assert way.connect_s(7.0, "c-pi-1") is not None


def test_messages_are_dropped_as_often_as_the_plan_says() -> None:
    way = route(drop=0.25, until_s=10.0)
    assert sum(way.admits(1.0) for _ in range(4000)) / 4000 == pytest.approx(0.75, abs=0.03)
    assert all(way.admits(10.0) for _ in range(100))


def test_the_same_seed_draws_the_same() -> None:
    plan: dict[str, Any] = {"delay": Delay(kind="lognormal", spread=1.0), "cut": 0.1}
    draws = [
        [route(seed, **plan).delays(0.1 * n, packet()) for n in range(50)] for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert draw_faults(5, draw_agents(5)) == draw_faults(5, draw_agents(5))


def test_a_plan_is_shrunk_by_one_fault_at_a_time(tmp_path: Path) -> None:
    plan = load(tmp_path, EVERYTHING)
    smaller = list(without_one(plan))
    assert len(smaller) == 13  # until_s is no fault
    assert all(candidate != plan for candidate in smaller)
    two = FaultPlan(crashes=(Crash(who=("a",), at_s=1), Crash(who=("b",), at_s=2)))
    assert [candidate.crashes for candidate in without_one(two)] == [
        two.crashes[1:],
        two.crashes[:1],
    ]
    assert list(without_one(FaultPlan())) == []


def test_the_first_matching_skew_applies_to_an_agent() -> None:
    plan = FaultPlan(clock_skews=(ClockSkew(who=("pi-1",), offset_s=5), ClockSkew(rate=1.1)))
    assert skew_of(plan, "pi-1").offset_s == 5
    assert skew_of(plan, "pi-2").rate == 1.1
    assert skew_of(FaultPlan(), "pi-1") == ClockSkew()


# -- device profiles ------------------------------------------------------------------------------


def test_three_profiles_ship() -> None:
    profiles = load_profiles()
    assert set(profiles.profiles) == {"pi-zero-2", "pi-4", "phone-on-charger"}
    assert sum(profile.share for profile in profiles.profiles.values()) == pytest.approx(1.0)


def test_profiles_are_assigned_by_their_shares() -> None:
    names = [f"a{n}" for n in range(10)]
    profiles = load_profiles()
    dealt = profiles.assign(names, seed=1)
    kinds = {id(profile): name for name, profile in profiles.profiles.items()}
    counts = [[kinds[id(p)] for p in dealt.values()].count(name) for name in profiles.profiles]
    assert counts == [5, 3, 2]
    assert list(dealt) == names
    assert profiles.assign(names, seed=1) == dealt
    assert profiles.assign(names, seed=2) != dealt
    alike = Profiles(profiles={"device": DeviceProfile()})
    assert set(alike.assign(names, 0).values()) == {DeviceProfile()}


def test_training_takes_as_long_as_its_steps() -> None:
    profile = DeviceProfile(seconds_per_step=0.5)
    assert profile.training_s(100, TrainingPlan(epochs=2, batch_size=32)) == 0.5 * 8
    assert profile.training_s(100, TrainingPlan(epochs=3, batch_size=0)) == 0.5 * 3
    assert profile.training_s(100, TrainingPlan(epochs=9, batch_size=10, max_steps=4)) == 0.5 * 4
    assert profile.evaluation_s(100, 10) == pytest.approx(0.5 * 10 / 3)


def test_a_device_is_available_at_its_hours() -> None:
    night = DeviceProfile(available=((22, 6),))
    assert [night.is_available(3600 * hour) for hour in (21, 22, 3, 6, 30)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert night.next_change_s(3600 * 21) == pytest.approx(3600, abs=0.01)
    assert night.next_change_s(3600 * 23) == pytest.approx(3600 * 7, abs=0.01)
    assert DeviceProfile().next_change_s(0) is None
    assert DeviceProfile().is_available(1e6)


def test_invalid_hour_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("profiles: {a: {available: [[1, 25]]}}")
    with pytest.raises(ConfigError, match=r"profiles\.a\.available"):
        load_profiles(path)
    path.write_text("profiles: {}")
    with pytest.raises(ConfigError, match="profiles"):
        load_config(path, Profiles)


def test_the_manual_has_a_row_for_every_key() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "simulation.md").read_text()
    rows = {line.split("`")[1] for line in manual.splitlines() if line.startswith("| `")}
    for keys in (FaultPlan, Profiles, DeviceProfile):
        assert set(keys.__struct_fields__) <= rows
    for part in (Partition, SlowLink, BrokerRestart, Crash, RandomCrashes, ClockSkew, Delay):
        for key in part.__struct_fields__:
            assert f"`{key}`" in manual, f"{part.__name__}.{key}"


def test_the_plan_in_the_manual_is_valid(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[3] / "docs" / "simulation.md").read_text()
    text = manual.split("```yaml\n")[1].split("```")[0]
    assert load(tmp_path, text).broker_restarts[0].lose == "all"


def test_each_rule_tells_which_agents_it_concerns(tmp_path: Path) -> None:
    agents = ["pi-1", "pi-2", *(f"site-{n}" for n in range(30))]
    hits = fault_hits(load(tmp_path, EVERYTHING), agents)
    assert [hit.rule for hit in hits] == [
        *("delay", "reorder", "duplicate", "cut", "drop", "max_queued_messages"),
        *("broker_restarts[0]", "partitions[0]", "slow_links[0]", "crashes[0]"),
        *("random_crashes[0]", "clock_skews[0]"),
    ]
    of = {hit.rule: hit for hit in hits}
    assert of["cut"].whom.startswith("the coordinator and 32 agents (pi-1, pi-2, site-0, ")
    assert of["partitions[0]"].whom == "31 agents (pi-1, site-0, site-1, site-2, site-3, …)"
    assert of["crashes[0]"].whom == "the coordinator"
    assert hit_lines(hits)[-1] == "faults: clock_skews[0]: 1 agent (pi-1)"
    assert hit_lines(hits)[0].startswith(
        "faults: delay, reorder, duplicate, cut, drop, max_queued_messages, broker_restarts[0]: the"
    )
    assert (of["slow_links[0]"].agents, of["slow_links[0]"].coordinator) == (32, False)
    document = hit_document(hits)
    assert document["clock_skews[0]"] == {"agents": 1, "names": ["pi-1"], "coordinator": False}
    assert len(document["partitions[0]"]["names"]) == 20


def test_a_pattern_that_matches_nobody_is_told(tmp_path: Path) -> None:
    plan = load(tmp_path, 'crashes: [{who: ["house-*"], at_s: 3}]')
    assert hit_lines(fault_hits(plan, ["pi-1"])) == ["faults: crashes[0]: no agent"]
    assert fault_hits(FaultPlan(), ["pi-1"]) == []


def test_lines_about_faults_are_few_whatever_the_plan() -> None:
    crashes = tuple(Crash(who=(f"agent:pi-{n}",), at_s=1.0) for n in range(2000))
    hits = fault_hits(FaultPlan(crashes=crashes), [f"pi-{n}" for n in range(2000)])
    lines = hit_lines(hits)
    assert (len(hits), len(lines)) == (1000, 11)
    assert lines[9:] == [
        "faults: crashes[9]: 1 agent (pi-9)",
        "faults: 990 more rules: see report.json",
    ]
    restarts = fault_hits(FaultPlan(broker_restarts=(BrokerRestart(at_s=1.0),) * 50), ["pi-0"])
    (line,) = hit_lines(restarts)
    assert line.endswith("broker_restarts[7], 42 more: the coordinator and 1 agent (pi-0)")
