"""An operator goes back, shuts agents out and lets them in, while everything runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.local.broker import LocalBroker
from tests.acceptance.federation import ROOT, Federation, eventually, running
from tests.conftest import need


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    need("mosquitto")
    with LocalBroker("mosquitto") as broker:
        yield broker


def coordinator(federation: Federation, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs `fedge coordinator` beside the one that runs."""
    command, *rest = words
    config = ["--config", str(federation.config("coordinator"))]
    return subprocess.run(
        [sys.executable, "-P", "-m", "fedge", "coordinator", command, *config, *rest],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def done(federation: Federation, *words: str) -> str:
    ran = coordinator(federation, *words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def settings(**changes: Any) -> dict[str, Any]:
    """Rounds that are held until the test is over."""
    return {"rounds": 100_000, "cohort": {"at_least": 2}, "round": {"minimum": 2}} | changes


def asked(federation: Federation) -> set[str]:
    (*_, record) = federation.records()
    return set(record.agents)


def test_a_coordinator_goes_back_and_on_while_it_runs(tmp_path: Path, broker: LocalBroker) -> None:
    federation = Federation(
        tmp_path, broker.port, coordinator=settings(cohort={"at_least": 3}, round={"minimum": 3})
    ).write()
    with running(federation):
        federation.start_all()
        federation.await_version(5)
        text = done(federation, "rollback", "--to", "2")
        made = int(text.split()[1])
        assert text.startswith(f"version {made} has the weights of version 2")
        federation.await_version(made + 3)
        np.testing.assert_array_equal(federation.theta(made), federation.theta(2))
        # Nobody's update is counted that began from what was undone, and none is missing.
        expected = federation.expected_theta(5)
        np.testing.assert_allclose(federation.theta(made + 3), expected, rtol=0, atol=1e-6)
        (order,) = federation.told("order")
        assert (order["order"], order["is_done"]) == ("rollback", True)
        federation.signal("coordinator", signal.SIGTERM)
        assert federation.ended("coordinator") == 0
        history = json.loads(done(federation, "history", "--json", "--last", "100000"))
    rows = {row["version"]: row for row in history["history"] if row["status"] != "abandoned"}
    assert rows[made]["origin"] == 2
    assert [rows[v]["status"] for v in (2, 3, made - 1)] == ["committed", "undone", "undone"]
    assert all(row["reported"] == 3 for row in rows.values() if row["status"] == "committed")


def test_an_agent_in_quarantine_is_not_asked_until_it_is_released(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(tmp_path, broker.port, coordinator=settings()).write()
    with running(federation):
        federation.start_all()
        eventually(
            "all take part", lambda: federation.version() > 0 and len(asked(federation)) == 3
        )
        text = done(federation, "quarantine", "pi-1", "--reason", "its sensor is broken")
        assert text.startswith("pi-1 is in quarantine until it is released")
        federation.await_version(federation.version() + 2)
        assert asked(federation) == {"pi-0", "pi-2"}
        federation.kill("coordinator")
        federation.start("coordinator")
        federation.await_version(federation.version() + 2)
        assert asked(federation) == {"pi-0", "pi-2"}, "also after a restart"
        assert done(federation, "release", "pi-1") == "pi-1 is released: it is asked again\n"
        eventually("it is asked", lambda: asked(federation) == {"pi-0", "pi-1", "pi-2"})
        federation.kill("pi-1")
        assert "pi-1 is forgotten" in done(federation, "forget", "pi-1")
        assert not any("pi-1" in record.agents for record in federation.records())
        refused = coordinator(federation, "release", "pi-9")
        assert (refused.returncode, refused.stderr) == (2, "error: pi-9 is not in quarantine\n")


def test_a_state_folder_that_is_deleted_under_a_running_coordinator_ends_it(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(tmp_path, broker.port, coordinator=settings()).write()
    with running(federation):
        federation.start_all()
        federation.await_version(1)
        federation.state("coordinator").rename(tmp_path / "elsewhere")
        assert federation.ended("coordinator") == 5
        last = federation.said("coordinator").splitlines()[-1]
    assert last.startswith("error: ")
    assert "was deleted" in last


def test_a_federation_goes_on_from_a_backup_that_was_made_while_it_ran(
    tmp_path: Path, broker: LocalBroker
) -> None:
    federation = Federation(
        tmp_path, broker.port, coordinator=settings(cohort={"at_least": 3}, round={"minimum": 3})
    ).write()
    backup = str(tmp_path / "backup")
    with running(federation):
        federation.start_all()
        federation.await_version(3)
        assert "not in it, keep copies: " in done(federation, "backup", backup)
        federation.await_version(federation.version() + 2)
        federation.kill("coordinator")
        refused = coordinator(federation, "restore", backup)
        assert (refused.returncode, "has a store" in refused.stderr) == (2, True)
        federation.state("coordinator").rename(tmp_path / "lost")
        restored = int(done(federation, "restore", backup).split("version ")[1].split(",")[0])
        federation.start("coordinator")
        federation.await_version(restored + 3)
        federation.check_theta(restored + 3)
        assert all(record.reported == 3 for record in federation.records())
