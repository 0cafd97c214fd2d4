"""Console output of a run: progress while it runs, tables at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Table

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from coordinator.report import answer_lines, bytes_text, decline_lines, matrix_lines
from fedge.console import counted
from fedge.limits import printable
from fleet.participants import Participants
from fleet.report import ANSWER, ended_rounds, federated_figure, verdicts
from fleet.scenario import Scenario
from models.package.spec import TensorSpec, bare_metric
from models.package.units import amount_text

#: Agents shown in the closing table.
_TABLE_ROWS = 40
#: Characters of a round's line beside loss and metrics.
_FIXED = 40
#: Characters of the narrowest column of a loss or metric, and of that of who reported.
_NARROWEST, _REPORTED = 9, 10
#: Agents whose clients are told before the first round.
_NAMED = 10
#: Agents shown after each round, with `show: agents`.
_AGENTS_OF_A_ROUND = 20
#: Characters of why a round was held back.
_HELD_BACK = 80


class LiveWatcher:
    """Shows a run on a console: one line for each round, and a progress bar on a terminal.

    Args:
        console: to write on.
        show: "agents" adds loss and metrics of every agent to every round.
    """

    def __init__(self, console: Console, show: str) -> None:
        self._console = console
        self._show = show
        self._columns: list[str] = []
        self._rounds = 0
        self._reported = _REPORTED
        self._is_headed = True
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> LiveWatcher:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, participants: Participants, config: CoordinatorConfig, broker: str) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        spec, scenario, print_ = participants.spec, participants.scenario, self._console.print
        print_(f"[bold]{scenario.name}[/bold]: {_text(scenario.description)}")
        print_(f"[dim]licence: {_text(scenario.licence)}[/dim]", highlight=False)
        task = name_of(config.task)
        is_training = task == "train"
        self._rounds = config.rounds if is_training else 1
        self._reported = max(_REPORTED, 2 * len(str(len(participants.asked))) + 2)
        if not is_training:
            asked = sum(task in participants.phases(name) for name in participants.rows)
            print_(f"{asked} agents are asked for {_text(task)}; nothing is trained")
            print_(f"broker {_text(broker)}\n")
        else:
            learners = f"{len(participants.learners)} agents train"
            if participants.unseen:
                learners += (
                    f", {len(participants.unseen)} only measure ({', '.join(participants.unseen)})"
                )
            print_(f"model {_text(spec.name)}, {spec.size:,} parameters · {learners}")
            print_(
                f"broker {_text(broker)} · updates as {name_of(config.codec)}"
                f" · {config.rounds} rounds\n"
            )
            metrics = [m.name for m in spec.metrics if m.kind != "confusion"]
            groups = ["unseen_"] if participants.unseen else []
            groups += ["central_"] if config.evaluation.data is not None else []
            room = self._console.width - _FIXED - (self._reported - _REPORTED)
            self._columns, left = _columns(metrics, groups, room)
            if any(map(_group, self._columns)):
                print_(_columns_text(self._columns), "", sep="\n", highlight=False)
            if left:
                names = ", ".join(map(_title, left))
                print_(f"[dim]no room for {names}: see report.json[/dim]\n", highlight=False)
        if participants.clients:
            named = [f"{agent} is {client!r}" for agent, client in participants.clients.items()]
            if len(named) > _NAMED:
                named[_NAMED:] = [f"{len(named) - _NAMED} more in report.json"]
            print_(_text(f"agents are numbered: {', '.join(named)}\n"))
        self._is_headed = False
        self._task = self._progress.add_task("rounds", total=self._rounds)

    def round(self, record: RoundRecord) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        if not self._is_headed:  # not before: what is noted until then stands above it
            self._console.print(self._heading())
            self._is_headed = True
        # `print_result` shows who declined in an answered round, with its answer.
        declined = [] if record.status == "answered" else decline_lines(record)
        for line in (self._line(record), *(f"       {reason}" for reason in declined)):
            self._console.print(_text(line), highlight=False)
        if self._show == "agents":
            for name, agent in islice(record.agents.items(), _AGENTS_OF_A_ROUND):
                values = [f"loss {agent.loss:.4f}"]
                values += [f"{key} {value:.4f}" for key, value in agent.metrics.items()]
                self._console.print(f"        {name:16s} {'  '.join(values)}", highlight=False)
            if (rest := len(record.agents) - _AGENTS_OF_A_ROUND) > 0:
                self._console.print(f"        and {rest:,} more", highlight=False)
        if self._task is not None and record.status != "abandoned":
            # The version, since a run that goes on has rounds that are not shown.
            self._progress.update(self._task, description="rounds", completed=record.version or 1)

    def waiting(self, eligible: int, wanted: int) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        if self._task is not None:
            text = f"waiting for agents: {eligible} of {wanted} can take part"
            self._progress.update(self._task, description=text)

    def note(self, text: str) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        self._console.print(f"[dim]{_text(text)}[/dim]", highlight=False)

    def working(self, what: str, done: int, of: int) -> None:
        """See `fleet.runs.watcher.Watcher`."""
        if self._task is None:
            return
        words = {"own": "training each agent alone", "pooled": "training on pooled data"}
        if what in words:
            self._progress.update(self._task, description=words[what], completed=done, total=of)
        elif of > 1:  # a phase of the round: the bar counts rounds
            text = f"rounds ({what}: {done} of {of} parts of the fleet)"
            self._progress.update(self._task, description=text)

    def _heading(self) -> str:
        """Returns the heading: over columns of others than learning agents, whose they are."""
        above = " " * (5 + self._reported)
        for group, names in groupby(self._columns, _group):
            width = sum(map(_width, names))
            above += f"  {f' {group} ':─^{width - 2}s}" if group else " " * width
        cells = "".join(f"{bare_metric(name):>{_width(name)}s}" for name in self._columns)
        line = f"{'round':>5s}{'reported':>{self._reported}s}{cells}{'up':>9s}{'down':>9s}{'s':>7s}"
        return f"[bold]{line}[/bold]" if above.isspace() else f"{above}\n[bold]{line}[/bold]"

    def _line(self, record: RoundRecord) -> str:
        line = f"{record.round_id:>5d}"
        line += _cell(f"{record.reported}/{record.asked}", self._reported)
        for name in self._columns:
            value = record.value(name)
            line += _cell("–" if value is None else _figure(value), _width(name))
        line += _cell(bytes_text(record.bytes_up), 9) + _cell(bytes_text(record.bytes_down), 9)
        line += _cell(f"{record.seconds:.2f}", 7)
        if record.refused:
            line += "  refused: " + ", ".join(f"{n} {r}" for r, n in record.refusals.items())
        if record.held_back:
            line += f"  held back, repeated: {record.held_back[:_HELD_BACK]}"
        elif record.status == "abandoned":
            line += "  abandoned"
        return line


def _text(words: str) -> str:
    """Returns text from people and programs, safe for rich: control codes and markup escaped."""
    return escape(printable(words))


def _figure(value: float) -> str:
    """Returns a loss or metric with four decimals; one that has no room for them as 1.388e+07."""
    text = f"{value:.4f}"
    return text if len(text) < _NARROWEST else f"{value:.3g}"


def _cell(text: str, width: int) -> str:
    """Returns a text to the right of a column, with a space before it even where it is longer."""
    return f" {text:>{width - 1}s}"


def _columns(
    metrics: Sequence[str], groups: Sequence[str], room: int
) -> tuple[list[str], list[str]]:
    """Returns the columns of the rounds' table in their order, and those without room.

    Args:
        metrics: of the model.
        groups: beginnings of the names of what others than learning agents measure.
        room: characters for all these columns.
    """
    everything = ["loss", *metrics]
    everything += [group + name for group in groups for name in ("loss", *metrics)]
    # Losses of others give way first, where the model has metrics; then what was added last.
    spare = [f"{group}loss" for group in reversed(groups)] if metrics else []
    spare += [name for name in reversed(everything) if name != "loss" and name not in spare]
    left: list[str] = []
    for name in spare:
        if sum(_width(column) for column in everything) <= room:
            break
        everything.remove(name)
        left.insert(0, name)
    return everything, left


def _columns_text(columns: Sequence[str]) -> str:
    """Returns a line that says on whose rows the figures of a round are measured."""
    words = {
        "": "held-out rows of agents that train",
        "unseen": "rows of those that only measure",
        "central": "the coordinator's own rows (evaluation.data)",
    }
    groups = dict.fromkeys(map(_group, columns))
    return "loss and metrics: " + "; ".join(
        f"{group}: {words[group]}" if group else words[group] for group in groups
    )


def _title(column: str) -> str:
    return column.replace("unseen_", "unseen ").replace("central_", "central ")


def _width(column: str) -> int:
    return max(_NARROWEST, len(bare_metric(column)) + 2)


def _group(column: str) -> str:
    """Returns whose rows a column is measured on; empty for those of agents that learn."""
    name = bare_metric(column)
    return column.removesuffix(name).removesuffix("_")


def print_result(
    console: Console, scenario: Scenario, report: dict[str, Any], *, judge: bool
) -> bool:
    """Prints the closing tables; returns False when a limit of the scenario was not kept.

    Args:
        console: to write on.
        scenario: that was run.
        report: of the run.
        judge: check the limits; not for a run with fewer agents or rounds.
    """
    if "statistics" in report or ANSWER in report:
        _print_answer(console, report)
        return True
    rounds = ended_rounds(report)
    if any(record["agents"] for record in rounds):
        console.print(_agents_table(rounds))
    final = report["final"]
    console.print(
        f"{counted(len(rounds), 'round')} in {final['seconds']:.1f} s · "
        f"{bytes_text(final['bytes_up'])} up, {bytes_text(final['bytes_down'])} down · "
        f"{_text(report['runtime'])} · broker {report['broker']}",
        highlight=False,
    )
    if bounded := bounded_text(rounds):
        console.print(_text(bounded), highlight=False)
    console.print()
    for name, found in final["in_units"].items():
        line = f"{name}: {amount_text(found['value'], found['unit'])}"
        console.print(_text(line), "", sep="\n", highlight=False)
    if central := {k: v for k, v in final["metrics"].items() if k.startswith("central_")}:
        values = ", ".join(f"{bare_metric(key)} {value:.4f}" for key, value in central.items())
        console.print(
            _text(f"on the coordinator's own rows: {values}"), "", sep="\n", highlight=False
        )
    for name, matrix in final["matrices"].items():
        lines = matrix_lines(name, matrix, _classes(report, name))
        console.print("\n".join([*lines, ""]), highlight=False, markup=False)
    if report["baselines"]:
        console.print(_comparison_table(scenario, report))
    if "detection" in report:
        console.print(_detection_table(scenario, report))
    kept = True
    for good, words in verdicts(scenario, report) if judge else []:
        console.print(f"[green]✓[/green] {words}" if good else f"[red]✗ {words}[/red]")
        kept = kept and good
    return kept


def print_interrupted(
    console: Console,
    scenario: Scenario,
    report: dict[str, Any],
    folder: Path,
    command: Sequence[str],
) -> None:
    """Prints the closing tables of an interrupted run, and how to go on with it.

    Args:
        console: to write on.
        scenario: that was run.
        report: of the run.
        folder: of the run.
        command: that goes on, in words.
    """
    print_result(console, scenario, report, judge=False)
    rounds = report["configuration"]["federation"]["rounds"]
    done = sum(record["status"] == "committed" for record in ended_rounds(report))
    what = f"after {done} of {rounds} rounds" if done < rounds else "before all baselines"
    if unmeasured := report.get("unmeasured_round"):
        what += f", before round {unmeasured} was measured"
    lines = (
        f"interrupted {what}; report: {folder / 'report.json'} · model: {folder / 'model'}",
        f"to go on: {shlex.join(command)}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _classes(report: dict[str, Any], metric: str) -> Sequence[str]:
    """Returns the names of the classes that a matrix tells apart: of the first target, or its."""
    targets = msgspec.convert(report["targets"], tuple[TensorSpec, ...])
    output = bare_metric(metric).rpartition("_")[0]
    named = next((t for t in targets if t.name == f"target_{output}"), None)
    return named.classes if named else report["classes"]


def _print_answer(console: Console, report: dict[str, Any]) -> None:
    rounds = (msgspec.convert(each, RoundRecord) for each in reversed(report["rounds"]))
    record = next(record for record in rounds if record.status == "answered")
    lines = ["", *answer_lines(record), ""]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def bounded_text(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many updates were shortened or refused for their length; empty: none was."""
    shortened = sum(len(record.get("clipped", {})) for record in rounds)
    refused = sum(record["refusals"].get("norm", 0) for record in rounds)
    if not shortened and not refused:
        return ""
    reported = sum(record["reported"] for record in rounds)
    return (
        f"norm_bound: {shortened:,} of {reported:,} updates shortened, {refused:,} refused "
        "(--set 'norm_bound={clip: 0, refuse: 0}' takes all as they are)"
    )


