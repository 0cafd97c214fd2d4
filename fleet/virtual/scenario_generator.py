"""Generator of small random federations and fault plans from a seed, for sweeps."""

from __future__ import annotations

from random import Random
from typing import Any, Literal

import numpy as np

from coordinator.config import (
    CohortConfig,
    CoordinatorConfig,
    EvaluationConfig,
    RoundConfig,
    StartConfig,
)
from edge_agent.data.dataset import LocalDataset
from fleet.virtual.event_trace import Observer
from fleet.virtual.faults import (
    COORDINATOR,
    BrokerRestart,
    ClockSkew,
    Crash,
    Delay,
    FaultPlan,
    Partition,
    RandomCrashes,
    SlowLink,
)
from fleet.virtual.profiles import DeviceProfile
from fleet.virtual.simulated_worker import SimulatedWorker
from fleet.virtual.simulation import Setting, make_device
from learning.algorithms.training import TrainingPlan
from models.package.package import ModelPackage

#: Random faults end after this many virtual seconds: the federation must recover.
_UNTIL_S = 120.0
_FEDERATION = "sweep"
_SLOPE = (0.8, -0.3)


def draw_agents(seed: int) -> list[str]:
    """Returns the names of 2 to 6 agents."""
    return [f"pi-{n}" for n in range(Random(f"{seed}/agents").randint(2, 6))]  # noqa: S311


