"""Central rows: the coordinator's own data, on which each new θ is measured before it counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import isfinite

from coordinator.records.records import RoundRecord
from coordinator.records.results import with_central
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage

log = logging.getLogger(__name__)

#: A loss of so many times the first is no loss of a model that learns.
_EXPLOSION = 100.0


class CentralRows:
    """Measures θ on the coordinator's own rows, once each.

    Args:
        package: the model.
        measure: sums of loss and metrics over the rows for a θ; None: there are no rows.

    Attributes:
        has_measured: since somebody set it to False; a measurement takes its time.
    """

    def __init__(self, package: ModelPackage, measure: Callable[[F32], Sums] | None) -> None:
        self.has_measured = False
        self._metrics = package.spec.metrics
        self._measure = measure
        self._latest: tuple[F32, Sums] | None = None
        self._first = 0.0

    def explosion(self, before: F32, after: F32) -> str:
        """Returns how the loss would explode with a new θ, in words; empty when it would not."""
        if not self._first and (sums := self._sums(before)) is not None:
            self._first = sums.loss / sums.weight
        sums = self._sums(after)
        if sums is None:
            return ""
        loss = sums.loss / sums.weight
        if isfinite(loss) and (not self._first or loss <= _EXPLOSION * self._first):
            return ""
        return f"loss on the coordinator's own rows {loss:.6g}, at first {self._first:.6g}"

    def measured(self, record: RoundRecord, theta: F32) -> RoundRecord:
        """Returns a committed round's record with the figures of the rows, if they can be had."""
        sums = self._sums(theta) if record.status == "committed" else None
        return record if sums is None else with_central(record, sums, self._metrics)

    def _sums(self, theta: F32) -> Sums | None:
        if self._measure is None:
            return None
        if self._latest is None or self._latest[0] is not theta:
            self.has_measured = True
            try:
                self._latest = (theta, self._measure(theta))
            except Exception:
                # θ moves on all the same: what devices sent is worth more than this figure.
                log.exception("the coordinator's own rows are not measured")
                return None
        sums = self._latest[1]
        return sums if sums.weight else None
