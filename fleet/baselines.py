"""What the federated model is compared with: alone, pooled, and the exact solution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import msgspec
import numpy as np

from coordinator.config import CoordinatorConfig
from edge_agent.data.dataset import LocalDataset
from edge_agent.training.trainer import train
from fedge.errors import ConfigError, DataError, TrainingError
from fleet.detection import measure_detection
from fleet.participants import Cast
from fleet.scenario import BaselineConfig
from learning.algorithms.training import TrainingPlan
from learning.vector.metrics import Sums, add_sums, metric_values
from learning.vector.parameters import F32, F64
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.program import Program
from models.runtime.rows import Rows
from models.runtime.stderr import suppress_stderr


@dataclass
class Baselines:
    """Figures by name (see README, "report.json"), and the models behind them.

    Attributes:
        figures: by name.
        details: for each agent, and the exact solution.
        models: vectors by kind (own, pooled) and by the agent that trained them; "" is all.
        detection: by kind; see `measure_detection`. Empty where the scenario has no detection.
        failed: why, by kind (own, pooled, detection), of what could not be trained
            or measured.
    """

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)
    models: dict[str, dict[str, F32]] = field(default_factory=dict)
    detection: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def check_baselines(wanted: BaselineConfig, spec: ModelSpec, path: Path) -> None:
    """Looks, before a run, whether what it is compared with at its end can be measured.

    Raises:
        ConfigError: the metric is none of the model's, or least squares do not apply.
    """
    names = ["loss", *(m.name for m in spec.metrics if m.kind != "confusion")]
    if wanted.metric not in names:
        known = ", ".join(names)
        raise ConfigError(f"{path}: baselines.metric: {wanted.metric!r} is unknown; known: {known}")
    features = sum(prod(tensor.shape) for tensor in spec.inputs)
    if wanted.least_squares and (spec.loss != "mean_squared_error" or spec.size != features + 1):
        raise ConfigError(
            f"{path}: baselines.least_squares: {spec.name} is no linear regression with squared "
            f"error ({spec.size} parameters for {features} features, loss {spec.loss})"
        )


def measure_baselines(
    cast: Cast,
    config: CoordinatorConfig,
    package: ModelPackage,
    theta: F32,
    progress: Callable[[str, int, int], None],
) -> Baselines:
    """Trains and measures what the scenario asks for, with the agents' own trainer and program.

    What fails is named in `Baselines.failed`: the run has its result all the same. Agents whose
    rows cannot be used took no part in the rounds either, and are left out.

    Args:
        cast: the agents and their rows.
        config: whose training plan is used, for as many epochs as an agent saw in all.
        package: the model.
        theta: the federated result.
        progress: told (what, done, of) after every model.
    """
    wanted = cast.scenario.baselines
    trial = _Trial(cast, config, package)
    found = Baselines()
    if wanted.own:
        with _attempt("own", found):
            _own(trial, found, progress)
    if wanted.pooled:
        with _attempt("pooled", found):
            _pooled(trial, found, progress)
    if wanted.least_squares:
        _least_squares(trial, package, theta, found)
    if cast.scenario.detection is not None:
        with _attempt("detection", found):
            models = {**found.models, "federated": {"": package.whole(theta)}}
            found.detection = measure_detection(cast, package, models)
    return found


@contextmanager
def _attempt(kind: str, found: Baselines) -> Iterator[None]:
    try:
        yield
    except (TrainingError, ConfigError) as error:
        found.failed[kind] = str(error)
        found.models.pop(kind, None)  # half of it is no use


class _Trial:
    """Trains baseline models and measures them on the agents' held-out rows."""

    def __init__(self, cast: Cast, config: CoordinatorConfig, package: ModelPackage) -> None:
        self.metric = cast.scenario.baselines.metric
        with suppress_stderr():  # between our own lines, what the interpreter announces is noise
            self.program = Program(package.program, package.spec, frozen=package.frozen)
        self.initial = package.whole(package.initial)
        self.learners = _usable(cast, cast.learners)
        self.unseen = [data.part("test") for data in _usable(cast, cast.unseen).values()]
        epochs = cast.scenario.baselines.epochs or config.rounds * config.training.epochs
        self.plan: TrainingPlan = msgspec.structs.replace(config.training, epochs=epochs)
        self.seed = config.seed

    def fit(self, rows: Rows, number: int) -> F32:
        """The vector of one model that has learned from `rows`, personal part and all."""
        rng = np.random.default_rng([self.seed, number, 3])
        return train(self.program, self.initial, rows, self.plan, rng).theta

    def sums(self, theta: F32, parts: Sequence[Rows]) -> Sums:
        """Of loss and metrics over all rows of some parts."""
        return self.program.evaluate(theta, joined(parts))

    def score(self, sums: Sums) -> float | None:
        """The metric; None when the rows say nothing about it."""
        return metric_values(sums, self.program.spec.metrics).get(self.metric)


