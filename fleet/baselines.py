"""Baselines for the federated model: agents alone, pooled rows, and the exact solution."""

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
from fleet.participants import Participants
from fleet.scenario import BaselineConfig
from learning.algorithms.training import TrainingPlan
from learning.vector.metrics import Sums, add_sums, metric_values
from learning.vector.parameters import F32, F64
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.program import Program
from models.runtime.rows import Rows


@dataclass
class Baselines:
    """Figures by name (see README, "report.json"), and the models behind them.

    Attributes:
        figures: by name.
        details: figures of each agent, and the exact solution.
        models: vectors by kind (own, pooled) and by the agent that trained them; "" stands for all
            agents.
        detection: by kind; see `measure_detection`. Empty where the scenario has no detection.
        failed: error by kind (own, pooled, detection) that could not be trained or measured.
    """

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)
    models: dict[str, dict[str, F32]] = field(default_factory=dict)
    detection: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def check_baselines(wanted: BaselineConfig, spec: ModelSpec, path: Path) -> None:
    """Checks, before a run, that its baselines can be measured at its end.

    Raises:
        ConfigError: the model does not have the metric, or least squares do not apply.
    """
    names = ["loss", *(m.name for m in spec.metrics if m.kind != "confusion")]
    if wanted.metric not in names:
        known = ", ".join(names)
        raise ConfigError(
            f"{path}: baselines.metric: {wanted.metric!r} is no metric of the model {spec.name}; "
            f"known: {known}; baselines of a scenario go with its model: with another one set "
            f"--set baselines.metric={names[-1]}, or --set 'baselines={{}}' for none"
        )
    features = sum(prod(tensor.shape) for tensor in spec.inputs)
    if wanted.least_squares and (spec.loss != "mean_squared_error" or spec.size != features + 1):
        raise ConfigError(
            f"{path}: baselines.least_squares: {spec.name} is not a linear regression with squared "
            f"error ({spec.size} parameters for {features} features, loss {spec.loss})"
        )


def measure_baselines(
    participants: Participants,
    config: CoordinatorConfig,
    package: ModelPackage,
    theta: F32,
    progress: Callable[[str, int, int], None],
) -> Baselines:
    """Trains and measures the scenario's baselines, with the agents' own trainer and program.

    A baseline that fails is named in `Baselines.failed`; the run keeps its result. Agents whose
    rows cannot be used did not take part in the rounds, and are left out.

    Args:
        participants: the agents and their rows.
        config: of the federation; its training plan is used for as many epochs as an agent saw.
        package: the model.
        theta: parameters of the federated model.
        progress: called with (kind, done, total) after every model.
    """
    wanted = participants.scenario.baselines
    trial = _Trial(participants, config, package)
    found = Baselines()
    if wanted.own:
        with _attempt("own", found):
            _own(trial, found, progress)
    if wanted.pooled:
        with _attempt("pooled", found):
            _pooled(trial, found, progress)
    if wanted.least_squares:
        _least_squares(trial, package, theta, found)
    if participants.scenario.detection is not None:
        with _attempt("detection", found):
            models = {**found.models, "federated": {"": package.whole(theta)}}
            found.detection = measure_detection(participants, package, models)
    return found


@contextmanager
def _attempt(kind: str, found: Baselines) -> Iterator[None]:
    try:
        yield
    except (TrainingError, ConfigError) as error:
        found.failed[kind] = str(error)
        found.models.pop(kind, None)  # an incomplete set of models is not compared


class _Trial:
    """Trains baseline models and measures them on the agents' held-out rows."""

    def __init__(
        self, participants: Participants, config: CoordinatorConfig, package: ModelPackage
    ) -> None:
        self.metric = participants.scenario.baselines.metric
        self.program = Program(package.program, package.spec, frozen=package.frozen)
        self.initial = package.whole(package.initial)
        self.learners = _usable(participants, participants.learners)
        self.unseen = [
            data.part("test") for data in _usable(participants, participants.unseen).values()
        ]
        epochs = participants.scenario.baselines.epochs or config.rounds * config.training.epochs
        self.plan: TrainingPlan = msgspec.structs.replace(config.training, epochs=epochs)
        self.seed = config.seed

    def fit(self, rows: Rows, number: int) -> F32:
        """Returns the parameters of a model trained on `rows`, personal layers included."""
        rng = np.random.default_rng([self.seed, number, 3])
        return train(self.program, self.initial, rows, self.plan, rng).theta

    def sums(self, theta: F32, parts: Sequence[Rows]) -> Sums:
        """Returns the sums of loss and metrics over all rows of some parts."""
        return self.program.evaluate(theta, joined(parts))

    def score(self, sums: Sums) -> float | None:
        """Returns the compared metric; None when the rows do not define it."""
        return metric_values(sums, self.program.spec.metrics).get(self.metric)


def _usable(participants: Participants, names: Sequence[str]) -> dict[str, LocalDataset]:
    found = {}
    for name in names:
        with suppress(DataError):  # the agent reported this itself
            found[name] = participants.dataset(name)
    return found


def joined(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of several parts as one part."""
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
        # Held-out rows: each by its own agent's model, over all rows, as pooled is measured.
        # Unseen rows: the mean over models, which are all measured on the same rows.
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
    """Returns the exact minimiser θ of the squared error over all training rows (float64, (P,)).

    The model must be one dense unit (see `check_baselines`).
    """
    spec = package.spec
    rows = joined([data.part("train") for data in learners.values()])
    target = rows[spec.targets[0].name] if spec.targets else np.zeros(0)
    columns = [rows[tensor.name].reshape(len(target), -1) for tensor in spec.inputs]
    x = np.concatenate([*columns, np.ones((len(target), 1))], axis=1).astype(np.float64)
    solution: F64 = np.linalg.lstsq(x, target.reshape(-1).astype(np.float64), rcond=None)[0]
    return solution
