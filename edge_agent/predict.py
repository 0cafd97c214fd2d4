"""Predictions of a released model on this device's data."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np

from edge_agent.data.dataset import DataConfig, InputSource, build_dataset, read_ready
from fedge.errors import ConfigError, ModelError
from fedge.yaml_config import located
from learning.vector.parameters import Layout, ParameterSpec
from models.package.npz import open_npz
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.inference import InferenceModel, Release, load_release
from models.runtime.rows import Array

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for each row of a file.

    Attributes:
        release: of the model.
        rows: numbers of the rows in the file, from 0; rows with NaN may be missing.
        outputs: by name, shape (n, *shape), float32, in the units of the data.
        runtime: that computed them.
    """

    release: Release
    rows: Array
    outputs: dict[str, Array]
    runtime: str

    def records(self, *, with_units: bool = False) -> Iterator[dict[str, Any]]:
        """Yields one flat mapping a row: `row`, each output's numbers, a class if there is one.

        Args:
            with_units: add the unit to the name of a number.
        """
        outputs = [
            (self.outputs[tensor.name], _titles(tensor, with_units=with_units))
            for tensor in self.release.outputs
        ]
        for index, row in enumerate(self.rows.tolist()):
            record: dict[str, Any] = {"row": row}
            for number, (values, titles) in enumerate(outputs):
                flat = values[index].reshape(-1).tolist()
                record |= dict(zip(titles, flat, strict=True))
                if number == 0:
                    record |= self._class(values[index])
            yield record

    def _class(self, values: Array) -> dict[str, Any]:
        classes = self.release.classes
        if not classes:
            return {}
        if values.ndim == 0:  # the probability, or the logit, of class 1
            chosen = classes[int(values > self.release.threshold)] if len(classes) == 2 else ""
            return {"class": chosen} if chosen else {}
        return {"class": classes[int(values.argmax())]} if len(values) == len(classes) else {}


def predict(
    model: Path,
    data: DataConfig,
    base: Path,
    *,
    runtime: str | None = None,
    threads: int = 1,
    state_dir: Path | None = None,
) -> Predictions:
    """Returns the model's outputs for all rows of a data file.

    Args:
        model: a released `.tflite` with its `.json` beside it.
        data: where the rows are; its target, groups and test fraction do not matter here.
        base: folder that `data.path` is relative to.
        runtime: see `models.runtime.interpreters`.
        threads: of the interpreter.
        state_dir: where the agent keeps a measured normalisation; None applies the model's own.

    Raises:
        ModelError: the model is damaged, or no interpreter takes it.
        DataError: the file does not hold what the model needs.
    """
    tflite, release = load_release(model)
    spec = _spec(release, model)
    if release.verdict != "good":
        log.warning(
            "%s is not good: %s; release it again with other calibration rows",
            model, "; ".join(release.faults), extra={"event": "release_not_good"},
        )  # fmt: skip
    runner = InferenceModel(
        tflite,
        release.inputs,
        release.outputs,
        release.batch_size,
        runtime=runtime,
        threads=threads,
    )
    config = _inputs(inputs_only(data), spec, base)
    table = read_ready(config, spec, base, state_dir)
    dataset = build_dataset(table, config, spec, state_dir, own=True)
    outputs = runner.predict(dataset.part("train"))
    in_units = {t.name: _in_units(outputs[t.name], t) for t in release.outputs}
    return Predictions(release, dataset.rows, in_units, runner.runtime)


def _in_units(values: Array, output: TensorSpec) -> Array:
    """Returns an output in the units of the data: the target's mean and std are undone."""
    if not output.std:
        return values
    restored: Array = values * np.array(output.std) + np.array(output.mean)
    return restored.astype(np.float32)


def inputs_only(data: DataConfig, path: Path | None = None) -> DataConfig:
    """Returns `data` without what only learning needs; of the rows in `path`, where one is given.

    Raises:
        ValueError: the file is of another format than the inputs are configured for.
    """
    return msgspec.structs.replace(
        data,
        path=data.path if path is None else str(path.resolve()),
        target=None,
        targets={},
        weight=None,
        group=None,
        test_fraction=0.0,
    )


def write(predictions: Predictions, out: Path | None, *, as_json: bool = False) -> None:
    """Writes to `out` (.npz: `row` and an array per output; .csv; .jsonl), or to stdout.

    Raises:
        ConfigError: the file cannot be written, or its name says another format.
    """
    if out is None:
        (_write_json if as_json else _write_csv)(predictions, sys.stdout)
        return
    if out.suffix not in (".npz", ".csv", ".jsonl"):
        raise ConfigError(f"--out {out}: the name must end in .npz, .csv or .jsonl")
    try:
        if out.suffix == ".npz":
            np.savez(out, row=predictions.rows, **predictions.outputs)
            return
        with out.open("w") as file:
            (_write_csv if out.suffix == ".csv" else _write_json)(predictions, file)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error


def _write_csv(predictions: Predictions, file: TextIO) -> None:
    writer = None
    for record in predictions.records(with_units=True):
        if writer is None:
            writer = csv.DictWriter(file, list(record), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: _short(value) for key, value in record.items()})


def _write_json(predictions: Predictions, file: TextIO) -> None:
    for record in predictions.records():
        file.write(json.dumps(record) + "\n")


def _spec(release: Release, model: Path) -> ModelSpec:
    """Returns a spec with what the data readers need to know of a model."""
    try:
        return ModelSpec(
            name=release.name,
            inputs=release.inputs,
            targets=(),
            outputs=release.outputs,
            loss=release.loss,
            metrics=(),
            batch_size=release.batch_size,
            layout=Layout((ParameterSpec("released", (1,)),)),
        )
    except ValueError as error:
        raise ModelError(f"{model.with_suffix('.json')}: {error}") from error


def _inputs(config: DataConfig, spec: ModelSpec, base: Path) -> DataConfig:
    """Maps `x` of an .npz file to the only input of a model, as in the examples."""
    only = spec.inputs[0].name if len(spec.inputs) == 1 else None
    if config.format != "npz" or only is None or only in config.inputs:
        return config
    with open_npz(located(config.path, base)) as file:
        if only in file.names or "x" not in file.names:
            return config
    return msgspec.structs.replace(config, inputs={only: InputSource(array="x")})


def _titles(tensor: TensorSpec, *, with_units: bool) -> list[str]:
    """Returns a name for each number of an output."""
    count = prod(tensor.shape)
    names = [tensor.name] if not tensor.shape else [f"{tensor.name}_{n}" for n in range(count)]
    units = tensor.units * (count if len(tensor.units) == 1 else 1)
    if not with_units or len(units) != count:
        return names
    return [f"{name} ({unit})" for name, unit in zip(names, units, strict=True)]


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
