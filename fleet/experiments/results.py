"""`report.json` of one run, read again: history, curves, agents and matrices.

report = load_report("runs/house_price")
report.final["mae"], report.rounds_to("mae", 0.6)
report.history                      # one flat dict a round, as for pandas.DataFrame
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coordinator.records.records import falls
from fedge.errors import ConfigError, did_you_mean, one_line
from fleet.experiments.curves import Crossing, Curve
from fleet.experiments.report_check import check_report, damaged

#: Whose figures are shown: the version that is handed out, the best by `stop.metric`, or the last.
Which = Literal["best", "last"]
#: As `fleet.report` names it, which a reader of reports need not import.
REPORT_FILE = "report.json"
#: Keys of a round that stand in its flat dict under the same name.
_ROUND = ("status", "version", "asked", "reported", "refused", "stale", "evaluated")
_SPENT = ("bytes_up", "bytes_down", "seconds")
#: Begins the names of what training told.
_TRAIN = "train_"
#: Begin the names of metrics that are not of the rows of those that learn.
_ELSEWHERE = ("central_", "unseen_")


@dataclass(frozen=True, eq=False)
class Report:
    """Results of one run.

    Attributes:
        document: the report as in its file (docs/report.md).
        path: of the file; None for a report that was not read from one.
    """

    document: Mapping[str, Any] = field(repr=False)
    path: Path | None = None

    @property
    def scenario(self) -> str:
        """Name of the scenario."""
        return str(self.document["scenario"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration that was run, every key; empty where the report has none."""
        found: Mapping[str, Any] = self.document.get("configuration", {})
        return found

    @property
    def seed(self) -> int | None:
        """Seed of the run; None where the report has none."""
        found = self.document.get("seed")
        return None if found is None else int(found)

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end; an interrupted one has a report of its rounds so far."""
        return bool(self.document.get("status", "complete") == "complete")

    @property
    def made_by(self) -> str:
        """Version and commit of the code, and kind of the run; empty where the report has none."""
        run = self.document.get("run", {})
        found = [run.get("versions", {}).get("fedge"), run.get("commit"), run.get("kind")]
        return " ".join(str(one) for one in found if one)

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        """All rounds, abandoned ones too, with what each agent measured."""
        return list(self.document["rounds"])

    @cached_property
    def is_evaluated(self) -> bool:
        """Whether any round measured on held-out rows; else agents told of training alone."""
        return any(map(_is_measured, self.document["rounds"]))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One flat dict a round: `round`, `loss`, each metric, bytes, seconds.

        `central_…` are of the coordinator's rows, `unseen_…` of agents that only measure, `train_…`
        of training; `loss` and the other metrics of held-out rows: None in a round that did not
        evaluate, left out where none did. None where a round has no value.
        """
        rows = [flat_round(record) for record in self.document["rounds"]]
        if self.is_evaluated:
            return rows
        own = {"loss", *filter(_is_own, self._names)}
        return [{key: value for key, value in row.items() if key not in own} for row in rows]

    @property
    def final(self) -> dict[str, Any]:
        """The result that was handed out: `loss`, each metric, `version`; totals of the run.

        Where no agent measured it, `train_…` are what was seen while it was trained.
        """
        found = self.document["final"]
        known = {"loss": found["loss"], **found["metrics"]}
        if not _is_measured(self._handed_out):
            known = {f"train_{name}" if _is_own(name) else name: v for name, v in known.items()}
        return known | {key: found[key] for key in ("version", *_SPENT)}

    @property
    def measures(self) -> list[str]:
        """Names of loss and metrics in `final`."""
        return [name for name in self.final if name not in ("version", *_SPENT)]

    @property
    def metrics(self) -> list[str]:
        """Names that `curve` knows: loss and metrics of any round, then those of training."""
        found = self._names if self.is_evaluated else [n for n in self._names if not _is_own(n)]
        loss = ["loss"] if self.is_evaluated else []
        trained = {name: None for r in self.document["rounds"] for name in _trained(r)}
        return [*loss, *found, *trained]

    @cached_property
    def _names(self) -> list[str]:
        """Names of the metrics in the document's rounds, whatever they were measured on."""
        return list({name: None for r in self.document["rounds"] for name in r["metrics"]})

    def curve(self, metric: str) -> Curve:
        """Returns a metric over the rounds in which it was measured.

        Rounds that evaluated nothing are left out, but for metrics of training (`train_…`) and of
        the coordinator's own rows.

        Raises:
            ConfigError: no round has the metric.
        """
        records = self.document["rounds"]
        spent = {key: np.cumsum([float(r[key]) for r in records]) for key in _SPENT}
        found = [
            (n, value)
            for n, record in enumerate(records)
            if record["status"] == "committed" and (value := _value(record, metric)) is not None
        ]
        if not found:
            self._refuse(metric)
        where = [n for n, _ in found]
        return Curve(
            metric,
            falls(metric),
            np.array([float(records[n]["round_id"]) for n in where]),
            np.array([value for _, value in found]),
            **{key: spent[key][where] for key in _SPENT},
        )

    def crossing(self, metric: str, value: float) -> Crossing | None:
        """Returns rounds, bytes and seconds until the monotone curve reaches a value; None: never.

        Raises:
            ConfigError: no round has the metric.
        """
        return self.curve(metric).crossing(value)

    def rounds_to(self, metric: str, value: float) -> float | None:
        """Returns the rounds until the monotone curve reaches a value; see `crossing`."""
        found = self.crossing(metric, value)
        return None if found is None else found.rounds

    def final_value(self, metric: str) -> float | None:
        """Returns a metric of the version that was handed out; None when it was not measured."""
        if metric in self.measures:
            value = self.final[metric]
            return None if value is None else float(value)
        return _value(self._handed_out, metric) if metric.startswith(_TRAIN) else None

    def last_value(self, metric: str) -> float | None:
        """Returns a metric of the last round that measured it; None when none did."""
        committed = (r for r in reversed(self.document["rounds"]) if r["status"] == "committed")
        found = (_value(record, metric) for record in committed)
        return next((value for value in found if value is not None), None)

    def value_of(self, which: Which, metric: str) -> float | None:
        """Returns `final_value`, which is of the best version, or `last_value`."""
        return self.final_value(metric) if which == "best" else self.last_value(metric)

    def agents(self, metric: str) -> dict[str, float]:
        """Returns a metric by agent, as measured with the version that was handed out.

        Of `unseen_accuracy` the accuracy of agents that only measure; else of those that learn.
        Where none measured, `train_accuracy` is what agents told of training.
        """
        bare = metric.removeprefix("unseen_")
        found = {}
        for row in self.agent_rows:
            value = row.get(bare)
            if row["unseen"] == (bare != metric) and value is not None:
                found[row["agent"]] = float(value)
        return found

    @property
    def agent_rows(self) -> list[dict[str, Any]]:
        """One flat dict an agent: its part in the round of the version that was handed out.

        Where that round did not evaluate, loss and metrics are of training: `train_…`.
        """
        unseen = set(self.document.get("unseen", ()))
        start = "" if _is_measured(self._handed_out) else _TRAIN
        return [
            {
                "agent": name,
                "unseen": name in unseen,
                f"{start}loss": agent["loss"],
                **{f"{start}{key}": value for key, value in agent["metrics"].items()},
                "num_examples": agent.get("num_examples", 0),
            }
            for name, agent in self._handed_out.get("agents", {}).items()
        ]

    @property
    def matrices(self) -> dict[str, list[list[float]]]:
        """Confusion matrices of the version that was handed out, by name; rows are true classes."""
        return dict(self.document["final"].get("matrices", {}))

    @property
    def best_round(self) -> int | None:
        """The round of the version that was handed out; None where the report lacks it."""
        found = self._handed_out.get("round_id")
        return None if found is None else int(found)

    @cached_property
    def _handed_out(self) -> Mapping[str, Any]:
        """The round of the version that was handed out; empty where the report lacks it."""
        version = self.document["final"]["version"]
        records = [r for r in self.document["rounds"] if r["status"] == "committed"]
        found = [record for record in records if record["version"] == version]
        return found[-1] if found else {}

    def _refuse(self, metric: str) -> None:
        known = ["loss", *self._names]
        if metric in known and not self.is_evaluated:
            hint = "no round measured on held-out rows; "
        else:
            hint = did_you_mean(metric, self.metrics)
        raise ConfigError(
            f"{self.path or self.scenario}: no round has the metric {metric[:80]!r}: {hint}"
            f"it has {', '.join(self.metrics)}"
        )


