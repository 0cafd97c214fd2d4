"""Reports on a federation: lines for people and JSON for programs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from coordinator.fleet_data import fleet_findings, shift_findings
from coordinator.machine.standing import UNTIL_RELEASED, Standing
from coordinator.records.course import Best, Course, Rule
from coordinator.records.records import RoundRecord
from coordinator.statistics_table import statistics_lines
from coordinator.storage.agent_tables import KnownAgent
from coordinator.storage.store import Store
from fedge.limits import printable
from models.package.spec import ModelSpec
from models.package.units import NO_UNITS, Units, metric_text, target_units

#: Classes up to which a confusion matrix is shown as a table.
_SHOWN_CLASSES = 12
_SHOWN_ROUNDS = 10
_SHOWN_NUMBERS = 12
_SHOWN_NAMES = 10
_SHOWN_ODD = 10


def round_line(record: RoundRecord, units: Units = NO_UNITS, progress: str = "") -> str:
    """Returns one line about a round.

    Args:
        record: of the round.
        units: of the model's targets.
        progress: how far the federation is with it, for a round that made a version.
    """
    if record.held_back:
        return f"round {record.round_id} held back and repeated: {record.held_back}"
    if record.status == "abandoned":
        declined = ", ".join(f"{name} {reason}" for name, reason in sorted(record.declined.items()))
        return (
            f"round {record.round_id} abandoned: {record.reported} of {record.asked} reported"
            + (f" (declined: {declined})" if declined else "")
        )
    if record.status == "answered":
        parts = [f"round {record.round_id}", _answer_text(record)]
    else:
        parts = [f"round {record.round_id}", f"version {record.version}"]
        parts += [progress] if progress else []
    parts.append(f"{record.reported} of {record.asked} reported")
    if record.declined:
        reasons = Counter(record.declined.values())
        parts.append("declined: " + ", ".join(f"{reasons[r]} {r}" for r in sorted(reasons)))
    if record.refused:
        parts.append(f"{record.refused} refused")
    if record.clipped:
        parts.append(f"{len(record.clipped)} shortened")
    if record.left_out:
        parts.append(f"{len(record.left_out)} left out")
    if record.loss is not None:
        parts.append(loss_text(record.loss, evaluated=record.evaluated))
    metrics = sorted(record.metrics.items())
    parts += [f"{name} {metric_text(units, name, value)}" for name, value in metrics]
    parts += [f"no {name}: {why}" for name, why in sorted(record.absent.items())]
    if has_ended(record.status, record.seconds, evaluated=record.evaluated):
        parts.append(f"{bytes_text(record.bytes_up)} up, {bytes_text(record.bytes_down)} down")
        parts.append(f"{record.seconds:.2f} s")
    else:
        parts.append("being measured")
    if record.status == "undone":
        parts.append("undone")
    return " · ".join(parts)


def loss_text(loss: float, *, evaluated: bool) -> str:
    """Returns a loss with the name of what it is: on held-out rows, or while training."""
    return f"{'loss' if evaluated else 'loss while training'} {loss:.4f}"


def has_ended(status: str, seconds: float, *, evaluated: bool) -> bool:
    """Says whether a record is whole: that of a new version is stored before it is measured."""
    return status != "committed" or evaluated or seconds > 0


def decline_lines(record: RoundRecord) -> list[str]:
    """Returns a line for each reason to decline: the agents, and the first one's message."""
    return [_decline_line(record, reason) for reason in sorted(set(record.declined.values()))]


def _decline_line(record: RoundRecord, reason: str) -> str:
    names = sorted(name for name, why in record.declined.items() if why == reason)
    detail = record.details.get(reason, "")
    parts = [] if len(names) == 1 and detail else [", ".join(names[:_SHOWN_NAMES])]
    if len(names) > _SHOWN_NAMES:
        parts = [f"{parts[0]} and {len(names) - _SHOWN_NAMES} more"]
    return f"{len(names)} declined ({reason}): " + "; ".join(
        [*parts, *([detail] if detail else [])]
    )


def answer_lines(record: RoundRecord) -> list[str]:
    """Returns an answered round's table of columns or values, and its declines."""
    lines = [f"{record.reported} of {record.asked} agents answered", *decline_lines(record), ""]
    if not record.statistics:
        return list(map(printable, [*lines, *_value_lines(record.values)]))
    return [*map(printable, lines), *statistics_lines(record.statistics)]


