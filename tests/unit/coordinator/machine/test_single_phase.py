"""A task that is one phase of a plug-in: asked once, its result is the record's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from coordinator.config import RoundConfig
from coordinator.machine.events import Commit, Finished
from coordinator.report import answer_lines, round_line
from coordinator.result import make_result
from coordinator.storage.store import Store
from fedge.errors import UpdateRejected
from learning.phases.phase import Answer, CollectorContext, Device, Received, Request, Values
from learning.phases.registry import PHASES
from learning.registry import Settings
from tests.plugins import forgotten_plugins
from tests.unit.coordinator.machine.coordinator_stage import PACKAGE, FakeAgent, Stage, config, only


class TallestSettings(Settings, frozen=True, tag="test_tallest"):
    unit: str = "cm"


class Tallest:
    settings_type: ClassVar[type[Settings]] = TallestSettings
    rows: ClassVar[Literal["train", "test", "any"]] = "any"

    def __init__(self, settings: TallestSettings) -> None:
        self.settings = settings

    def answer(self, request: Request, device: Device) -> Answer:
        return Answer(values={"height": (180.0,)})

    def collector(self, context: CollectorContext) -> TallestCollector:
        return TallestCollector()


class TallestCollector:
    capacity: int | None = None

    def __init__(self) -> None:
        self.values: Values = {}

    def accept(self, agent_id: str, received: Received) -> None:
        if "height" not in received.values:
            raise UpdateRejected(agent_id, "tallest", "no height")
        (before,) = self.values.get("height", (0.0,))
        self.values = {"height": (max(before, received.values["height"][0]),)}


@pytest.fixture(autouse=True)
def tallest() -> Iterator[None]:
    with forgotten_plugins():
        PHASES.add(Tallest)
        yield


def asked(**changes: Any) -> tuple[Stage, FakeAgent, FakeAgent]:
    stage = Stage(config(task={"name": "test_tallest", "unit": "m"}, **changes))
    a, b = (FakeAgent(stage, name, phases=("train", "test_tallest")) for name in "ab")
    return stage, a, b


def test_the_plan_names_the_phase_with_its_settings() -> None:
    stage, _, _ = asked(round=RoundConfig(minimum=2))
    assert stage.plan.phase == {"name": "test_tallest", "unit": "m"}
    assert stage.plan.cohort.ids == ("a", "b")


def test_agents_that_do_not_take_part_in_the_phase_are_not_asked() -> None:
    stage, _, _ = asked(round=RoundConfig(minimum=2))
    FakeAgent(stage, "c")
    assert stage.plan.cohort.ids == ("a", "b")


def test_the_result_is_the_records_and_the_federation_ends() -> None:
    stage, a, b = asked(round=RoundConfig(minimum=2))
    a.report("result", values={"height": (181.0,)})
    actions = b.report("result", values={"height": (169.0,)})
    assert stage.record.status == "answered"
    assert stage.record.values == {"height": (181.0,)}
    assert (stage.record.reported, stage.record.version) == (2, 0)
    assert stage.record.summary.values == {}
    assert [action.reason for action in only(actions, Finished)] == ["answered"]
    assert not only(stage.actions, Commit)
    assert not np.any(stage.coordinator.progress.theta)


def test_an_answer_that_the_collector_refuses_is_counted_as_refused() -> None:
    stage, a, b = asked(round=RoundConfig(minimum=2))
    a.report("result", values={})
    b.report("result", values={"height": (169.0,)})
    stage.later(61)
    assert stage.record.status == "abandoned"
    assert stage.record.refusals == {"tallest": 1}


def test_the_result_is_shown_and_written_under_the_name_of_the_task(tmp_path: Path) -> None:
    stage, a, b = asked(round=RoundConfig(minimum=2))
    a.report("result", values={"height": (181.0,)})
    b.report("result", values={"height": (169.5,)})
    assert round_line(stage.record).startswith("round 1 · 1 value · 2 of 2 reported")
    assert answer_lines(stage.record) == ["2 of 2 agents answered", "", "height: 181"]
    with closing(Store(tmp_path, 0)) as store:
        store.save_round(stage.record)
        progress = stage.coordinator.progress
        found = make_result(stage.coordinator.config, tmp_path, PACKAGE, progress, store)
        found.save()
        assert found.text().splitlines()[-1] == f"test_tallest: {tmp_path}/test_tallest.json"
    written = json.loads((tmp_path / "test_tallest.json").read_text())
    assert written["values"] == {"height": [181.0]}
