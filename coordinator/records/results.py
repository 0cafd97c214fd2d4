"""Puts the sums that agents sent into a round's record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from broker.protocol.messages import RoundResult
from coordinator.records.fair import fair_total, without_absurd
from coordinator.records.records import AgentResult, RoundRecord
from learning.vector.label_shift import label_shift
from learning.vector.metrics import (
    MetricSpec,
    Sums,
    absent_metrics,
    metric_matrices,
    metric_values,
)
from learning.vector.sums_table import SumsTable, values_by_agent

#: A record has a result of each agent, some 150 bytes, up to so many.
MOST_AGENTS = 10_000


def with_training(
    record: RoundRecord,
    trained: Mapping[str, Sums],
    metrics: Sequence[MetricSpec],
    usual_loss: float | None = None,
) -> RoundRecord:
    """The record with what was seen while training, also as its loss until it is evaluated."""
    kept, left_out = without_absurd(SumsTable.of(trained), usual_loss, metrics)
    total = fair_total(kept)
    means = metric_values(total, metrics) if total.weight else {}
    loss = means.pop("loss", None)
    return msgspec.structs.replace(
        record,
        loss=loss,
        metrics=means,
        absent=absent_metrics(total, metrics) if total.weight else {},
        train_loss=loss,
        train_metrics=means,
        measured=len(kept),
        left_out=record.left_out | left_out,
        agents=_trained_agents(trained, metrics),
    )


def with_evaluation(
    record: RoundRecord,
    evaluated: Mapping[str, Sums],
    unseen: set[str],
    metrics: Sequence[MetricSpec],
    usual_loss: float | None = None,
    label_shifts: Mapping[str, int] | None = None,
) -> RoundRecord:
    """The record with what the new θ does on held-out rows.

    Args:
        record: so far; its agents learned in this round.
        evaluated: sums of the agents that measured.
        unseen: those of them that never learn; their means are called `unseen_…`, and the
            record's loss and metrics are of the others, where there are others.
        metrics: of the model.
        usual_loss: see `fair.without_absurd`.
        label_shifts: of agents that found one themselves.
    """
    kept, left_out = without_absurd(SumsTable.of(evaluated), usual_loss, metrics)
    is_new = np.array([name in unseen for name in kept.names], bool)
    known, new = fair_total(kept.select(~is_new)), fair_total(kept.select(is_new))
    means = metric_values(known, metrics) if known.weight else {}
    tables = metric_matrices(known, metrics) if known.weight else {}
    absent = absent_metrics(known, metrics) if known.weight else {}
    if new.weight:
        absent |= {f"unseen_{name}": why for name, why in absent_metrics(new, metrics).items()}
        values, found = metric_values(new, metrics), metric_matrices(new, metrics)
        means |= {f"unseen_{name}": value for name, value in values.items()}
        tables |= {f"unseen_{name}": table for name, table in found.items()}
    loss = means.pop("loss", means.get("unseen_loss", record.loss))
    agents = dict(record.agents)
    shifted = _shifted(evaluated, label_shifts or {}, metrics)
    for name, rows, own in _few(evaluated, metrics):
        before = record.agents.get(name)
        learned = before is not None and before.task == "train"
        own_rows = before.num_examples if before is not None and learned else int(rows)
        agents[name] = AgentResult(
            task="train" if learned else "evaluate",
            loss=own.pop("loss"),
            metrics=own,
            num_examples=own_rows,
            label_shift=shifted.get(name, 0),
        )
    return msgspec.structs.replace(
        record,
        loss=loss,
        metrics=means or record.metrics,
        matrices=tables or record.matrices,
        absent=absent if evaluated else record.absent,
        evaluated=record.evaluated or bool(evaluated),
        measured=int((~is_new).sum()) or len(kept) or record.measured,
        measured_unseen=int(is_new.sum()),
        agents=dict(sorted(agents.items())),
        left_out=record.left_out | left_out,
    )


def _few(
    sums: Mapping[str, Sums], metrics: Sequence[MetricSpec]
) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Yields name, weight of the rows and figures of each agent; of a huge cohort of none."""
    table = SumsTable.of(sums)
    if len(table) <= MOST_AGENTS:
        weights = table.weight.tolist()
        yield from zip(table.names, weights, values_by_agent(table, metrics), strict=True)


def _trained_agents(
    trained: Mapping[str, Sums], metrics: Sequence[MetricSpec]
) -> dict[str, AgentResult]:
    return {
        name: AgentResult(
            task="train", loss=means.pop("loss"), metrics=means, num_examples=int(rows)
        )
        for name, rows, means in _few(trained, metrics)
    }


def _shifted(
    sums: Mapping[str, Sums], told: Mapping[str, int], metrics: Sequence[MetricSpec]
) -> dict[str, int]:
    """Returns the label shifts that agents found themselves, or their confusion matrices show."""
    if len(sums) > MOST_AGENTS or not any(metric.kind == "confusion" for metric in metrics):
        return dict(told)
    return {name: told.get(name) or _label_shift(each, metrics) for name, each in sums.items()}


def with_central(record: RoundRecord, sums: Sums, metrics: Sequence[MetricSpec]) -> RoundRecord:
    """The record with what the new θ does on the coordinator's own data, as `central_…`."""
    values, tables = metric_values(sums, metrics), metric_matrices(sums, metrics)
    return msgspec.structs.replace(
        record,
        metrics=record.metrics | {f"central_{name}": value for name, value in values.items()},
        absent=record.absent
        | {f"central_{name}": why for name, why in absent_metrics(sums, metrics).items()},
        matrices=record.matrices | {f"central_{name}": table for name, table in tables.items()},
    )


def round_result(record: RoundRecord, session: str) -> RoundResult:
    """Returns what everybody may know of a round."""
    return RoundResult(
        session=session,
        round_id=record.round_id,
        status="held_back" if record.held_back else record.status,
        version=record.version,
        loss=record.loss,
        metrics=record.metrics,
        asked=record.asked,
        reported=record.reported,
        refused=record.refused,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        seconds=round(record.seconds, 3),
        best_round=record.best_round,
    )


def _label_shift(sums: Sums, metrics: Sequence[MetricSpec]) -> int:
    """Returns the first shift that one of the confusion matrices shows; 0: none does."""
    found = (label_shift(np.array(table)) for table in metric_matrices(sums, metrics).values())
    return next(filter(None, found), 0)
