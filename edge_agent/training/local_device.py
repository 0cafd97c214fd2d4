"""LocalDevice: this device's model, rows and state, as the device half of a phase uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edge_agent.data.columns import NOT_ALLOWED, StatisticsConfig, allowed_columns
from edge_agent.data.dataset import LocalDataset
from edge_agent.machine.device_state import DeviceState
from edge_agent.training.trainer import DivergedError, train
from fedge.errors import DeclinedError, TrainingError
from learning.algorithms.algorithm import LocalRun, Summary
from learning.algorithms.training import TrainingPlan
from learning.phases.phase import Columns, Trained
from learning.vector.metrics import Sums, add_sums
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors
from models.runtime.program import Program
from models.runtime.rows import Rows, row_count


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A loaded program, and the personal layers that every device starts from.

    Attributes:
        program: one thread uses it at a time.
        personal: float32, [Q]; empty for most models.
    """

    program: Program
    personal: F32


class LocalDevice:
    """Device of one job; see `learning.phases.phase.Device`.

    Algorithms and phases see the shared part of θ only; personal layers are put behind it for the
    program, step along the plain gradient and stay here, as in FedPer (Arivazhagan et al. 2019,
    arXiv 1912.00818, Algorithm 1).

    Args:
        model: of the federation.
        dataset: of this device.
        state: of this device, for this model and algorithm.
        make_rng: makes the generator of this device and round; called when it is needed.
        cancelled: asked before every step and every batch; sleeps while the device must pause.
        statistics: what the device's owner allows.

    Attributes:
        personal: personal layers, as training leaves them.
        measured: the program's vector that was measured last on held-out rows; None: none was.
    """

    def __init__(
        self,
        model: LocalModel,
        dataset: LocalDataset,
        state: DeviceState,
        make_rng: Callable[[], np.random.Generator],
        cancelled: Callable[[], bool],
        statistics: StatisticsConfig = NOT_ALLOWED,
    ) -> None:
        self._program = model.program
        self._dataset = dataset
        self._state = state
        self._cancelled = cancelled
        self._statistics = statistics
        self._make_rng = make_rng
        self.personal = model.personal if state.personal is None else state.personal
        self.measured: F32 | None = None

    @cached_property
    def rng(self) -> np.random.Generator:
        """Random generator of this device and round."""
        return self._make_rng()

    @property
    def state(self) -> Vectors:
        """The algorithm's state on this device."""
        return self._state.vectors

    def train(self, run: LocalRun, training: TrainingPlan) -> Trained:
        """Trains on the training rows; see `Device.train`.

        Raises:
            DeclinedError: `training`: the model cannot take steps of so many rows.
            TrainingError: no rows, cancelled, or no longer finite; a number of the data that is far
                from what models take is named then.
        """
        rows = self._dataset.part("train")
        count = row_count(rows)
        problem = self._program.spec.step_problem(min(training.batch_size or count, count))
        if problem:
            raise DeclinedError("training", problem)
        start = self._whole(run.start)
        try:
            result = train(
                self._program, start, rows, training, self.rng, self._cancelled, run.direction
            )
        except DivergedError as error:
            if culprit := self._dataset.far_off():
                raise TrainingError(f"{error.what}: training diverged; {culprit}") from error
            raise
        size = self._program.spec.size
        if self.personal.size:
            self.personal = result.theta[size:].copy()
        summary = Summary(result.steps, result.steps * training.learning_rate)
        return Trained(
            result.theta[:size], summary, result.sums, result.num_examples, result.seconds
        )

    def loss(self, theta: F32) -> float:
        """Returns the mean loss over the training rows.

        Raises:
            TrainingError: no rows, all of weight 0, or cancelled.
        """
        sums = self._measure(theta, self._dataset.part("train"))
        if not sums.weight:
            raise TrainingError("no rows to learn from (none, or all of weight 0)")
        return sums.loss / sums.weight

    def evaluate(self, theta: F32) -> Sums:
        """Returns the sums of loss and metrics over the held-out rows."""
        self.measured = self._whole(theta)
        return self._measure(theta, self._dataset.part("test"))

    def columns(self) -> Columns:
        """Returns all rows' columns, if the owner allows it; see `allowed_columns`."""
        return allowed_columns(self._dataset, self._program.spec, self._statistics)

    def _whole(self, theta: F32) -> F32:
        """Returns θ and the personal layers as the one vector that the program takes."""
        return np.concatenate([theta, self.personal]) if self.personal.size else theta

    def _measure(self, theta: F32, rows: Rows) -> Sums:
        """Returns the sums of loss and metrics; may pause or be cancelled before each batch.

        Raises:
            TrainingError: cancelled.
        """
        return add_sums(self._batches(self._whole(theta), rows))

    def _batches(self, whole: F32, rows: Rows) -> Iterator[Sums]:
        size = max(self._program.spec.batch_sizes)
        for start in range(0, row_count(rows), size):
            if self._cancelled():
                raise TrainingError("cancelled")
            part = {name: array[start : start + size] for name, array in rows.items()}
            yield self._program.evaluate(whole, part)
