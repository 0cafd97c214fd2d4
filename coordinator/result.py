"""Result of a federation's task: files in its state folder, and text for people."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from coordinator.machine.progress import Progress
from coordinator.report import answer_lines
from coordinator.statistics_table import answer_document
from coordinator.storage.store import Store
from fedge.errors import ConfigError, StoreError
from fedge.files import write_whole
from models.package.package import ModelPackage

log = logging.getLogger(__name__)

#: Folder below state_dir with the trained model package.
RESULT_FOLDER = "model"
_READABLE = 0o644


class Result(Protocol):
    """Result of a federation's task."""

    def save(self) -> None:
        """Writes the result so far; a federation that was stopped early may have one too.

        Raises:
            StoreError: the disk is full or failed.
        """

    def text(self) -> str:
        """Returns the text that the command prints at its end."""


def make_result(
    config: CoordinatorConfig,
    state_dir: Path,
    package: ModelPackage,
    progress: Progress,
    store: Store,
) -> Result:
    """Returns the result of the configuration's task."""
    if (task := name_of(config.task)) == "train":
        return TrainedModel(state_dir / RESULT_FOLDER, package, progress)
    return AnswerResult(task, state_dir / f"{task}.json", store)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """Result of the task `train`: the package with the best θ.

    Attributes:
        folder: of the trained package.
        package: that the federation began with.
        progress: of the federation; holds θ.
    """

    folder: Path
    package: ModelPackage
    progress: Progress

    def save(self) -> None:
        """See `Result`; file by file, each whole or not at all."""
        version, theta = self.progress.best
        trained = replace(self.package, initial=np.array(theta))
        try:
            trained.save(self.folder, lambda path, data: write_whole(path, data, _READABLE))
        except (OSError, ConfigError) as error:
            raise StoreError(
                f"the trained model is not written: {error}; its weights are safe in the store"
                " beside it: mend the disk and start again"
            ) from error
        log.info("version %d written to %s%s", version, self.folder, self._why())

    def text(self) -> str:
        """See `Result`."""
        if not self.progress.version:
            return f"nothing was trained: {self.folder} holds the model as it began"
        return f"trained model: {self.folder}{self._why()}"

    def _why(self) -> str:
        """Returns which version it is, and why; empty when nothing says which is the best."""
        course = self.progress.course
        if (best := course.best) is None or self.progress.best[0] != best.version:
            return ""
        figure = f"{course.rule.metric} {best.value:.4f}"
        return f" (round {best.round_id}, the best of {course.committed}: {figure})"


@dataclass(frozen=True, eq=False)
class AnswerResult:
    """Result of other tasks: the table or the values of the latest answered round.

    Attributes:
        task: name of the task.
        path: of the result's file.
        store: with the round's record.
    """

    task: str
    path: Path
    store: Store

    def save(self) -> None:
        """See `Result`; writes whole or not at all, and nothing before a round was answered."""
        record = self.store.answer()
        if record is None:
            return
        text = json.dumps(answer_document(record), indent=1) + "\n"
        try:
            write_whole(self.path, text.encode())
        except (OSError, ConfigError) as error:
            raise StoreError(
                f"{self.path.name} is not written: {error}; the answers are safe in the store"
                " beside it: mend the disk and start again"
            ) from error
        log.info("%s written to %s", self.task, self.path)

    def text(self) -> str:
        """See `Result`."""
        record = self.store.answer()
        if record is None:
            return f"no {self.task} yet: no round was answered"
        return "\n".join([*answer_lines(record), "", f"{self.task}: {self.path}"])
