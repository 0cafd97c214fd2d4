"""Records of rounds; the names are those of `report.json`."""

from __future__ import annotations

from typing import Literal

import msgspec

from learning.aggregation.norm_bound import Norms
from learning.phases.statistics import Moments

_FALLING = frozenset({"loss", "mae", "mse", "rmse"})

#: Fields of a record that grow with the number of agents, classes or columns.
_PER_AGENT_OR_CLASS = (
    "agents",
    "clipped",
    "declined",
    "details",
    "left_out",
    "matrices",
    "statistics",
    "values",
)

RoundStatus = Literal["committed", "answered", "abandoned", "undone"]


def falls(metric: str) -> bool:
    """Whether a metric gets better by falling, whatever stands before its name (`unseen_mae`)."""
    return metric.rpartition("_")[2] in _FALLING


class AgentResult(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's part in a round.

    Attributes:
        task: "train" for one whose update counted, "evaluate" for one that only measured.
        loss: on its held-out rows with the round's new θ, when evaluated; else while training.
        metrics: likewise.
        num_examples: rows learned from, or measured on when it only measured; where rows have
            weights, the sum of these.
        label_shift: label minus predicted class, where most of its rows have the same difference;
            0: they have not, or nobody looked.
    """

    task: Literal["train", "evaluate"]
    loss: float
    metrics: dict[str, float]
    num_examples: int
    label_shift: int = 0


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round.

    Attributes:
        round_id: counts from 1, abandoned rounds included.
        status: committed; answered, where no θ is made; abandoned below the minimum; or undone:
            committed, and an operator went back to a version before it.
        version: of θ after the round.
        asked, reported, refused: agents asked to learn, updates that count, answers refused.
        stale: updates that began in an earlier round and count in this one.
        population: agents that take part in training, online or not.
        statistics: columns of all devices together, by name.
        values: result of another phase that is a task by itself: numbers by name.
        left_out: reason by agent whose update or measurement was left out.
        clipped: by agent whose update was shortened, the factor.
        norms: of the updates' vectors, refused ones included, by name.
        held_back: why the round's updates were not committed; empty when they were, or were too
            few.
        refusals: number by reason.
        declined: reason by agent, of agents that said that they do not learn, or did not measure.
        details: by reason, the name and the words of the first agent that declined for it.
        loss: mean over the held-out rows of all that learn (weighed by rows), with the new θ; the
            mean training loss when nothing was evaluated; None when nothing is known.
        metrics: likewise; `unseen_…` are of agents that only evaluate, `central_…` of the
            coordinator's own data.
        absent: why, by name of a metric of these rows that has no value.
        matrices: confusion matrices, rows are true classes, columns predicted ones; `unseen_…` and
            `central_…` likewise.
        train_loss, train_metrics: mean over the last local epoch, weighed by rows.
        bytes_up: of PUBLISH packets from agents, as they arrived.
        bytes_down: of PUBLISH packets to agents, as they reported.
        seconds: from the announcement to the end of the evaluation.
        evaluated: whether loss and metrics are of held-out rows.
        measured: agents whose sums make loss and metrics.
        measured_unseen: agents whose sums make the `unseen_…` metrics.
        closed: goal, everyone (nobody left to wait for) or deadline.
        best_round: whose version is the best so far by `stop.metric`; 0 while nothing says it.
        agents: by id.
    """

    round_id: int
    status: RoundStatus
    version: int
    asked: int
    reported: int
    refused: int
    refusals: dict[str, int]
    declined: dict[str, str]
    loss: float | None
    metrics: dict[str, float]
    train_loss: float | None
    train_metrics: dict[str, float]
    bytes_up: int
    bytes_down: int
    seconds: float
    closed: str
    evaluated: bool = False
    measured: int = 0
    measured_unseen: int = 0
    agents: dict[str, AgentResult]
    matrices: dict[str, list[list[float]]] = {}
    absent: dict[str, str] = {}
    details: dict[str, str] = {}
    best_round: int = 0
    stale: int = 0
    population: int = 0
    left_out: dict[str, str] = {}
    clipped: dict[str, float] = {}
    norms: dict[str, Norms] = {}
    held_back: str = ""
    statistics: dict[str, Moments] = {}
    values: dict[str, tuple[float, ...]] = {}

    @property
    def summary(self) -> RoundRecord:
        """The record without what grows with the number of agents or classes."""
        return msgspec.structs.replace(self, **{key: {} for key in _PER_AGENT_OR_CLASS})

    def value(self, metric: str) -> float | None:
        """The loss or a metric of the record; None when it has none of that name."""
        return self.loss if metric == "loss" else self.metrics.get(metric)


def new_record(round_id: int, version: int, asked: int) -> RoundRecord:
    """The record of a round of which nothing is known but whom it asks."""
    return RoundRecord(
        round_id=round_id,
        status="abandoned",
        version=version,
        asked=asked,
        reported=0,
        refused=0,
        refusals={},
        declined={},
        loss=None,
        metrics={},
        train_loss=None,
        train_metrics={},
        bytes_up=0,
        bytes_down=0,
        seconds=0.0,
        closed="",
        agents={},
    )
