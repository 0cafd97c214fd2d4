"""An agent that is asked for statistics: a report of numbers, or the reason for none."""

from __future__ import annotations

from typing import Any

import pytest

from broker.service.events import Publish
from edge_agent.machine.events import CancelJob, JobDone, JobFailed, StartJob
from edge_agent.machine.pending_update import LocalReport
from learning.vector.metrics import Sums
from tests.unit.edge_agent.agent_stage import (
    PACKAGE,
    THETA,
    Device,
    only,
    plan,
    ready,
    report_in,
    status_in,
)

NUMBERS = (4.0, 0.0, 4.0, 3.0, 14.0, 1.0, 6.0)
BOTH: dict[str, Any] = {"name": "statistics", "columns": {"a": [], "b": []}}
ONE: dict[str, Any] = {"name": "statistics", "columns": {"a": []}}


def answered(of: Any = BOTH, **changes: Any) -> JobDone:
    values = dict.fromkeys(of["columns"], NUMBERS)
    result = LocalReport(Sums(0.0, 0.0, {}), values, 4)
    return JobDone(plan(phase=of, **changes), result)


def asked(of: Any = BOTH, **facts: Any) -> Device:
    """A device at work on the statistics of round 1."""
    device = ready(**facts)
    device.plan(phase=of)
    (job,) = only(device.blob(THETA.tobytes()), StartJob)
    assert job.plan.phase == of
    return device


def test_every_device_says_that_it_knows_statistics() -> None:
    device = Device()
    assert "statistics" in status_in(only(device.actions, Publish)).phases


def test_the_numbers_go_into_a_report() -> None:
    report = report_in(asked().feed(answered()))
    assert (report.kind, report.phase, report.round_id) == ("result", "statistics", 1)
    assert report.values == {"a": NUMBERS, "b": NUMBERS}
    assert (report.num_examples, report.weight_sum) == (4, 0.0)


def test_the_log_says_what_left_the_device(caplog: pytest.LogCaptureFixture) -> None:
    device = asked()
    with caplog.at_level("INFO"):
        device.feed(answered())
        device.plan(round_id=2, phase="evaluate")
        sums = Sums(1.0, 3.5, {})
        device.feed(JobDone(plan(round_id=2, phase="evaluate"), LocalReport(sums)))
    assert [m for m in caplog.messages if "sent" in m] == [
        "round 1: sent statistics of 4 rows",
        "round 2: sent evaluate of 5 rows",
    ]


def test_the_owner_s_no_is_the_reason_of_the_report() -> None:
    failed = JobFailed(plan(phase=BOTH), "statistics.allow is false", "not_allowed")
    report = report_in(asked().feed(failed))
    assert (report.kind, report.reason) == ("declined", "not_allowed")
    assert report.detail == "statistics.allow is false"


def test_a_setting_that_the_device_does_not_know_is_declined() -> None:
    device = ready()
    report = report_in(device.plan(phase={"name": "statistics", "quantiles": [0.5]}))
    assert (report.kind, report.reason) == ("declined", "phase")
    assert "quantiles: unknown key" in report.detail


def test_a_device_without_any_rows_declines() -> None:
    device = Device()
    device.coordinator()
    device.manifest()
    device.blob(PACKAGE)
    device.loaded(train_examples=0, test_examples=0)
    report = report_in(device.plan(phase=BOTH))
    assert (report.kind, report.reason) == ("declined", "no_data")


def test_the_same_question_again_gets_the_same_answer_and_another_one_its_own() -> None:
    device = asked()
    first = report_in(device.feed(answered()))
    assert report_in(device.plan(phase=BOTH, coordinator_instance="c2")) == first
    # The coordinator was started again with fewer columns: the round has the same number.
    (job,) = only(device.plan(phase=ONE, coordinator_instance="c3"), StartJob)
    assert job.plan.phase == ONE
    report = report_in(device.feed(answered(ONE, coordinator_instance="c3")))
    assert report.values == {"a": NUMBERS}


def test_another_question_while_the_device_works_on_the_first_replaces_it() -> None:
    device = asked()
    assert only(device.plan(phase=ONE, coordinator_instance="c2"), CancelJob)
    (job,) = only(device.feed(answered()), StartJob)
    assert job.plan.phase == ONE
