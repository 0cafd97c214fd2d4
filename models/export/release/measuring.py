"""Comparison of a released model with the float program: metrics, agreement, time of a row."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from learning.vector.metrics import Sums, as_totals, metric_matrices, metric_values
from learning.vector.parameters import F32
from models.export.backend import tf
from models.export.objective.objective import Objective
from models.runtime.inference import InferenceModel
from models.runtime.program import Program
from models.runtime.rows import Array, Rows, row_count


def program_seconds(program: Program, whole: F32, rows: Rows) -> float:
    """Returns the median time of one row of the program's `predict`."""
    size = program.spec.batch_size
    index = np.arange(size) % row_count(rows)
    batch = {t.name: rows[t.name][index] for t in program.spec.inputs}
    times = []
    for _ in range(23):
        began_s = time.perf_counter()
        program.predict(whole, batch)
        times.append(time.perf_counter() - began_s)
    return float(np.median(times[3:])) / size


def compared_metrics(
    program: Program, whole: F32, released: InferenceModel, objective: Objective, data: Rows
) -> dict[str, Any]:
    """Returns metrics of both models on the same rows, and their agreement."""
    float_outputs = program.predict(whole, data)
    outputs = released.predict(data)
    specs = objective.metrics
    sums = _sums(objective, data, outputs)
    first = objective.outputs[0].name
    return {
        "metrics": metric_values(_sums(objective, data, float_outputs), specs),
        "released_metrics": metric_values(sums, specs),
        "released_matrices": metric_matrices(sums, specs),
        "rows": row_count(data),
        "agreement": _agreement(objective, float_outputs[first], outputs[first]),
    }


def _sums(objective: Objective, data: Rows, outputs: dict[str, Array]) -> Sums:
    columns = {name: tf.constant(array) for name, array in data.items()}
    found = {spec.name: tf.constant(outputs[spec.name]) for spec in objective.outputs}
    weight = tf.ones(row_count(data))
    loss = float(tf.reduce_sum(objective.loss(columns, found) * weight))
    sums = objective.sums(columns, found, weight)
    totals: dict[str, Array] = {}
    for spec in objective.metrics:
        total = np.reshape(sums[spec.name], spec.call_shape)
        totals[spec.name] = spec.sums_of_call(total, len(weight)) if spec.sums_of_call else total
    return Sums(loss, float(len(weight)), as_totals(totals))


def _agreement(objective: Objective, left: Array, right: Array) -> float:
    """Returns the share of rows with the same class; for a regression, the relative distance."""
    if objective.classifies:
        if left.ndim > 1:
            return float(np.mean(left.argmax(-1) == right.argmax(-1)))
        cut = objective.threshold
        return float(np.mean((left > cut) == (right > cut)))
    scale = float(np.sqrt(np.mean(np.square(left, dtype=np.float64)))) or 1.0
    return float(np.sqrt(np.mean(np.square(left - right, dtype=np.float64)))) / scale
