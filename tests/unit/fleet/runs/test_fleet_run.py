"""End of a fleet run: cleanup, patience and reasons of abandoned rounds."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import pytest

from broker.link.settings import BrokerSettings
from coordinator.config import CoordinatorConfig, EvaluationConfig, RoundConfig
from fedge.errors import FleetError, LinkError
from fleet.runs import run
from fleet.runs.abandoned import why_abandoned
from fleet.runs.processes import CoordinatorEvent
from tests.unit.coordinator.test_stopping import record


class Notes:
    """A watcher that remembers notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def waiting(self, eligible: int, wanted: int) -> None: ...


def test_a_failed_cleanup_of_the_broker_keeps_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> int:
        raise LinkError("gone")

    monkeypatch.setattr(run, "clear_retained", fail)
    notes: Any = Notes()
    run._remove_retained(BrokerSettings(), "houses-1", notes)
    assert notes.said == [
        "retained messages of houses-1 are still on the broker: gone; "
        "remove fedge/v1/houses-1/# there"
    ]


def test_an_open_round_may_take_its_deadlines_when_agents_have_ended() -> None:
    config = CoordinatorConfig(
        federation="f",
        model="house_price",
        round=RoundConfig(deadline_s=900.0),
        evaluation=EvaluationConfig(deadline_s=50.0),
    )
    assert run.patience_s(config, waiting=True) == 90.0
    assert run.patience_s(config, waiting=False) == 90.0 + 900.0 + 50.0


def test_reasons_of_an_abandoned_round_are_listed() -> None:
    diverged = record(
        0.5,
        declined={"a": "training", "b": "training"},
        details={"training": "b: the loss is nan, learning_rate 1.0 may be too large"},
        refusals={"norm": 3},
    )
    assert why_abandoned(diverged) == (
        "2 declined (training): a, b; b: the loss is nan, learning_rate 1.0 may be too large; "
        "3 refused (norm)"
    )
    assert why_abandoned(record(0.5)) == "too few answered in time"


class Events:
    """Events of a coordinator; None stands for a silence, and the last one for its end."""

    def __init__(self, *events: CoordinatorEvent | None) -> None:
        self._events = list(events)

    def get(self, timeout: float) -> CoordinatorEvent | None:
        if not self._events:
            return None
        if (event := self._events.pop(0)) is None:
            raise queue.Empty
        return event


def test_what_agents_lack_is_noted_once_when_the_wait_for_them_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_LACKING_S", 0.0)
    lacking = "4 do not know algorithm 'damped'"
    short, long = (
        CoordinatorEvent(event="waiting", able=0, wanted=1, reason=reason)
        for reason in ("1 does not know algorithm 'damped'", lacking)
    )
    events = Events(short, long, None, None)
    running: Any = object.__new__(run._Run)
    running.participants = SimpleNamespace(asked=["a"])
    running.processes = SimpleNamespace(events=events, children=[], coordinator=None)
    running.watcher = Notes()
    with pytest.raises(FleetError, match="the coordinator ended early"):
        running._watch(CoordinatorConfig(federation="f", model="house_price"))
    assert running.watcher.said == [f"waiting for agents: {lacking}"]
