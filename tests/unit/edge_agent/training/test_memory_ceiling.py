"""Memory ceiling: when a process starts anew, and when that would not help."""

from __future__ import annotations

import logging

import pytest

from edge_agent.training.memory_ceiling import MemoryCeiling, default_ceiling

MB = 1_000_000


def test_a_process_that_grew_above_its_ceiling_starts_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ceiling = MemoryCeiling(100 * MB)
    assert [ceiling.after_job(n * MB) for n in (60, 80, 100, 101)] == [False, False, False, True]
    assert "101 MB of memory in use, ceiling 100 MB, 60 MB after the first job" in caplog.text


def test_a_process_that_needs_its_ceiling_from_the_first_job_on_goes_on_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ceiling = MemoryCeiling(100 * MB)
    with caplog.at_level(logging.WARNING):
        assert not any(ceiling.after_job(n * MB) for n in (81, 105, 110))
    assert caplog.text.count("starting anew would not help; raise limits.max_memory_bytes") == 1


def test_without_a_ceiling_or_a_reading_nothing_happens() -> None:
    assert not MemoryCeiling(None).after_job(1 << 40)
    ceiling = MemoryCeiling(1)
    assert not ceiling.after_job(None)
    assert not ceiling.is_above(None)


def test_the_ceiling_is_nine_tenths_of_a_control_groups_limit_by_default() -> None:
    assert default_ceiling(200 * MB) == 180 * MB
    assert default_ceiling(None) is None