def draw_config(seed: int, agents: int) -> CoordinatorConfig:
    """Returns the configuration of 2 to 5 rounds with the smallest model."""
    rng = Random(f"{seed}/config")  # noqa: S311
    algorithm = rng.choice(("fedavg", "fedavgm", "fedadam", "scaffold"))
    robust = () if algorithm == "scaffold" else ("median", "trimmed_mean")
    announce: Literal["ids", "rule"] = rng.choice(("ids", "ids", "rule"))
    return CoordinatorConfig(
        federation=_FEDERATION,
        model="house_price",
        rounds=rng.randint(2, 5),
        cohort=CohortConfig(
            fraction=rng.choice((0.5, 1.0)),
            over_select=rng.choice((1.0, 1.5)),
            announce=announce,
        ),
        round=RoundConfig(
            # The slowest device trains 20 s: often too late, but never in every round.
            deadline_s=rng.uniform(25.0, 90.0),
            minimum=rng.randint(1, max(1, agents // 2)),
            fetch_jitter_s=rng.choice((0.0, 2.0)),
        ),
        start=StartConfig(agents=agents, timeout_s=30.0),
        evaluation=EvaluationConfig(every=rng.choice((0, 1, 1, 2)), deadline_s=20.0),
        training=TrainingPlan(epochs=rng.randint(1, 2), batch_size=16, learning_rate=0.05),
        codec=rng.choice(("float32", "float16", "int8")),
        algorithm=algorithm,
        aggregator=rng.choice(("mean", "mean", "mean", *robust)),
        max_staleness=rng.choice((0, 0, 1, 3)),
        weighting=rng.choice(("examples", "agents")),
        keep_versions=rng.choice((1, 3, 0)),
        seed=seed % (1 << 31),
    )


def draw_dataset(seed: int, number: int) -> LocalDataset:
    """Returns 10 to 40 noisy rows of one linear function; a third is held out."""
    rng = np.random.default_rng([seed, number, 9])
    rows = int(rng.integers(10, 41))
    x = rng.normal(size=(rows, 2)).astype(np.float32)
    y = (x @ np.array(_SLOPE) + 2.0 + 0.1 * rng.normal(size=rows)).astype(np.float32)
    cut = rows - rows // 3
    return LocalDataset(
        {"features": x, "target": y}, np.arange(cut), np.arange(cut, rows), np.arange(rows), {}
    )


def draw_profile(seed: int, number: int) -> DeviceProfile:
    """Returns a profile: from a fast device to one that needs half a minute for a round."""
    rng = Random(f"{seed}/{number}/profile")  # noqa: S311
    return DeviceProfile(
        seconds_per_step=rng.choice((0.001, 0.1, 1.0, 5.0)), load_s=rng.choice((0.1, 2.0))
    )


def draw_faults(seed: int, agents: list[str]) -> FaultPlan:
    """Returns a fault plan with two or three kinds of faults, rarely all of them."""
    rng = Random(f"{seed}/plan")  # noqa: S311
    everyone = [COORDINATOR, *agents]

    def maybe(share: float, value: Any, otherwise: Any) -> Any:
        return value() if rng.random() < share else otherwise

    def some(share: float, value: Any, most: int = 2) -> tuple[Any, ...]:
        return tuple(value() for _ in range(rng.randint(1, most))) if rng.random() < share else ()

    return FaultPlan(
        until_s=_UNTIL_S,
        delay=_draw_delay(rng),
        reorder=maybe(0.3, lambda: rng.uniform(0.01, 0.3), 0.0),
        duplicate=maybe(0.3, lambda: rng.uniform(0.01, 0.3), 0.0),
        cut=maybe(0.3, lambda: rng.uniform(0.005, 0.1), 0.0),
        drop=maybe(0.3, lambda: rng.uniform(0.01, 0.2), 0.0),
        max_queued_messages=maybe(0.15, lambda: rng.randint(2, 30), None),
        max_payload_bytes=maybe(0.4, lambda: 4096, 1 << 20),
        partitions=some(0.25, lambda: _draw_partition(rng, everyone)),
        slow_links=some(0.2, lambda: _draw_slow_link(rng, everyone)),
        broker_restarts=some(0.3, lambda: _draw_restart(rng)),
        crashes=some(0.4, lambda: _draw_crash(rng, everyone), 3),
        random_crashes=some(0.2, lambda: _draw_random_crashes(rng, everyone), 1),
        clock_skews=some(0.2, lambda: _draw_skew(rng, agents)),
    )


def _draw_delay(rng: Random) -> Delay:
    kind: Literal["constant", "uniform", "exponential", "lognormal"]
    kind = rng.choice(("constant", "uniform", "exponential", "lognormal"))
    seconds = 10 ** rng.uniform(-3, 0.3)
    return Delay(kind=kind, seconds=seconds, spread=seconds if kind == "uniform" else 1.0)


def _draw_partition(rng: Random, everyone: list[str]) -> Partition:
    begins = rng.uniform(0.0, 60.0)
    return Partition(
        who=(rng.choice(everyone),), from_s=begins, to_s=begins + rng.uniform(0.5, 60.0)
    )


def _draw_slow_link(rng: Random, everyone: list[str]) -> SlowLink:
    return SlowLink(who=(rng.choice(everyone),), bytes_per_s=10 ** rng.uniform(2.5, 5))


def _draw_restart(rng: Random) -> BrokerRestart:
    lose: Literal["none", "queued", "retained", "all"]
    lose = rng.choice(("none", "queued", "retained", "all"))
    return BrokerRestart(at_s=rng.uniform(0.0, 60.0), down_s=rng.uniform(0.1, 20.0), lose=lose)


def _draw_crash(rng: Random, everyone: list[str]) -> Crash:
    return Crash(
        who=(rng.choice(everyone),),
        at_s=rng.uniform(0.0, 60.0),
        after_actions=rng.randrange(5),
        down_s=rng.uniform(0.0, 30.0),
    )


def _draw_random_crashes(rng: Random, everyone: list[str]) -> RandomCrashes:
    who = rng.choice((("*",), ("agent:*",), (rng.choice(everyone),)))
    return RandomCrashes(who=who, mean_s=rng.uniform(10.0, 60.0), down_s=rng.uniform(0.1, 10.0))


def _draw_skew(rng: Random, agents: list[str]) -> ClockSkew:
    return ClockSkew(
        who=(rng.choice(agents),),
        offset_s=rng.uniform(-1000.0, 1000.0),
        rate=rng.choice((0.9, 0.999, 1.001, 1.2)),
    )


def draw_setting(
    seed: int,
    package: ModelPackage,
    faults: FaultPlan | None,
    worker: SimulatedWorker,
    observers: list[Observer],
) -> Setting:
    """Returns the setting of one seed; `faults` replaces the random plan."""
    agents = draw_agents(seed)
    plan = faults or draw_faults(seed, agents)
    devices = [
        make_device(
            name,
            _FEDERATION,
            draw_profile(seed, number),
            plan,
            dataset=draw_dataset(seed, number),
            heartbeat_s=20.0,
        )
        for number, name in enumerate(agents)
    ]
    config = draw_config(seed, len(agents))
    return Setting(config, package, devices, seed, plan, observers=observers, worker=worker)
