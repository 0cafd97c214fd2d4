"""Course: how far a federation is, and which of its versions is the best."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import msgspec

from coordinator.records.fair import FEWEST
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

    def measured(self, record: RoundRecord) -> int:
        """Returns how many agents made the figure; the coordinator's own rows are enough alone."""
        if self.metric.startswith("central_"):
            return FEWEST
        return record.measured_unseen if self.metric.startswith("unseen_") else record.measured

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
        measured: agents whose measurements make it.
    """

    round_id: int
    version: int
    value: float
    measured: int = 0


class Course(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Course of a federation after a round; stored with the version of θ.

    Devices say themselves how good a version is. So one or two do not outdo three or more: what
    they measured counts only until three or more have measured.

    Attributes:
        rule: says which version is the best.
        last_round: the last round's id; 0 before the first.
        is_unmeasured: the last round's version is yet to be measured.
        committed: rounds that made a version; without those that were undone.
        answered: rounds that answered a task that makes no θ.
        value: the latest figure by the rule.
        best: the best round; of equal ones the first.
        without_gain: figures since, none of them better.
        first_loss: of the first round that had one; if possible of one that three agents measured.
        first_measured: agents whose measurements make it.
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
    first_measured: int = 0
    norms: dict[str, KnownNorms] = {}

    @property
    def best_version(self) -> int:
        """The best version of θ; 0 when none is known."""
        return 0 if self.best is None else self.best.version

    @property
    def usual_loss(self) -> float | None:
        """The first loss; None when one or two agents alone say it."""
        return self.first_loss if self.first_measured >= FEWEST else None

    def after(self, record: RoundRecord) -> Course:
        """Returns the course after a round; one that was measured later counts once."""
        is_new = not (self.is_unmeasured and record.round_id == self.last_round)
        counted = msgspec.structs.replace(
            self,
            last_round=record.round_id,
            is_unmeasured=False,
            committed=self.committed + (is_new and record.status == "committed"),
            answered=self.answered + (record.status == "answered"),
        )
        if record.loss is not None and (
            self.first_loss is None or self.first_measured < FEWEST <= record.measured
        ):
            counted = msgspec.structs.replace(
                counted, first_loss=record.loss, first_measured=record.measured
            )
        value, measured = self.rule.value(record), self.rule.measured(record)
        if value is None or (self.best is not None and measured < FEWEST <= self.best.measured):
            return counted
        outdone = self.best is None or self.best.measured < FEWEST <= measured
        if (
            self.best is not None
            and not outdone
            and not self.rule.is_better(value, self.best.value)
        ):
            without_gain = self.without_gain + 1
            return msgspec.structs.replace(counted, value=value, without_gain=without_gain)
        version = record.version if self.rule.is_measured(record) else 0
        best = Best(record.round_id, version, value, measured)
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