def _answer_text(record: RoundRecord) -> str:
    if record.statistics:
        return f"statistics of {len(record.statistics)} columns"
    return "1 value" if len(record.values) == 1 else f"{len(record.values)} values"


def _value_lines(values: Mapping[str, Sequence[float]]) -> list[str]:
    """Returns a line for each value; long ones are cut and refer to the JSON."""
    lines = []
    for name, numbers in values.items():
        shown = ", ".join(f"{number:.6g}" for number in numbers[:_SHOWN_NUMBERS])
        rest = len(numbers) - _SHOWN_NUMBERS
        lines.append(f"{name}: {shown}" + (f" … {rest} more in the JSON" if rest > 0 else ""))
    return lines


def bytes_text(count: float) -> str:
    """Returns a number of bytes with a unit (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the loop returns")


def matrix_lines(
    name: str, matrix: Sequence[Sequence[float]], classes: Sequence[str] = ()
) -> list[str]:
    """Returns a confusion matrix as text, rows being true classes; large ones refer to the JSON.

    Args:
        name: as in a record's `matrices`.
        matrix: weight of rows by true and predicted class.
        classes: names; without them (or with others) classes are numbers.
    """
    if len(matrix) > _SHOWN_CLASSES:
        return [f"{name}: {len(matrix)} classes, see `matrices` in the JSON"]
    known = len(classes) == len(matrix)
    names = [str(each)[:16] for each in (classes if known else range(len(matrix)))]
    cells = [[f"{value:.10g}" for value in row] for row in matrix]
    width = max(len(text) for text in (*names, *(cell for row in cells for cell in row))) + 2
    label = max(max(map(len, names)), 4)
    head = "".join(f"{each:>{width}s}" for each in names)
    lines = [f"{name}: true class by row, predicted by column", f"  {'':{label}s}{head}"]
    return lines + [
        f"  {each:>{label}s}" + "".join(f"{cell:>{width}s}" for cell in row)
        for each, row in zip(names, cells, strict=True)
    ]


def status_document(
    store: Store, spec: ModelSpec | None = None, process: int | None = None
) -> dict[str, Any]:
    """Returns all content of the store as JSON-ready values, without θ itself.

    Args:
        store: of the federation.
        spec: of its model, for what is odd about the fleet's data.
        process: number of the process that runs on it; None: none does.
    """
    now, standings = time.time(), store.standings()
    return {
        "federation": store.meta("federation"),
        "model": store.meta("model"),
        "fingerprint": store.meta("fingerprint"),
        "process": process,
        "finished": store.meta("finished") or None,
        "signing_keys": (store.meta("signing_keys") or "").split(),
        "versions": store.versions(),
        "best": _best_document(store.course()),
        "rounds": [msgspec.to_builtins(record) for record in store.rounds()],
        "agents": {
            agent.agent_id: {
                **msgspec.to_builtins(agent.status),
                "state": agent.state(now),
                "heard_at": agent.heard_at,
                "standing": msgspec.to_builtins(standings.get(agent.agent_id, Standing())),
            }
            for agent in store.agents()
        },
        "data": [] if spec is None else data_lines(store, spec),
    }


def _best_document(course: Course) -> dict[str, Any] | None:
    if course.best is None or not course.best.version:
        return None
    return {**msgspec.to_builtins(course.best), "metric": course.rule.metric}


def best_line(rule: Rule, best: Best) -> str:
    """Returns a line about the best version."""
    return f"best: round {best.round_id}, version {best.version}, {rule.metric} {best.value:.4f}"


def data_lines(store: Store, spec: ModelSpec) -> list[str]:
    """Returns a line for each thing that is odd about the data of the fleet's devices."""
    statuses = {agent.agent_id: agent.status for agent in store.agents()}
    evaluated = next((r for r in reversed(store.rounds(latest=_SHOWN_ROUNDS)) if r.evaluated), None)
    shifts = [] if evaluated is None else shift_findings(evaluated.agents)
    return [found.text for found in (*fleet_findings(statuses, spec), *shifts)]


