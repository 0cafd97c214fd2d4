"""End of a fleet run: cleanup, patience and reasons of abandoned rounds."""

from __future__ import annotations

from typing import Any

import pytest

from broker.link.settings import BrokerSettings
from coordinator.config import CoordinatorConfig, EvaluationConfig, RoundConfig
from fedge.errors import LinkError
from fleet import run
from tests.unit.coordinator.test_stopping import record


class Notes:
    """A watcher that remembers notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


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
    assert run.why_abandoned(diverged) == (
        "2 declined (training): a, b; b: the loss is nan, learning_rate 1.0 may be too large; "
        "3 refused (norm)"
    )
    assert run.why_abandoned(record(0.5)) == "too few answered in time"