def _usable(cast: Cast, names: Sequence[str]) -> dict[str, LocalDataset]:
    found = {}
    for name in names:
        with suppress(DataError):  # the agent said so itself
            found[name] = cast.dataset(name)
    return found


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several parts as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _own(trial: _Trial, found: Baselines, progress: Callable[[str, int, int], None]) -> None:
    on_own: dict[str, Sums] = {}
    on_unseen: dict[str, Sums] = {}
    found.models["own"] = {}
    total = len(trial.learners)
    for number, (name, dataset) in enumerate(trial.learners.items()):
        try:
            theta = trial.fit(dataset.part("train"), number)
        except TrainingError as error:
            raise TrainingError(f"{name}: {error}") from error
        found.models["own"][name] = theta
        if dataset.num_test:
            on_own[name] = trial.sums(theta, [dataset.part("test")])
        if trial.unseen:
            on_unseen[name] = trial.sums(theta, trial.unseen)
        progress("own", number + 1, total)
    for key, each in (("own_on_own", on_own), ("own_on_unseen", on_unseen)):
        scores = {
            name: score for name, sums in each.items() if (score := trial.score(sums)) is not None
        }
        found.details[key] = scores
        # Each row of everybody's by its own agent's model, as pooled is measured; or else many
        # models on the same rows.
        figure = trial.score(add_sums(each.values())) if key == "own_on_own" and each else None
        if key == "own_on_unseen" and scores:
            figure = float(np.mean(list(scores.values())))
        if figure is not None:
            found.figures[key] = figure


def _pooled(trial: _Trial, found: Baselines, progress: Callable[[str, int, int], None]) -> None:
    theta = trial.fit(joined([data.part("train") for data in trial.learners.values()]), 1_000)
    found.models["pooled"] = {"": theta}
    held_out = [data.part("test") for data in trial.learners.values() if data.num_test]
    for key, parts in (("pooled_on_own", held_out), ("pooled_on_unseen", trial.unseen)):
        score = trial.score(trial.sums(theta, parts)) if parts else None
        if score is not None:
            found.figures[key] = score
    progress("pooled", 1, 1)


def _least_squares(trial: _Trial, package: ModelPackage, theta: F32, found: Baselines) -> None:
    solution = least_squares(package, trial.learners)
    gap = np.abs(theta - solution)
    found.figures["least_squares_distance"] = float(gap.max())
    found.details["least_squares"] = solution.tolist()
    found.details["federated"] = [float(value) for value in theta]


def least_squares(package: ModelPackage, learners: Mapping[str, LocalDataset]) -> F64:
    """θ that minimises the squared error over all training rows, exactly (float64, shape (P,)).

    The model is one dense unit (`check_baselines`).
    """
    spec = package.spec
    rows = joined([data.part("train") for data in learners.values()])
    target = rows[spec.targets[0].name] if spec.targets else np.zeros(0)
    columns = [rows[tensor.name].reshape(len(target), -1) for tensor in spec.inputs]
    x = np.concatenate([*columns, np.ones((len(target), 1))], axis=1).astype(np.float64)
    solution: F64 = np.linalg.lstsq(x, target.reshape(-1).astype(np.float64), rcond=None)[0]
    return solution
