"""Course: how far a federation is, and which of its versions is the best."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import msgspec

from coordinator.records.records import RoundRecord, falls
from learning.aggregation.norm_bound import KnownNorms


class Rule(msgspec.Struct, frozen=True):
    """Which figure of a round says how good its version is.

    Attributes:
        metric: of `stop.metric`.
        while_training: what was seen while training counts: nothing is evaluated.
    """

    metric: str = "loss"
    while_training: bool = False

    def value(self, record: RoundRecord) -> float | None:
        """Returns the figure of a committed round; None when it has none."""
        # What was seen while training says something else: it counts where nothing is evaluated.
        told = record.status == "committed" and (self.while_training or self.is_measured(record))
        return record.value(self.metric) if told else None

    def is_measured(self, record: RoundRecord) -> bool:
        """Returns whether the figure is of the round's version; else it is of the one before."""
        return record.evaluated or self.metric.startswith("central_")

    def is_better(self, value: float, than: float) -> bool:
        """Returns whether a figure is better than another."""
        return value < than if falls(self.metric) else value > than


class Best(msgspec.Struct, frozen=True):
    """The best version so far: its round, and the figure that says so.

    Attributes:
        round_id: of the round that made it.
        version: of θ; 0 when nothing was measured on held-out rows, and no version is known to be
            better than the latest.
        value: of the metric.
    """

    round_id: int
    version: int
    value: float


class Course(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Course of a federation after a round; stored with the version of θ.

    Attributes:
        rule: says which version is the best.
        last_round: the last round's id; 0 before the first.
        is_unmeasured: the last round's version is yet to be measured.
        committed: rounds that made a version; without those that were undone.
        answered: rounds that answered a task that makes no θ.
        value: the latest figure by the rule.
        best: the best round; of equal ones the first.
        without_gain: figures since, none of them better.
        first_loss: of the first round that had one.
        norms: usual ones of updates, by vector.
    """

    rule: Rule = Rule()
    last_round: int = 0
    is_unmeasured: bool = False
    committed: int = 0
    answered: int = 0
    value: float | None = None
    best: Best | None = None
    without_gain: int = 0
    first_loss: float | None = None
    norms: dict[str, KnownNorms] = {}

    @property
    def best_version(self) -> int:
        """The best version of θ; 0 when none is known."""
        return 0 if self.best is None else self.best.version

    def after(self, record: RoundRecord) -> Course:
        """Returns the course after a round; one that was measured later counts once."""
        is_new = not (self.is_unmeasured and record.round_id == self.last_round)
        counted = msgspec.structs.replace(
            self,
            last_round=record.round_id,
            is_unmeasured=False,
            committed=self.committed + (is_new and record.status == "committed"),
            answered=self.answered + (record.status == "answered"),
            first_loss=record.loss if self.first_loss is None else self.first_loss,
        )
        value = self.rule.value(record)
        if value is None:
            return counted
        if self.best is not None and not self.rule.is_better(value, self.best.value):
            without_gain = self.without_gain + 1
            return msgspec.structs.replace(counted, value=value, without_gain=without_gain)
        version = record.version if self.rule.is_measured(record) else 0
        best = Best(record.round_id, version, value)
        return msgspec.structs.replace(counted, value=value, best=best, without_gain=0)

    def by(self, rule: Rule, records: Iterable[RoundRecord]) -> Course:
        """Returns the course by another rule, as far as the records that are kept tell it.

        Args:
            rule: the new one.
            records: of rounds, in order.
        """
        told = reduce(Course.after, records, Course(rule))
        return msgspec.structs.replace(
            self, rule=rule, value=told.value, best=told.best, without_gain=told.without_gain
        )
