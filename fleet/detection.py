"""Measures anomaly detection: a row whose loss exceeds a limit raises an alarm.

A row's score is the model's loss on that row; for an autoencoder it is the reconstruction error.
No label reaches an agent: labels judge the result and are not trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ConfigError
from fleet.participants import Participants
from learning.vector.parameters import F32, F64
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.runtime.rows import Rows

Array = NDArray[Any]


def measure_detection(
    participants: Participants, package: ModelPackage, models: Mapping[str, Mapping[str, F32]]
) -> dict[str, dict[str, float]]:
    """Returns `auc`, `found` and `false_alarms` by kind of model, means over its models.

    Measured on the rows of the agents that only measure, or, without such agents, on the held-out
    rows of all agents.

    Args:
        participants: agents, rows and labels (`participants.anomalies`).
        package: the model.
        models: vectors by kind ("own", "federated", "pooled") and by the agent that trained
            them; "" stands for all agents. The limit of the alarm comes from that agent's training
            rows.

    Raises:
        ConfigError: labels are not 0 and 1, or all measured rows have the same label.
    """
    config = participants.scenario.detection
    assert config is not None
    program = Program(package.program, package.spec, frozen=package.frozen)
    judged = [participants.dataset(name) for name in participants.unseen or participants.learners]
    held_out = [(data.part("test"), data.rows[data.test]) for data in judged if data.num_test]
    label = _labels(
        participants, np.concatenate([rows for _, rows in held_out] or [np.zeros(0, int)])
    )
    learned = {name: participants.dataset(name).part("train") for name in participants.learners}
    figures: dict[str, dict[str, float]] = {}
    for kind, thetas in models.items():
        each = []
        for owner, theta in thetas.items():
            score = _scores(program, theta, (rows for rows, _ in held_out))
            known = learned.values() if owner == "" else [learned[owner]]
            limit = float(np.quantile(_scores(program, theta, known), config.quantile))
            alarm = score > limit
            each.append((ranking(score, label), alarm[label].mean(), alarm[~label].mean()))
        names = ("auc", "found", "false_alarms")
        figures[kind] = dict(zip(names, np.mean(each, 0).tolist(), strict=True))
    return figures


def ranking(score: F64, label: NDArray[np.bool_]) -> float:
    """Returns the area under the ROC curve: the share of pairs with the labelled row above.

    Computed as the Mann-Whitney U statistic (Hanley and McNeil 1982, Radiology 143); ties count
    half. `label` must hold both values.
    """
    _, where, sizes = np.unique(score, return_inverse=True, return_counts=True)
    below = np.cumsum(sizes) - sizes
    rank = below + (sizes + 1) / 2  # of the first row 1; equal scores share their mean rank
    found = int(label.sum())
    wins = rank[where][label].sum() - found * (found + 1) / 2
    return float(wins / (found * (len(label) - found)))


def _scores(program: Program, theta: F32, parts: Iterable[Rows]) -> F64:
    """Returns the loss of each row alone."""
    scores = [
        program.evaluate(theta, {name: array[row : row + 1] for name, array in part.items()}).loss
        for part in parts
        for row in range(len(next(iter(part.values()))))
    ]
    return np.array(scores, np.float64)


def _labels(participants: Participants, rows: Sequence[int] | Array) -> NDArray[np.bool_]:
    assert participants.anomalies is not None
    label = participants.anomalies[rows]
    if not np.isin(label, (0, 1)).all():
        raise ConfigError(f"{participants.table.path}: detection.label must be 0 or 1 in every row")
    if len(np.unique(label)) != 2:
        raise ConfigError(
            f"{participants.table.path}: detection.label is the same in all measured rows"
        )
    return label.astype(bool)
