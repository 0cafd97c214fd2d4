"""MLflow: one MLflow run for each run, in a folder, a database or on a server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

from fedge.files import locked
from fleet.experiments.hooks.hook import RunStart, need
from learning.registry import Settings

#: Limits of MLflow's tracking API for one request, and for a parameter's value.
_BATCH = 100
_LONGEST = 500


class MlflowSettings(Settings, frozen=True, tag="mlflow"):
    """Settings of the hook.

    Attributes:
        uri: tracking server (`http://127.0.0.1:5000`), database (`sqlite:///runs.db`), or a folder,
            relative to the experiment's or the run's.
        experiment: MLflow's experiment; empty: the name of ours, or of the scenario.
    """

    uri: str = "mlruns"
    experiment: str = ""


class MlflowHook:
    """Logs parameters, metrics by round, and files with MLflow.

    Args:
        settings: where to.

    Raises:
        ConfigError: MLflow is not installed.
    """

    settings_type: ClassVar[type[Settings]] = MlflowSettings

    def __init__(self, settings: MlflowSettings) -> None:
        need("mlflow", "mlflow-skinny")
        self._settings = settings
        self._client: Any = None
        self._run_id = ""

    def begin(self, run: RunStart) -> None:
        """See `Hook.begin`."""
        # Nothing of a run is told to anyone but the tracking store.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Newer versions keep new users from folders, which need no database driver.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri, folder = self._place(run.base)
        self._client = MlflowClient(tracking_uri=uri)
        with locked(folder) if folder else nullcontext():  # runs begin at the same time
            experiment = self._experiment(self._settings.experiment or run.group)
        tags = {f"fedge.{key}": str(value) for key, value in run.varied.items()}
        made = self._client.create_run(experiment, tags=tags, run_name=run.name or run.group)
        self._run_id = made.info.run_id
        params = [Param(key, str(v)[:_LONGEST]) for key, v in run.parameters.items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._run_id, params=params[start : start + _BATCH])

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """See `Hook.round`."""
        self._log(values, number)

    def end(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """See `Hook.end`."""
        self._log({f"final.{name}": value for name, value in values.items()}, 0)
        for file in files:
            if file.is_dir():
                self._client.log_artifacts(self._run_id, str(file), file.name)
            else:
                self._client.log_artifact(self._run_id, str(file))
        self._client.set_terminated(self._run_id, "FINISHED" if values else "FAILED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        import time

        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _place(self, base: Path) -> tuple[str, Path | None]:
        """Returns the tracking URI, and its folder if it is one."""
        uri = self._settings.uri
        if ":" in uri:  # a scheme
            return uri, None
        folder = (base / Path(uri).expanduser()).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder.as_uri(), folder

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))