def status_text(
    store: Store,
    config: CoordinatorConfig,
    spec: ModelSpec | None = None,
    process: int | None = None,
) -> str:
    """Returns the status for an operator: state, latest rounds, agents.

    Args:
        store: of the federation.
        config: of the federation.
        spec: of its model, for names of classes and units; None shows classes as numbers.
        process: number of the process that runs on it; None: none does.
    """
    units = NO_UNITS if spec is None else target_units(spec)
    number, agents, course = store.number_of_rounds(), store.agents(), store.course()
    latest = store.rounds(latest=_SHOWN_ROUNDS)
    ended = store.meta("finished")
    is_training = name_of(config.task) == "train"
    progress = f" · {course.committed} of {config.rounds} rounds" if is_training else ""
    lines = [
        f"federation {store.meta('federation')} · model {store.meta('model')}{progress}"
        + (f" · finished ({ended})" if ended else "")
        + _running_text(process, ended)
    ]
    if number > len(latest):
        lines.append(f"… {number - len(latest)} earlier rounds: --json shows them")
    lines += [round_line(record, units) for record in latest]
    for name, matrix in (latest[-1].matrices if latest else {}).items():
        lines += matrix_lines(name, matrix, () if spec is None else spec.metric_classes(name))
    if course.best is not None and course.best.version:
        lines.append(best_line(course.rule, course.best))
    if (answer := store.answer()) is not None:
        lines += ["", *answer_lines(answer), ""]
    odd = [] if spec is None else data_lines(store, spec)
    lines += [f"data: {line}" for line in odd[:_SHOWN_ODD]]
    if len(odd) > _SHOWN_ODD:
        lines.append(f"data: {len(odd) - _SHOWN_ODD} more lines, see `data` in the JSON")
    now = time.time()
    lines.append(_online_line(agents, now))
    lines += _key_lines(store.meta("signing_keys") or "", agents)
    standings, following = store.standings(), course.last_round + 1
    against = {name: standing_text(each, following) for name, each in standings.items()}
    lines += [_agent_line(agent, now, against.get(agent.agent_id, "")) for agent in agents]
    return "\n".join(map(printable, lines))


def _running_text(process: int | None, ended: str | None) -> str:
    if process is None:
        return "" if ended else " · not running"
    return f" · running (process {process or 'unknown'})"


def _online_line(agents: Sequence[KnownAgent], now: float) -> str:
    states = Counter(agent.state(now) for agent in agents)
    paused = sum(
        agent.state(now) == "online" and bool(agent.status.pause_reason) for agent in agents
    )
    line = f"agents: {len(agents)} known, {states['online']} online"
    line += f", {paused} of them paused" if paused else ""
    return line + (f", {states['silent']} silent" if states["silent"] else "")


def standing_text(standing: Standing, next_round: int) -> str:
    """Returns what speaks against an agent, for the end of a line; empty when nothing does."""
    parts = []
    if standing.refusals:
        worst = sorted(standing.refusals.items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{count} {reason}" for reason, count in worst)
        parts.append(f"refused: {reasons}")
    for phase, silence in sorted(standing.silences.items()):
        again = f", asked again from round {silence.until_round}"
        later = again if silence.until_round > next_round else ""
        parts.append(f"silent in {phase} {silence.rounds} times running{later}")
    if not standing.may_be_asked(next_round):
        until = standing.quarantined_until_round
        end = "until it is released" if until == UNTIL_RELEASED else f"until round {until}"
        parts.append(f"in quarantine {end}: {standing.quarantine_reason}")
    return "".join(f" · {part}" for part in parts)


def _agent_line(agent: KnownAgent, now: float, against: str) -> str:
    status = agent.status
    rows = f"{status.train_examples:,} to learn, {status.test_examples:,} held out"
    problem = (
        f" · cannot take part: {status.unavailable_reason}" if status.unavailable_reason else ""
    )
    problem += f" · paused: {status.pause_reason}" if status.pause_reason else ""
    heard = f"heard {max(0.0, now - agent.heard_at):.0f} s ago"
    return (
        f"  {agent.agent_id:24s} {agent.state(now):8s} {heard:>15s} · {rows} · "
        f"{status.runtime or 'no runtime yet'}{problem}{against}"
    )


def _key_lines(signing_keys: str, agents: Sequence[KnownAgent]) -> list[str]:
    """Returns a line during a rotation of the signing key: agents that lack the new key."""
    newest, *older = signing_keys.split() or [""]
    if not older:
        return []
    behind = [a.agent_id for a in agents if a.status.keys and newest not in a.status.keys]
    knows = f"known to {len(agents) - len(behind)} of {len(agents)} agents"
    missing = f", not yet: {', '.join(behind[:10])}{' …' if len(behind) > 10 else ''}"
    return [f"new signing key {newest}: {knows}{missing if behind else ''}"]
