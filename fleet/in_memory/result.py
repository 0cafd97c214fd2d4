"""Result of a simulation, for people at work in Python."""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from coordinator.report import bytes_text
from edge_agent.data.config import DataConfig
from edge_agent.data.dataset import build_dataset
from fedge.console import counted
from fedge.errors import ConfigError
from fleet.experiments.pictures.canvas import label_of, whole_numbers
from fleet.experiments.results import Report
from fleet.in_memory.clients import table_of
from fleet.in_memory.columns import read_columns
from fleet.in_memory.keras_models import keras_model
from fleet.report import ended_rounds, write_report
from fleet.runs.resume import RunInterrupted
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.package.units import with_units
from models.runtime.program import Program

#: Metrics that a line shows.
_SHOWN = 3


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Trained model, and how it came about.

    Attributes:
        package: the model with its trained weights as initial θ.
        report: as in `report.json` (docs/report.md).
        folder: of the run; None where none was asked for.
    """

    package: ModelPackage
    report: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None

    @cached_property
    def _read(self) -> Report:
        return Report(self.report)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One flat dict a round, as for `pandas.DataFrame`: round, version, loss, metrics, bytes.

        `central_…` are of the rows in `test`, `unseen_…` of clients that only measure, `train_…` of
        training, `loss` and metrics of the clients' held-out rows: None in a round that did not
        evaluate on them, left out where none did. `seconds` are virtual.
        """
        return self._read.history

    @property
    def final(self) -> dict[str, Any]:
        """Loss and metrics of the model that is handed out; bytes and seconds of the whole run.

        Where no client evaluated, `train_…` are what was seen while it was trained.
        """
        return self._read.final

    @property
    def algorithm(self) -> str:
        """Name of the algorithm; empty where the report does not say."""
        federation = self.report.get("configuration", {}).get("federation", {})
        return str(federation.get("algorithm", {}).get("name", ""))

    @property
    def agents(self) -> list[dict[str, Any]]:
        """One flat dict a client: its part in the round of the model that is handed out.

        Where that round did not evaluate, loss and metrics are of training: `train_…`.
        """
        return self._read.agent_rows

    @property
    def theta(self) -> F32:
        """All trained weights, float32, shape (P,); read-only."""
        return self.package.initial

    @property
    def weights(self) -> dict[str, F32]:
        """The trained weights by name of layer and variable (`dense/kernel`); views."""
        return dict(self.package.spec.layout.unflatten(self.theta))

    @property
    def metrics(self) -> list[str]:
        """Names that `plot` knows."""
        return self._read.metrics

    @property
    def is_complete(self) -> bool:
        """Whether the run was not interrupted."""
        return bool(self.report.get("status", "complete") == "complete")

    @cached_property
    def _program(self) -> Program:
        package = self.package
        return Program(package.program, package.spec, frozen=package.frozen)

    def predict(self, x: Any) -> Any:
        """Returns the model's output for rows; needs no TensorFlow.

        Args:
            x: rows as in training; of a model with several inputs, arrays by name.

        Returns:
            float32, shape (n, *shape), in the units of the data; of a model with several outputs a
            dict by name.

        Raises:
            DataError: rows do not fit the model.
        """
        spec = msgspec.structs.replace(self.package.spec, targets=())
        columns = read_columns(spec, x, "x", targets=False)
        config = DataConfig(path="x.npz", test_fraction=0.0)
        rows = build_dataset(table_of(spec, columns, "x"), config, spec).arrays
        found = self._program.predict(self.package.whole(self.theta), rows)
        for output in with_units(self.package.spec.outputs, self.package.spec):
            if output.std:
                values = found[output.name] * np.array(output.std) + np.array(output.mean)
                found[output.name] = values.astype(np.float32)
        return next(iter(found.values())) if len(found) == 1 else found

    def to_keras(self) -> Any:
        """Returns the trained model as a compiled Keras model.

        It takes rows as they are after the mean and std of the package's inputs, where these have
        any (some of the zoo have, models that came from Keras have none).

        Raises:
            ExportError: TensorFlow is missing, or the package has no description of its model.
        """
        return keras_model(self.package, self.theta)

    def plot(self, metric: str | None = None, *, ax: Any = None, label: str | None = None) -> Any:
        """Draws a metric over the rounds; returns matplotlib's axes.

        Args:
            metric: see `metrics`; None: the first there is, of the central rows if there are any.
            ax: axes to draw on; None: new ones.
            label: of the line.

        Raises:
            ConfigError: matplotlib is missing, or no round has the metric.
        """
        curve = self._read.curve(metric or self.main_metric)
        axes = new_axes() if ax is None else ax
        marker = "o" if len(curve.rounds) == 1 else None
        axes.plot(curve.rounds, curve.values, label=label, marker=marker)
        axes.set_xlabel("round")
        axes.set_ylabel(label_of(curve.metric))
        whole_numbers(axes.xaxis)
        if label is not None:
            axes.legend()
        return axes

    def save(self, folder: Path | str) -> Path:
        """Writes `report.json` and the trained model (`model/`) into a folder; returns it.

        `fedge.load_report`, `fedge experiment` and `fedge model` read them.
        """
        out = Path(folder)
        try:
            out.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(out / "model", ignore_errors=True)
            self.package.save(out / "model")
            write_report(dict(self.report), out)
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
        return out

    @property
    def main_metric(self) -> str:
        """Metric that `plot` draws when none is named."""
        names = [m.name for m in self.package.spec.metrics if m.kind != "confusion"]
        wanted = [f"central_{name}" for name in names] + ["central_loss", *names]
        wanted += ["loss", *(f"train_{name}" for name in names)]
        return next((name for name in wanted if name in self.metrics), "train_loss")

    def __getstate__(self) -> dict[str, Any]:
        # Without what was made of it meanwhile: an interpreter cannot be pickled.
        return {"package": self.package, "report": self.report, "folder": self.folder}

    def _facts(self) -> dict[str, str]:
        """Returns what a person wants to know first, by name."""
        final, report, done = self.final, self.report, len(ended_rounds(self.report))
        spent = ("version", "bytes_up", "bytes_down", "seconds")
        measured = [(k, v) for k, v in final.items() if k not in spent and v is not None]
        central = [(k, v) for k, v in measured if k.startswith("central_")]
        facts = {
            "rounds": f"{done}{'' if self.is_complete else ', interrupted'}",
            "clients": f"{report['agents']:,}",
            "parameters": f"{self.package.spec.size:,}",
        }
        facts |= {name: f"{value:.4f}" for name, value in (central or measured)[:_SHOWN]}
        up, down = bytes_text(final["bytes_up"]), bytes_text(final["bytes_down"])
        return facts | {"bytes": f"{up} up, {down} down"}

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"<fedge.Result of {self.package.spec.name}: {facts}>"

    def _repr_html_(self) -> str:
        facts = {"model": self.package.spec.name, **self._facts()}
        rows = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        return f"<table>{''.join(rows)}</table>"


class Interrupted(RunInterrupted):
    """A simulation was interrupted (a KeyboardInterrupt).

    Attributes:
        report: so far; empty before the first round.
        result: so far: history and model; None before the first round.
    """

    def __init__(self, result: Result | None) -> None:
        super().__init__({} if result is None else dict(result.report))
        self.result = result

    def __str__(self) -> str:
        if self.result is None:
            return "before the first round: there is no result"
        done = counted(len(ended_rounds(self.report)), "round")
        return f"after {done}; `.result` of this exception has them"


def new_axes() -> Any:
    """Returns new axes of matplotlib.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("matplotlib is missing: pip install 'fedge[plot]'") from error
    return pyplot.subplots()[1]
