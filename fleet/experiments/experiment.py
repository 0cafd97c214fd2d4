"""An experiment's folder, read again: its cases, their runs, and where each run's report is.

DIR/experiment.json               the index
DIR/runs/<case>/<seed>/           one folder for each run, with its report.json
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from fedge.console import counted
from fedge.errors import ConfigError, did_you_mean, one_line
from fedge.yaml_config import parse_config
from fleet.experiments.results import REPORT_FILE, Report, load_report

INDEX_FILE = "experiment.json"

RunStatus = Literal["done", "failed", "waiting"]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Value of a metric that a learning curve is to reach.

    Attributes:
        metric: one of the model's, or "loss".
        value: reached from above by losses and errors, from below by all others.
    """

    metric: str
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(
                f"value: expected a finite number, got {self.value}: give what {self.metric} is to "
                "reach"
            )


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an experiment.

    Attributes:
        case: name of its case.
        seed: of the run.
        folder: relative to the experiment's.
        status: done, failed, or waiting for its turn.
        error: why it failed, in one line.
        seconds: it took.
    """

    case: str
    seed: int
    folder: str
    status: RunStatus = "waiting"
    error: str = ""
    seconds: float = 0.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that differ in their seed only.

    Attributes:
        name: of the case and its folder.
        scenario: name of the scenario.
        settings: what sets it apart from other cases: value by dotted key.
    """

    name: str
    scenario: str
    settings: dict[str, Any] = {}


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """experiment.json.

    Attributes:
        experiment: name of the experiment.
        engine: simulate or run.
        target: of tables and comparisons; None: none.
        varied: dotted keys in which cases differ.
        cases: in the order of the grid.
        runs: of all cases.
    """

    experiment: str
    engine: str = "simulate"
    target: Target | None = None
    varied: tuple[str, ...] = ()
    cases: tuple[Case, ...]
    runs: tuple[Run, ...]


class Experiment:
    """Cases and reports of an experiment, or of a single run.

    Args:
        folder: that the runs' folders are relative to.
        index: of the experiment.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index

    @property
    def cases(self) -> tuple[Case, ...]:
        """All cases, in the order of the grid."""
        return self.index.cases

    def runs(self, case: Case) -> list[Run]:
        """Returns the runs of a case, those without a result too."""
        return [run for run in self.index.runs if run.case == case.name]

    def reports(self, case: Case) -> dict[int, Report]:
        """Returns the reports of a case by seed; read anew at each call.

        Raises:
            ConfigError: a report cannot be read.
        """
        return {run.seed: self.report(run) for run in self.runs(case) if run.status == "done"}

    def report(self, run: Run) -> Report:
        """Returns the report of a run that is done; raises like `reports`."""
        return load_report(self.folder / run.folder)

    def case(self, name: str) -> Case:
        """Returns the case of a name.

        Raises:
            ConfigError: there is none.
        """
        return self.chosen([name])[0]

    def chosen(self, names: Sequence[str]) -> list[Case]:
        """Returns the cases of these names, or all without names; raises like `case`."""
        known = {case.name: case for case in self.cases}
        for name in names:
            if name not in known:
                hint = did_you_mean(name, list(known))
                raise ConfigError(
                    f"{self.folder}: no case {name[:80]!r}: {hint}it has {', '.join(known)}"
                )
        return [known[name] for name in names] if names else list(known.values())

    def default_metric(self) -> str:
        """Returns the target's metric; else the first of the model that was measured; else a loss.

        Of held-out rows, where agents held any back; else of the coordinator's; else of training.

        Raises:
            ConfigError: no run is done.
        """
        if self.index.target:
            return self.index.target.metric
        names = self.any_report().metrics
        own = [name for name in names if not name.startswith(("unseen_", "central_", "train_"))]
        central = [name for name in names if name.startswith("central_")]
        for found in (own, central, [name for name in names if name.startswith("train_")]):
            if found:
                return next((name for name in found if not name.endswith("loss")), found[0])
        return "loss"

    def any_report(self) -> Report:
        """Returns the report of the first run that is done.

        Raises:
            ConfigError: none is.
        """
        for run in self.index.runs:
            if run.status == "done":
                return self.report(run)
        failed = [run for run in self.index.runs if run.status == "failed"]
        why = f"; {failed[0].folder} failed: {failed[0].error}" if failed else ""
        raise ConfigError(
            f"{self.folder}: none of {counted(len(self.index.runs), 'run')} is done{why}"
        )

    def missing(self) -> list[Run]:
        """Returns the runs without a result."""
        return [run for run in self.index.runs if run.status != "done"]


def load_experiment(path: Path) -> Experiment:
    """Returns an experiment, from its folder, or one of a single run, from its folder or report.

    Raises:
        ConfigError: the path holds neither, or its index cannot be read.
    """
    file = path / INDEX_FILE
    if path.name == INDEX_FILE:
        file, path = path, path.parent
    if not file.is_file():
        return _of_one_run(path)
    return Experiment(path, read_index(file))


def read_index(file: Path) -> Index:
    """Returns the index in a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        document = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, one_line(error)) from error
    try:
        return parse_config(document, Index, "")
    except ConfigError as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{file} is damaged: {why}; run the grid again with another --out")


def _of_one_run(path: Path) -> Experiment:
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file or folder: name the folder of an experiment or of a run, or a "
            f"{REPORT_FILE}"
        )
    if path.is_dir() and not (path / REPORT_FILE).exists():
        raise ConfigError(
            f"{path} holds neither {INDEX_FILE} nor {REPORT_FILE}: name the folder of an "
            "experiment or of a run"
        )
    report = load_report(path)
    folder = path if path.is_dir() else path.parent
    run = Run(
        case=report.scenario,
        seed=report.seed or 0,
        folder="." if path.is_dir() else path.name,
        status="done",
    )
    index = Index(
        experiment=report.scenario,
        cases=(Case(name=report.scenario, scenario=report.scenario),),
        runs=(run,),
    )
    return Experiment(folder, index)
