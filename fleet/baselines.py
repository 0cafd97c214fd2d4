"""What the federated model is compared with: alone, pooled, and the exact solution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from broker.messages import TrainingPlan
from coordinator.config import CoordinatorConfig
from edge_agent.data.dataset import LocalDataset
from edge_agent.trainer import Part, train
from fleet.cast import Cast
from models.errors import ConfigError
from models.package import ModelPackage
from models.parameters import F32, F64
from models.program import Program


@dataclass
class Baselines:
    """Figures by name; see README, "report.json"."""

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)


def measure_baselines(
    cast: Cast,
    config: CoordinatorConfig,
    package: ModelPackage,
    theta: F32,
    progress: Callable[[str, int, int], None],
) -> Baselines:
    """Trains and measures what the scenario asks for, with the agents' own trainer and program.

    Args:
        cast: the agents and their rows.
        config: whose training plan is used, for as many epochs as an agent saw in all.
        package: the model.
        theta: the federated result.
        progress: told (what, done, of) after every model.

    Raises:
        ConfigError: the metric is none of the model's, or least squares do not apply.
    """
    wanted = cast.scenario.baselines
    if wanted.metric != "loss" and wanted.metric not in package.spec.metrics:
        known = ", ".join(("loss", *package.spec.metrics))
        raise ConfigError(f"baselines.metric: {wanted.metric!r} is unknown; known: {known}")
    trial = _Trial(cast, config, package)
    found = Baselines()
    if wanted.own:
        _own(trial, found, progress)
    if wanted.pooled:
        _pooled(trial, found, progress)
    if wanted.least_squares:
        _least_squares(cast, package, theta, found)
    return found


class _Trial:
    """Trains baseline models and measures them on the agents' held-out rows."""

    def __init__(self, cast: Cast, config: CoordinatorConfig, package: ModelPackage) -> None:
        self.metric = cast.scenario.baselines.metric
        self.program = Program(package.program, package.spec)
        self.initial = package.initial
        self.learners = {name: cast.dataset(name) for name in cast.learners}
        self.unseen = [cast.dataset(name).part("test") for name in cast.unseen]
        epochs = cast.scenario.baselines.epochs or config.rounds * config.training.epochs
        self.plan: TrainingPlan = msgspec.structs.replace(config.training, epochs=epochs)
        self.seed = config.seed

    def fit(self, rows: Part, number: int) -> F32:
        rng = np.random.default_rng([self.seed, number, 3])
        return self.initial + train(self.program, self.initial, rows, self.plan, rng).delta

    def score(self, theta: F32, parts: Sequence[Part]) -> float:
        """The metric over all rows of some parts."""
        inputs, target = joined(parts)
        return self.program.evaluate(theta, inputs, target).means()[self.metric]


def joined(parts: Sequence[Part]) -> Part:
    """The rows of several parts as one."""
    names = parts[0][0]
    inputs = {name: np.concatenate([part[0][name] for part in parts]) for name in names}
    return inputs, np.concatenate([target for _, target in parts])


def _own(trial: _Trial, found: Baselines, progress: Callable[[str, int, int], None]) -> None:
    on_own: dict[str, float] = {}
    on_unseen: dict[str, float] = {}
    total = len(trial.learners)
    for number, (name, dataset) in enumerate(trial.learners.items()):
        theta = trial.fit(dataset.part("train"), number)
        if dataset.num_test:
            on_own[name] = trial.score(theta, [dataset.part("test")])
        if trial.unseen:
            on_unseen[name] = trial.score(theta, trial.unseen)
        progress("own", number + 1, total)
    for key, scores in (("own_on_own", on_own), ("own_on_unseen", on_unseen)):
        if scores:
            found.figures[key] = float(np.mean(list(scores.values())))
            found.details[key] = scores


def _pooled(trial: _Trial, found: Baselines, progress: Callable[[str, int, int], None]) -> None:
    theta = trial.fit(joined([data.part("train") for data in trial.learners.values()]), 1_000)
    held_out = [data.part("test") for data in trial.learners.values() if data.num_test]
    if held_out:
        found.figures["pooled_on_own"] = trial.score(theta, held_out)
    if trial.unseen:
        found.figures["pooled_on_unseen"] = trial.score(theta, trial.unseen)
    progress("pooled", 1, 1)


def _least_squares(cast: Cast, package: ModelPackage, theta: F32, found: Baselines) -> None:
    solution = least_squares(package, {name: cast.dataset(name) for name in cast.learners})
    gap = np.abs(theta - solution)
    found.figures["least_squares_distance"] = float(gap.max())
    found.details["least_squares"] = solution.tolist()
    found.details["federated"] = [float(value) for value in theta]


def least_squares(package: ModelPackage, learners: Mapping[str, LocalDataset]) -> F64:
    """θ that minimises the squared error over all training rows, exactly (float64, shape (P,)).

    Raises:
        ConfigError: the model is not one dense unit with squared error.
    """
    spec = package.spec
    inputs, target = joined([data.part("train") for data in learners.values()])
    columns = [array.reshape(len(target), -1) for array in inputs.values()]
    x = np.concatenate([*columns, np.ones((len(target), 1))], axis=1).astype(np.float64)
    if spec.loss != "mean_squared_error" or spec.size != x.shape[1]:
        raise ConfigError(
            f"baselines.least_squares: {spec.name} is no linear regression with squared error "
            f"({spec.size} parameters for {x.shape[1] - 1} features, loss {spec.loss})"
        )
    solution: F64 = np.linalg.lstsq(x, target.reshape(-1).astype(np.float64), rcond=None)[0]
    return solution
