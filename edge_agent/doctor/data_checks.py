"""Checks of a device's data: whether it looks like what the model was made for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edge_agent.data.dataset import LocalDataset
from edge_agent.data.targets import LEAK, class_counts, in_units, moments, target_findings
from fedge.check_result import Check, ok, warning
from fedge.console import counted
from models.package.spec import ModelSpec, TensorSpec

#: In the model's own standard deviations: no sensor of the same kind is so far off on average.
_FAR = 5.0
_FEW_ROWS = 10
_LARGEST_TOLD = 8


def data_checks(dataset: LocalDataset, spec: ModelSpec, in_file: int) -> Iterator[Check]:
    """Yields checks of rows, columns, ranges and classes of the data as the program gets it.

    Args:
        dataset: of the device.
        spec: of the model.
        in_file: rows that the file holds, those with NaN included.
    """
    rows = f"{counted(dataset.num_train, 'row')} to learn from, {dataset.num_test:,} held out"
    left_out = in_file - len(dataset.rows)
    rows += f", {left_out:,} left out (NaN)" if left_out else ""
    facts: dict[str, Any] = {
        "train_rows": dataset.num_train,
        "test_rows": dataset.num_test,
        "left_out_rows": left_out,
    }
    if left_out > in_file / 2:
        yield warning("data", rows, "most rows have no reading: is the sensor connected?", **facts)
    elif dataset.num_train < _FEW_ROWS:
        yield warning("data", rows, "so few rows teach the others little", **facts)
    else:
        yield ok("data", rows, **facts)
    for tensor in spec.inputs:
        yield _input(tensor, dataset)
    for tensor in spec.targets:
        yield _target(tensor, spec, dataset)
    for odd in target_findings(dataset.arrays, spec, dataset.num_train, dataset.split):
        yield warning(odd.kind, f"{odd.target}: {odd.found}", odd.advice)
    if dataset.split != "time":
        yield ok("split", f"{dataset.split}: {LEAK}")


def _input(tensor: TensorSpec, dataset: LocalDataset) -> Check:
    """Yields checks of the scaled inputs' ranges, which should lie around 0."""
    name = f"input {tensor.name}"
    values = dataset.arrays[tensor.name]
    flat = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    low, high, mean = flat.min(0), flat.max(0), flat.mean(0, dtype=np.float64)
    names = list(tensor.features or [f"{tensor.name}[{n}]" for n in range(len(low))])
    if len(names) != len(low):
        names = [f"{tensor.name}[{n}]" for n in range(len(low))]
    columns = {
        n: {"min": float(a), "max": float(b), "mean": float(m)}
        for n, a, b, m in zip(names, low, high, mean, strict=True)
    }
    still = [n for n, c in columns.items() if c["min"] == c["max"]] if len(flat) > 1 else []
    is_scaled = tensor.name in dataset.scales
    far = [n for n, c in columns.items() if is_scaled and abs(c["mean"]) > _FAR]
    shape = "×".join(map(str, values.shape))
    scaled = "scaled " if is_scaled else ""
    found = f"{shape} {values.dtype}, {scaled}{float(low.min()):.3g} to {float(high.max()):.3g}"
    if far:
        told = _some(f"{n} ({columns[n]['mean']:+.1f})" for n in far)
        advice = "mean in the model's standard deviations: is it another unit, or another column?"
        return warning(name, f"{found}; far from the model's data: {told}", advice, columns=columns)
    if still and len(still) < len(columns):
        advice = "a dead sensor? Rows whose reading never changes teach nothing about it"
        told = f"{found}; never changes: {_some(still)}"
        return warning(name, told, advice, columns=columns)
    return ok(name, found, columns=columns)


def _target(tensor: TensorSpec, spec: ModelSpec, dataset: LocalDataset) -> Check:
    values = dataset.arrays[tensor.name]
    counts = class_counts(dataset.arrays, spec, tensor, dataset.num_train)
    if counts is None:
        flat = values.reshape(len(values), -1)
        low, high = (in_units(f(0), tensor).tolist() for f in (flat.min, flat.max))
        least, most = min(low), max(high)
        found = f"{least:.4g} to {most:.4g}{_unit(tensor)}"
        return ok(tensor.name, found, min=least, max=most)
    by_name = dict(zip(counts.names, counts.total, strict=True))
    present = {name: n for name, n in by_name.items() if n}
    found = f"{len(present)} of {len(by_name)} classes: {_counted(present)}"
    if len(present) < 2:
        advice = "a device that knows one class pulls the model towards it: is the column right?"
        return warning(tensor.name, found, advice, classes=by_name)
    return ok(tensor.name, found, classes=by_name)


def part_lines(dataset: LocalDataset, spec: ModelSpec) -> Iterator[str]:
    """Yields lines for people: rows to learn from and held out, what targets they have, warnings.

    Args:
        dataset: of the device.
        spec: of the model.
    """
    parts = {
        "learn": (dataset.num_train, slice(dataset.num_train)),
        "measure": (dataset.num_test, slice(dataset.num_train, None)),
    }
    for name, (rows, part) in parts.items():
        found = [_told(t, spec, dataset, part) for t in spec.targets] if rows else []
        yield f"{name:8s} {counted(rows, 'row')}" + "".join(f"; {text}" for text in found if text)
    if dataset.split != "time":
        yield f"split    {dataset.split}: {LEAK}"
    for odd in target_findings(dataset.arrays, spec, dataset.num_train, dataset.split):
        yield f"warning  {odd}"


def _told(tensor: TensorSpec, spec: ModelSpec, dataset: LocalDataset, part: slice) -> str:
    """Returns what a target is in some rows: rows of each class, or mean and spread."""
    values = dataset.arrays[tensor.name][part]
    counts = class_counts({tensor.name: values}, spec, tensor, len(values))
    if counts is not None:
        present = {name: n for name, n in zip(counts.names, counts.learn, strict=True) if n}
        return f"{tensor.name}: {_counted(present)}"
    if values[0].size > 1:
        return ""
    (mean,), (std,) = moments(values, tensor)
    name = tensor.features[0] if tensor.features else tensor.name
    return f"{name}: {mean:.4g} ± {std:.2g}{_unit(tensor)}"


def _unit(tensor: TensorSpec) -> str:
    """Returns the unit of a target after its number, where all of it has one."""
    return f" ({tensor.units[0]})" if len(set(tensor.units)) == 1 else ""


def _counted(classes: Mapping[str, int]) -> str:
    return _some(f"{name} {n:,}" for name, n in classes.items())


def _some(words: Iterator[str] | list[str]) -> str:
    listed = list(words)
    rest = len(listed) - _LARGEST_TOLD
    return ", ".join(listed[:_LARGEST_TOLD]) + (f" and {rest} more" if rest > 0 else "")