def _is_own(metric: str) -> bool:
    """Whether a loss or metric is of agents' own rows: held out, else those they learn from."""
    return not metric.startswith(_ELSEWHERE)


def _is_measured(record: Mapping[str, Any]) -> bool:
    """Whether a round's own loss and metrics are of held-out rows; else they are of training."""
    return bool(record.get("evaluated", True))


def _trained(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a round's training told, by name."""
    metrics = record.get("train_metrics", {})
    return {
        "train_loss": record.get("train_loss"),
        **{f"{_TRAIN}{name}": value for name, value in metrics.items()},
    }


def measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a round's loss and metrics by name; None for those that are of training."""
    known = {"loss": record["loss"], **record["metrics"]}
    if _is_measured(record):
        return known
    return {name: None if _is_own(name) else value for name, value in known.items()}


def _value(record: Mapping[str, Any], metric: str) -> float | None:
    value = (measured(record) | _trained(record)).get(metric)
    return None if value is None else float(value)


def flat_round(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one round of a report as a flat dict, see `Report.history`."""
    return {
        "round": record["round_id"],
        **{key: record[key] for key in _ROUND if key in record},
        **measured(record),
        **_trained(record),
        **{key: record[key] for key in _SPENT},
    }


def load_report(path: Path | str) -> Report:
    """Returns the report in a file, or in the folder of a run.

    Raises:
        ConfigError: there is no report, the file is none, or a key of it is of another type.
    """
    file = Path(path)
    if file.is_dir():
        file /= REPORT_FILE
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{file}: {error.strerror}: name a report.json, or the folder of a run"
        ) from error
    except (ValueError, RecursionError) as error:
        raise damaged(file, one_line(error)) from error
    if not isinstance(document, dict) or not {"scenario", "rounds", "final"} <= document.keys():
        raise ConfigError(f"{file} is not a report of a run: it lacks scenario, rounds or final")
    check_report(document, file)
    return Report(document, file)
