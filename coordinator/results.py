"""From what agents sent to a round's record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from coordinator.records import AgentResult, RoundRecord
from models.program import Sums


def add_sums(parts: Iterable[Sums]) -> Sums | None:
    """The sum of sums; None when they weigh nothing."""
    loss = weight = 0.0
    metrics: dict[str, float] = {}
    for part in parts:
        loss += part.loss
        weight += part.weight
        for name, value in part.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    return Sums(loss, weight, metrics) if weight > 0 else None


def with_training(record: RoundRecord, trained: Mapping[str, Sums]) -> RoundRecord:
    """The record with what was seen while training, also as its loss until it is evaluated."""
    total = add_sums(trained.values())
    means = {} if total is None else total.means()
    loss = means.pop("loss", None)
    return msgspec.structs.replace(
        record,
        loss=loss,
        metrics=means,
        train_loss=loss,
        train_metrics=means,
        agents={name: _result("train", sums, sums.weight) for name, sums in trained.items()},
    )


def with_evaluation(
    record: RoundRecord,
    trained: Mapping[str, Sums],
    evaluated: Mapping[str, Sums],
    unseen: set[str],
) -> RoundRecord:
    """The record with what the new θ does on held-out rows.

    Args:
        record: so far.
        trained: sums of the agents that learned in this round.
        evaluated: sums of the agents that measured.
        unseen: those of them that never learn; their means are called `unseen_…`, and the
            record's loss and metrics are of the others, where there are others.
    """
    known = add_sums(sums for name, sums in evaluated.items() if name not in unseen)
    new = add_sums(sums for name, sums in evaluated.items() if name in unseen)
    means = dict(known.means()) if known else {}
    if new:
        means |= {f"unseen_{name}": value for name, value in new.means().items()}
    loss = means.pop("loss", means.get("unseen_loss", record.loss))
    agents = dict(record.agents)
    for name, sums in evaluated.items():
        rows = trained[name].weight if name in trained else sums.weight
        agents[name] = _result("evaluate" if name in unseen else "train", sums, rows)
    return msgspec.structs.replace(
        record,
        loss=loss,
        metrics=means or record.metrics,
        evaluated=record.evaluated or bool(evaluated),
        agents=dict(sorted(agents.items())),
    )


def _result(task: str, sums: Sums, rows: float) -> AgentResult:
    means = sums.means()
    return AgentResult(
        task="train" if task == "train" else "evaluate",
        loss=means.pop("loss"),
        metrics=means,
        num_examples=int(rows),
    )
