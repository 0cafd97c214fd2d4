"""Units of targets: what outputs and errors of a model are in the units that people measure in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from models.package.spec import ModelSpec, TensorSpec, bare_metric

#: Metrics that have the unit of the target, by the last word of their name.
_OF_THE_UNIT = frozenset({"mae", "rmse"})


@dataclass(frozen=True)
class Unit:
    """Unit of the numbers of one target.

    Attributes:
        name: of the unit.
        factor: units in 1 of the model's own numbers: the target's std.
    """

    name: str
    factor: float = 1.0


#: By name of the output; the only output of a model has the name "".
Units = Mapping[str, Unit]
NO_UNITS: Units = {}


def target_units(spec: ModelSpec) -> Units:
    """Returns the units of a model's targets, where its spec names one for all of its numbers."""
    named = {t.name.removeprefix("target").removeprefix("_"): t for t in spec.targets}
    return _units(named)


def output_units(outputs: Sequence[TensorSpec]) -> Units:
    """Returns the units of the outputs of a released model, likewise."""
    return _units({output.name if len(outputs) > 1 else "": output for output in outputs})


def _units(tensors: Mapping[str, TensorSpec]) -> dict[str, Unit]:
    return {
        name: Unit(tensor.units[0], next(iter(tensor.std), 1.0))
        for name, tensor in tensors.items()
        if len(set(tensor.units)) == 1 and len(set(tensor.std)) <= 1
    }


def metric_unit(units: Units, metric: str) -> Unit | None:
    """Returns the unit of a metric; None if it has none.

    Args:
        units: of the model.
        metric: as in a round's record: `mae`, `unseen_rmse`, `wear_mae` of the output `wear`.
    """
    output, _, kind = bare_metric(metric).rpartition("_")
    return units.get(output) if kind in _OF_THE_UNIT else None


def metric_text(units: Units, metric: str, value: float) -> str:
    """Returns a metric's value for people: `0.5312 (53,120 USD)`, `0.5312 kW` or `0.5312`."""
    unit = metric_unit(units, metric)
    if unit is None:
        return f"{value:.4f}"
    if unit.factor != 1:
        return f"{value:.4f} ({amount_text(value * unit.factor, unit.name)})"
    return amount_text(value, unit.name, f"{value:.4f}")


def amount_text(value: float, unit: str, number: str = "") -> str:
    """Returns a number with its unit for people: `12.5 kW`, `0.53 x 100,000 USD`.

    Args:
        value: in the unit.
        unit: its name; may be empty.
        number: the value as text; empty: four digits of it, those before the point all.
    """
    times = "x " if unit[:1].isdigit() else ""
    rounded = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:,.4g}"
    return f"{number or rounded} {times}{unit}".rstrip()


def metrics_in_units(units: Units, metrics: Mapping[str, float]) -> dict[str, dict[str, object]]:
    """Returns `value` and `unit` of each metric that has a unit, by name."""
    found = {name: metric_unit(units, name) for name in metrics}
    return {
        name: {"value": metrics[name] * unit.factor, "unit": unit.name}
        for name, unit in found.items()
        if unit is not None
    }


def with_units(outputs: Iterable[TensorSpec], spec: ModelSpec) -> tuple[TensorSpec, ...]:
    """Returns outputs with the names, units, mean and std of the targets that they estimate."""
    return tuple(_described(output, spec) for output in outputs)


def _described(output: TensorSpec, spec: ModelSpec) -> TensorSpec:
    wanted = f"target_{output.name}" if len(spec.targets) > 1 else "target"
    for target in spec.targets:
        if (target.name, target.shape) == (wanted, output.shape) and target.dtype == "float32":
            return msgspec.structs.replace(
                output,
                features=target.features,
                units=target.units,
                mean=target.mean,
                std=target.std,
            )
    return output
