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
from typing import Any

import numpy as np

from coordinator.records.records import falls
from fedge.errors import ConfigError, did_you_mean, one_line
from fleet.experiments.curves import Crossing, Curve
from fleet.experiments.report_check import check_report, damaged

#: As `fleet.report` names it, which a reader of reports need not import.
REPORT_FILE = "report.json"
#: Keys of a round that stand in its flat dict under the same name.
_ROUND = ("status", "version", "asked", "reported", "refused", "stale", "evaluated")
_SPENT = ("bytes_up", "bytes_down", "seconds")


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
    def history(self) -> list[dict[str, Any]]:
        """One flat dict a round: `round`, `loss`, each metric, bytes, seconds.

        Metrics of training are named `train_…`. `loss` and the metrics are of held-out rows where
        `evaluated` is true. None where a round has no value.
        """
        return [flat_round(record) for record in self.document["rounds"]]

    @property
    def final(self) -> dict[str, Any]:
        """The result that was handed out: `loss`, each metric, `version`; totals of the run."""
        found = self.document["final"]
        totals = {key: found[key] for key in ("version", *_SPENT)}
        return {"loss": found["loss"], **found["metrics"], **totals}

    @property
    def metrics(self) -> list[str]:
        """Names that `curve` knows: the loss, and the metrics of any round."""
        found = {name: None for record in self.document["rounds"] for name in record["metrics"]}
        return ["loss", *found]

    def curve(self, metric: str) -> Curve:
        """Returns a metric over the rounds in which it was measured.

        Rounds that evaluated nothing are left out; where no round did, the values are those of
        training.

        Raises:
            ConfigError: no round has the metric.
        """
        records = self.document["rounds"]
        spent = {key: np.cumsum([float(r[key]) for r in records]) for key in _SPENT}
        any_evaluated = any(record.get("evaluated", True) for record in records)
        # The coordinator measures on its own rows in rounds without an evaluation too.
        everywhere = metric.startswith("central_") or not any_evaluated
        found = [
            (n, value)
            for n, record in enumerate(records)
            if record["status"] == "committed" and (everywhere or record.get("evaluated", True))
            if (value := _value(record, metric)) is not None
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
        return _value(self.document["final"], metric)

    def agents(self, metric: str) -> dict[str, float]:
        """Returns a metric by agent, as measured with the version that was handed out.

        Of `unseen_accuracy` the accuracy of agents that only measure; else of those that learn.
        """
        bare = metric.removeprefix("unseen_")
        unseen = set(self.document.get("unseen", ()))
        values = {
            name: _value(agent, bare)
            for name, agent in self._handed_out().get("agents", {}).items()
            if (name in unseen) == (bare != metric)
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def agent_rows(self) -> list[dict[str, Any]]:
        """One flat dict an agent: its part in the round of the version that was handed out."""
        unseen = set(self.document.get("unseen", ()))
        return [
            {
                "agent": name,
                "unseen": name in unseen,
                "loss": agent["loss"],
                **agent["metrics"],
                "num_examples": agent["num_examples"],
            }
            for name, agent in self._handed_out().get("agents", {}).items()
        ]

    @property
    def matrices(self) -> dict[str, list[list[float]]]:
        """Confusion matrices of the version that was handed out, by name; rows are true classes."""
        return dict(self.document["final"].get("matrices", {}))

    def _handed_out(self) -> Mapping[str, Any]:
        version = self.document["final"]["version"]
        records = [r for r in self.document["rounds"] if r["status"] == "committed"]
        found = [record for record in records if record["version"] == version]
        return found[-1] if found else {}

    def _refuse(self, metric: str) -> None:
        hint = did_you_mean(metric, self.metrics)
        raise ConfigError(
            f"{self.path or self.scenario}: no round has the metric {metric[:80]!r}: {hint}"
            f"it has {', '.join(self.metrics)}"
        )


def _value(record: Mapping[str, Any], metric: str) -> float | None:
    value = record["loss"] if metric == "loss" else record["metrics"].get(metric)
    return None if value is None else float(value)


def flat_round(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one round of a report as a flat dict, see `Report.history`."""
    trained = {f"train_{name}": v for name, v in record.get("train_metrics", {}).items()}
    return {
        "round": record["round_id"],
        **{key: record[key] for key in _ROUND if key in record},
        "loss": record["loss"],
        **record["metrics"],
        "train_loss": record.get("train_loss"),
        **trained,
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