def _agents_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    last = next(r for r in reversed(rounds) if r["status"] == "committed")
    metrics = list(dict.fromkeys(m for agent in last["agents"].values() for m in agent["metrics"]))
    table = Table(title=f"agents after round {last['round_id']}", title_justify="left")
    table.add_column("agent")
    for name in ("rows", "loss", *metrics):
        table.add_column(name, justify="right")
    agents = last["agents"].items()
    for name, agent in list(agents)[:_TABLE_ROWS]:
        label = f"{name} (only measured)" if agent["task"] == "evaluate" else name
        # One agent's rows may not define a metric: no AUC without a positive row.
        found = [agent["metrics"].get(metric) for metric in metrics]
        values = ["-" if value is None else f"{value:.4f}" for value in found]
        table.add_row(label, f"{agent['num_examples']:,}", f"{agent['loss']:.4f}", *values)
    if len(agents) > _TABLE_ROWS:
        table.add_row(f"and {len(agents) - _TABLE_ROWS:,} more: see report.json")
    return table


#: Labels of the compared models.
_OWN = "one agent's rows alone"
_FEDERATED = "federated: all agents' rows, none of them moved"
_POOLED = "all rows pooled in one place"


def _comparison_table(scenario: Scenario, report: dict[str, Any]) -> Table:
    metric, figures = scenario.baselines.metric, report["baselines"]
    places = {"unseen": "agents that took no part", "own": "all agents' held-out rows"}
    shown = [
        where
        for where in places
        if (where == "own" or scenario.unseen) and any(k.endswith(f"_on_{where}") for k in figures)
    ]
    table = Table(title=metric, title_justify="left")
    table.add_column("trained on")
    for where in shown:
        table.add_column(f"on {places[where]}", justify="right")
    for label, kind in ((_OWN, "own"), (_FEDERATED, "federated"), (_POOLED, "pooled")):
        values = [
            federated_figure(scenario, report, where)
            if kind == "federated"
            else figures.get(f"{kind}_on_{where}")
            for where in shown
        ]
        if any(value is not None for value in values):
            table.add_row(label, *("-" if value is None else f"{value:.4f}" for value in values))
    distance = figures.get("least_squares_distance")
    if distance is not None:
        table.add_row("largest distance of a parameter to the exact solution", f"{distance:.2e}")
    return table


def _detection_table(scenario: Scenario, report: dict[str, Any]) -> Table:
    assert scenario.detection is not None
    where = "agents that took no part" if scenario.unseen else "all agents' held-out rows"
    table = Table(
        title=f"finding {_text(scenario.detection.label)} on {where}", title_justify="left"
    )
    for name in ("trained on", "area under the curve", "found", "false alarms"):
        table.add_column(name, justify="left" if name == "trained on" else "right")
    for label, kind in ((_OWN, "own"), (_FEDERATED, "federated"), (_POOLED, "pooled")):
        if kind in report["detection"]:
            figures = report["detection"][kind]
            shares = [f"{figures[name]:.1%}" for name in ("found", "false_alarms")]
            table.add_row(label, f"{figures['auc']:.4f}", *shares)
    return table
