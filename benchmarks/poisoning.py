"""Accuracy of the wearable model with one attacker of eight, at the default settings.

    python benchmarks/poisoning.py [--seeds 5] [--rounds 30] [--attacks NAME ...] [--json] [--save]

The federation of examples/wearable_activity.yaml runs in virtual time, with real machines, codec
and messages; one agent of the eight that train is hostile from the first round on. It trains, and
sends something else. `honest` is the same federation with nobody hostile.
The accuracy is that of the last round over all held-out rows, and over those of people who never
train. Beside it what the coordinator did about it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import msgspec
import numpy as np
from measure import Report, budget, finish, option_parser

from broker.protocol.seeds import codec_seed
from edge_agent.data.columns import NOT_ALLOWED, StatisticsConfig
from edge_agent.data.dataset import LocalDataset
from edge_agent.machine.events import (
    JobDone,
    JobFailed,
    LoadPackage,
    PackageFailed,
    PackageLoaded,
    StartJob,
)
from edge_agent.machine.pending_update import LocalUpdate
from fleet.virtual.simulate import SimulationOptions, make_setting
from fleet.virtual.simulated_worker import SimulatedWorker
from fleet.virtual.simulation import Simulation
from learning.codecs.registry import CODECS
from learning.vector.parameters import F32

SCENARIO = Path(__file__).parents[1] / "examples" / "wearable_activity.yaml"
#: Points of accuracy that an attack may cost.
MOST_LOST = 2.0
#: An honest-sized update in the wrong direction is what robust aggregators are for; with a lie
#: about its rows, told from its birth on, it has a third of the weight.
UNBOUNDED = ("sign flip", "both, sign flip")
#: The status says so, too.
BORN_SO = ("1e9 rows, born so", "both, sign flip")
ROWS = 10**9

Attack = Callable[[F32, np.random.Generator], F32]


def one_coordinate(delta: F32, rng: np.random.Generator) -> F32:
    del rng
    found = delta.copy()
    found[0] = 1e30
    return found


def noise(delta: F32, rng: np.random.Generator) -> F32:
    scale = 5 * np.linalg.norm(delta) / np.sqrt(delta.size)
    return rng.normal(0, scale, delta.size).astype(np.float32)


ATTACKS: dict[str, Attack] = {
    "honest": lambda delta, _: delta,
    "x100": lambda delta, _: 100 * delta,
    "sign flip": lambda delta, _: -delta,
    "sign flip x7": lambda delta, _: -7 * delta,
    "constant": lambda delta, _: np.full_like(delta, 0.5),
    "one coordinate 1e30": one_coordinate,
    "1e9 rows": lambda delta, _: -delta,
    "1e9 rows, born so": lambda delta, _: delta,
    "both, sign flip": lambda delta, _: -delta,
    "noise": noise,
    "NaN": lambda delta, _: delta,
}


class HostileWorker(SimulatedWorker):
    """Runs all jobs; changes what one agent makes of its own."""

    def __init__(self, attack: str, attacker: str, dataset: LocalDataset) -> None:
        super().__init__()
        self._attack = attack
        self._attacker = attacker
        self._dataset = dataset

    def load(self, job: LoadPackage, dataset: LocalDataset) -> PackageLoaded | PackageFailed:
        loaded = super().load(job, dataset)
        if (
            isinstance(loaded, PackageLoaded)
            and dataset is self._dataset
            and self._attack in BORN_SO
        ):
            return replace(loaded, train_examples=ROWS, train_weight=float(ROWS))
        return loaded

    def work(
        self,
        job: StartJob,
        agent_id: str,
        dataset: LocalDataset,
        seconds: float,
        statistics: StatisticsConfig = NOT_ALLOWED,
    ) -> JobDone | JobFailed:
        done = super().work(job, agent_id, dataset, seconds, statistics)
        if agent_id != self._attacker or not isinstance(done, JobDone):
            return done
        if not isinstance(done.result, LocalUpdate):
            return done
        return replace(done, result=self._changed(done.result, job))

    def _changed(self, update: LocalUpdate, job: StartJob) -> LocalUpdate:
        plan, codec = job.plan, CODECS.make(job.plan.codec)
        seed = codec_seed(plan.seed, self._attacker)
        rng = np.random.default_rng(plan.round_id)
        delta = codec.decode(update.body, update.vectors["delta"].size, seed)
        body = codec.encode(ATTACKS[self._attack](delta, rng), seed, rng)
        if self._attack == "NaN":
            body = np.float32(np.nan).tobytes() + body[4:]  # the first scale
        claims = self._attack in ("1e9 rows", *BORN_SO)
        rows = ROWS if claims else update.num_examples
        return replace(update, body=body, num_examples=rows)


def run(attack: str, rounds: int, seed: int) -> Report:
    """Accuracies of the last round, and what happened to the attacker."""
    _, participants, setting = make_setting(
        SCENARIO, SimulationOptions(Path(), {"federation.rounds": rounds})
    )
    attacker = sorted(name for name in participants.rows if "train" in participants.phases(name))[0]
    dataset = next(d.dataset for d in setting.devices if d.agent_id == attacker)
    assert dataset is not None
    worker = HostileWorker(attack, attacker, dataset)
    config = msgspec.structs.replace(setting.config, seed=seed)
    simulation = Simulation(replace(setting, config=config, worker=worker, seed=seed))
    simulation.run()
    last = simulation.coordinator.records[-1]
    standing = simulation.coordinator.coordinator.progress.standings.get(attacker)
    return {
        "accuracy": 100 * last.metrics["accuracy"],
        "unseen": 100 * last.metrics["unseen_accuracy"],
        "refused": {} if standing is None else dict(standing.refusals),
        "quarantines": 0 if standing is None else standing.quarantines,
        "shortened": sum(attacker in r.clipped for r in simulation.coordinator.records),
        "held_back": sum(bool(r.held_back) for r in simulation.coordinator.records),
    }


def measure(options: argparse.Namespace) -> Report:
    rows: dict[str, Report] = {}
    for attack in options.attacks or ATTACKS:
        runs = [run(attack, options.rounds, seed) for seed in range(options.seeds)]
        row: Report = {"runs": runs}
        for figure in ("accuracy", "unseen"):
            values = [found[figure] for found in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            row[figure] = {"mean": mean(values), "sd": spread}
        rows[attack] = row
    honest = rows.get("honest", {}).get("accuracy", {}).get("mean", 0.0)
    return {
        "scenario": SCENARIO.name,
        "rounds": options.rounds,
        "seeds": options.seeds,
        "attacks": rows,
        "budgets": [
            budget(honest - row["accuracy"]["mean"], MOST_LOST, f"{name}: points lost")
            for name, row in rows.items()
            if name not in ("honest", *UNBOUNDED)
        ],
    }


def show(report: Report) -> None:
    print(
        f"{report['scenario']}, {report['rounds']} rounds, {report['seeds']} seeds; accuracy, %\n"
    )
    print(f"{'':22s}{'held out':>14s}{'unseen':>14s}  the attacker (first seed)")
    for name, row in report["attacks"].items():
        shown = [f"{row[key]['mean']:.1f} ± {row[key]['sd']:.1f}" for key in ("accuracy", "unseen")]
        first = row["runs"][0]
        told = [f"{count} refused ({reason})" for reason, count in first["refused"].items()]
        told += [f"{first['quarantines']} quarantines"] if first["quarantines"] else []
        told += [f"{first['shortened']} shortened"] if first["shortened"] else []
        told += [f"{first['held_back']} held back"] if first["held_back"] else []
        print(f"{name:22s}{shown[0]:>14s}{shown[1]:>14s}  {', '.join(told)}")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--attacks", nargs="*", choices=list(ATTACKS))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    finish("poisoning", measure(options), options, show)


if __name__ == "__main__":
    main()
