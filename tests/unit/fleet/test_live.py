"""Console output of a fleet run."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fleet.live import LiveWatcher, _columns, print_interrupted, print_result
from fleet.runs.resume import RunInterrupted
from fleet.scenario import load_scenario
from fleet.simulate import SimulateOptions, simulate
from fleet.virtual.simulate import SimulationOptions, simulate_scenario
from tests.unit.coordinator.test_stopping import record

SCENARIO = Path(__file__).parents[3] / "examples/house_price.yaml"


def test_text_of_logs_and_people_is_shown_literally() -> None:
    console = Console(file=io.StringIO(), width=200)
    watcher = LiveWatcher(console, "rounds")
    watcher.note("agent pi-1 ended with 2: error: [/etc/fedge] is missing [bold]\x1b[2J")
    watcher.round(record(0.5, refused=1, refusals={"[/x]": 1}))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert r"error: [/etc/fedge] is missing [bold]\x1b[2J" in said
    assert "refused: 1 [/x]" in said


def shown_round(**changes: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    watcher = LiveWatcher(console, "rounds")
    watcher._columns = ["loss", "mae", "r2"]
    watcher.round(record(0.5) if not changes else record(**{"loss": 0.5} | changes))
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_declines_are_shown_by_reason_with_one_agents_message() -> None:
    declined = {"pi-1": "training", "pi-2": "training", "pi-3": "too_hot"}
    details = {"training": "pi-2: the loss is nan [/x]", "too_hot": "pi-3: 90 degrees"}
    _, *lines = shown_round(declined=declined, details=details)
    assert lines == [
        "1 declined (too_hot): pi-3: 90 degrees",
        "2 declined (training): pi-1, pi-2; pi-2: the loss is nan [/x]",
    ]


def test_declines_of_an_answered_round_are_left_to_the_closing_table() -> None:
    declined, details = {"pi-1": "not_allowed"}, {"not_allowed": "pi-1: statistics.allow is false"}
    (line,) = shown_round(status="answered", declined=declined, details=details)
    assert "declined" not in line


@pytest.mark.parametrize(
    ("metrics", "groups", "room", "shown", "left"),
    [
        (["mae"], [], 40, ["loss", "mae"], []),
        (
            ["mae"],
            ["unseen_", "central_"],
            90,
            ["loss", "mae", "unseen_loss", "unseen_mae", "central_loss", "central_mae"],
            [],
        ),
        (
            ["mae"],
            ["unseen_", "central_"],
            40,
            ["loss", "mae", "unseen_mae", "central_mae"],
            ["unseen_loss", "central_loss"],
        ),
        ([], ["central_"], 30, ["loss", "central_loss"], []),
        (["mae", "r2"], ["unseen_"], 0, ["loss"], ["mae", "r2", "unseen_mae", "unseen_r2"]),
    ],
)
def test_columns_that_have_no_room_are_left_out_by_name(
    metrics: list[str], groups: list[str], room: int, shown: list[str], left: list[str]
) -> None:
    columns, without = _columns(metrics, groups, room)
    assert columns == shown
    assert set(left) <= set(without)
    assert sorted(columns + without) == sorted(
        ["loss", *metrics, *(g + m for g in groups for m in ("loss", *metrics))]
    )


def live_text(width: int, tmp_path: Path) -> str:
    """What a person sees of a simulation with agents that only measure and central rows."""
    rng = np.random.default_rng(1)
    held = {"features": rng.normal(size=(20, 2)).astype(np.float32)}
    np.savez(tmp_path / "held.npz", target=np.ones(20, np.float32), **held)
    changes = {
        "agents": 4,
        "unseen": ["site-3"],
        "partition.clients": 4,
        "federation.rounds": 2,
        "federation.evaluation.data": str(tmp_path / "held.npz"),
        "baselines": {},
    }
    console = Console(file=io.StringIO(), width=width, record=True)
    scenario = load_scenario(SCENARIO, changes)
    with LiveWatcher(console, "rounds") as watcher:
        options = SimulationOptions(tmp_path / "out", changes, trace=False)
        report = simulate_scenario(SCENARIO, options, watcher)
    print_result(console, scenario, report, judge=False)
    return console.export_text()


def test_central_and_unseen_metrics_have_columns_with_their_values(tmp_path: Path) -> None:
    text = live_text(140, tmp_path)
    (number,) = [n for n, line in enumerate(text.splitlines()) if line.startswith("round")]
    above, heading = text.splitlines()[number - 1 : number + 1]
    assert heading.split() == ["round", "reported", *["loss", "mae"] * 3, "up", "down", "s"]
    assert heading.index("loss", 30) > above.index("─ unseen ─") - 10
    assert above.index(" unseen ") < above.index(" central ") < len(heading)
    words = " ".join(text.split())  # the line may be wrapped
    assert "; central: the coordinator's own rows (evaluation.data) " in words
    rows = text.splitlines()[number + 1 : number + 3]
    assert len(rows) == 2
    assert all("–" not in row and len(row.rstrip()) == len(heading) for row in rows)
    assert "on the coordinator's own rows: loss " in text


def test_a_narrow_terminal_has_the_table_without_wrapped_lines(tmp_path: Path) -> None:
    text = live_text(80, tmp_path)
    (heading,) = [line for line in text.splitlines() if line.startswith("round")]
    assert heading.split() == ["round", "reported", "loss", *["mae"] * 3, "up", "down", "s"]
    assert len(heading) <= 80
    assert "no room for unseen loss, central loss: see report.json" in text


def test_columns_of_large_numbers_do_not_run_together() -> None:
    (line,) = shown_round(
        asked=20_000,
        reported=19_995,
        loss=13_881_953.3013,
        metrics={"mae": -3561.7414, "r2": -0.25},
        bytes_up=1_013_300_000,
        bytes_down=1_013_300_000,
        seconds=12_345.678,
    )
    assert line.split()[:5] == ["1", "19995/20000", "1.39e+07", "-3.56e+03", "-0.2500"]
    assert line.split()[-1] == "12345.68"


def test_what_is_noted_before_the_first_round_stands_above_the_table(tmp_path: Path) -> None:
    """Notes something late, as the kernel is: it is chosen once the fleet is set up."""
    console = Console(file=io.StringIO(), width=140, record=True)
    changes = {"agents": 4, "federation.rounds": 1, "baselines": {}, "seed": 9}
    with LiveWatcher(console, "rounds") as watcher:
        options = SimulateOptions(tmp_path / "out", changes, mode="bytes", processes=1)
        report = simulate(SCENARIO, options, watcher)
    lines = console.export_text().splitlines()
    (number,) = [n for n, line in enumerate(lines) if line.startswith("round")]
    assert lines[number - 1].startswith("kernel: ")
    assert lines[number + 1].split()[0] == "1"
    assert any("broker none, seed 9 · mode bytes: as asked" in line for line in lines)
    assert report["run"]["options"]["mode_reason"] == "as asked"


def test_an_exact_simulation_says_that_it_is_one_and_why(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=140, record=True)
    changes = {"agents": 4, "federation.rounds": 1, "baselines": {}}
    with LiveWatcher(console, "rounds") as watcher:
        report = simulate(SCENARIO, SimulateOptions(tmp_path, changes), watcher)
    why = "4 agents in 1 round are few enough"
    assert f"broker in memory, seed 0 · mode exact: {why}" in console.export_text()
    options = report["run"]["options"]
    assert (options["mode"], options["mode_reason"]) == ("exact", why)


class _StoppedAtMeasuring(LiveWatcher):
    """Interrupted, as by Ctrl-C, when the second round is to be measured."""

    measured = 0

    def working(self, what: str, done: int, of: int) -> None:
        self.measured += what == "evaluate" and done == 0
        if self.measured == 2:
            raise KeyboardInterrupt


def test_a_round_that_was_not_measured_does_not_count_as_done(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=140, record=True)
    changes = {"agents": 4, "federation.rounds": 3, "baselines": {}}
    scenario = load_scenario(SCENARIO, changes)
    options = SimulateOptions(tmp_path, changes, mode="bytes", processes=1)
    with (
        pytest.raises(RunInterrupted) as caught,
        _StoppedAtMeasuring(console, "rounds") as watcher,
    ):
        simulate(SCENARIO, options, watcher)
    report = caught.value.report
    assert [record["round_id"] for record in report["rounds"]] == [1, 2]
    assert report["unmeasured_round"] == 2
    print_interrupted(console, scenario, report, tmp_path, ["fedge"])
    text = console.export_text()
    assert "\n1 round in " in text
    assert "interrupted after 1 of 3 rounds, before round 2 was measured; report:" in text

    with LiveWatcher(console, "rounds") as again:
        whole = simulate(SCENARIO, replace(options, mode="auto", resume=True), again)
    text = console.export_text()
    assert "mode bytes: as begun" in text
    shown = [line.split()[0] for line in text.splitlines() if "4/4" in line]
    assert shown == ["2", "3"]
    assert "unmeasured_round" not in whole
    assert whole["rounds"][1]["bytes_down"] > 0
