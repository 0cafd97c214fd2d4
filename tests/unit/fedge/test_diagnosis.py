"""Lines, JSON and exit codes of the doctors; who owns our names; what they try at a broker."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest
from paho.mqtt.client import topic_matches_sub as matches

from broker.diagnostics import host_and_files
from broker.diagnostics.host_and_files import clock_check
from broker.protocol.topics import Topics
from broker.security.access_control import Kind, Member, access_rules
from broker.security.signing import SigningKeys
from coordinator.config import CoordinatorConfig
from coordinator.doctor import coordinator_rights, diagnose
from edge_agent.data.dataset import LocalDataset
from edge_agent.data.table import Array
from edge_agent.doctor.data_checks import data_checks
from edge_agent.doctor.doctor import agent_rights
from fedge.check_result import Check, exit_code, failed, ok, report, skipped, warning
from fedge.host_checks import disk_check, memory_check, owner_check
from models.package.spec import TensorSpec
from models.zoo import load_zoo
from tests.users import as_nobody

TOPICS = Topics("houses")


def test_the_exit_code_tells_who_must_act_this_machine_first() -> None:
    fine = [ok("a", ""), warning("b", "", "look"), skipped("c", "why")]
    away, here = failed("d", "", "mend", "network"), failed("e", "", "mend")
    assert exit_code(fine) == 0
    assert exit_code([*fine, away]) == 3
    assert exit_code([away, here]) == exit_code([here]) == 2


def test_every_check_is_a_line_and_its_advice_below(capsys: pytest.CaptureFixture[str]) -> None:
    long = "the broker shows another certificate " * 4
    assert report([ok("clock", "noon"), failed("tls", long, "set the clock")], as_json=False) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       clock        noon"
    assert lines[1].startswith("failed   tls          the broker")
    assert lines[-2] == " " * 22 + "> set the clock"
    assert lines[-1] == "1 ok, 1 failed"
    assert max(map(len, lines)) <= 100


def test_control_characters_from_the_broker_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report(
        [ok("coordinator", "online, model \x1b[2J\x1b[H"), failed("x", "", "\x07")], as_json=False
    )
    out = capsys.readouterr().out
    assert out.startswith("ok       coordinator  online, model \\x1b[2J\\x1b[H\n")
    assert out.isascii()
    assert out.replace("\n", "").isprintable()


def test_as_json_it_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([ok("round trip", "1 ms", "network", median_s=0.001)], as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["checks"] == [
        {
            "name": "round trip",
            "state": "ok",
            "found": "1 ms",
            "advice": "",
            "area": "network",
            "facts": {"median_s": 0.001},
        }
    ]
    assert document["exit_code"] == 0


# -- here -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1970, 2000, 2024, 2100])
def test_a_clock_without_a_battery_is_noticed(year: int) -> None:
    check = clock_check(datetime(year, 1, 1, tzinfo=UTC))
    assert (check.state, check.name) == ("failed", "clock")


@pytest.mark.parametrize(("adrift", "state"), [(True, "warning"), (False, "ok")])
def test_an_unsynchronised_clock_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, adrift: bool, state: str
) -> None:
    monkeypatch.setattr(host_and_files, "_is_unsynchronised", lambda: adrift)
    assert clock_check(datetime(2026, 5, 4, tzinfo=UTC)).state == state


def test_our_package_names_have_no_other_owner() -> None:
    assert owner_check().state == "ok"


def test_another_project_with_our_package_names_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip leaves it when a distribution brings a package of the same name."""
    record = tmp_path / "edge_agent-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-agent\nVersion: 1.0\n")
    (record / "RECORD").write_text("edge_agent/__init__.py,,\nedge_agent/agent.py,,\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    check = owner_check()
    assert check.state == "failed"
    assert "edge_agent also from edge-agent" in check.found
    assert "environment of its own" in check.advice


def test_a_state_folder_need_not_be_there_yet_but_writable(tmp_path: Path) -> None:
    assert disk_check(tmp_path / "a" / "b", 1).state == "ok"
    assert not (tmp_path / "a").exists()
    assert disk_check(tmp_path, 1 << 60).state == "warning"
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0)
    with as_nobody():
        assert disk_check(tmp_path / "closed" / "state", 1).state == "failed"
    check = disk_check(tmp_path / "file" / "state", 1)
    assert (check.state, "cannot be written" in check.found) == ("failed", True)


def test_missing_memory_is_reported_before_it_is_allocated() -> None:
    assert memory_check().state == "ok"
    assert "are needed" in memory_check(1 << 50).advice


# -- access rights --------------------------------------------------------------------------------


def granted(name: str, verb: str) -> list[str]:
    """Filters that fedge's own access rules grant."""
    kind: Kind = "coordinator" if name == "coordinator" else "agent"
    rules = access_rules("houses", [Member(name, kind, name)])
    block = rules.split(f"user {name}\n")[1].split("\n\n")[0]
    return [
        line.split(" ", 2)[2] for line in block.splitlines() if line.startswith(f"topic {verb}")
    ]


@pytest.mark.parametrize("name", ["pi-1", "coordinator"])
def test_the_probed_rights_are_those_of_the_access_rules(name: str) -> None:
    rights = coordinator_rights(TOPICS) if name == "coordinator" else agent_rights(TOPICS, name)
    writes, reads = granted(name, "write"), granted(name, "read")
    # The probe of message sizes writes its own topic and reads it.
    tried = [*(topic for topic, _ in rights.publishes), rights.probe]
    for pattern in writes:  # each is tried, and nothing else
        assert any(matches(pattern, topic) for topic in tried), pattern
    assert len(tried) == len(writes)
    assert len(rights.subscribes) + 1 == len(reads)
    for topic in tried:
        assert any(matches(pattern, topic) for pattern in writes), topic
    for topic, what in rights.forbidden:
        assert not any(matches(pattern, topic) for pattern in writes), what


# -- data -----------------------------------------------------------------------------------------


def dataset(values: Array, target: Array, scaled: str = "features") -> LocalDataset:
    index = np.arange(len(target))
    cut = len(target) - len(target) // 4
    scales = {scaled: None} if scaled else {}
    arrays = {"features": values, "target": target}
    return LocalDataset(arrays, index[:cut], index[cut:], index, scales)  # type: ignore[arg-type]


def checked(values: Array, target: Array | None = None) -> dict[str, Check]:
    spec = load_zoo("house_price").spec
    if target is None:
        target = np.random.default_rng(1).uniform(1, 4, len(values)).astype(np.float32)
    found = data_checks(dataset(values.astype(np.float32), target), spec, len(target))
    return {check.name: check for check in found}


def test_data_without_a_problem_is_ok() -> None:
    rng = np.random.default_rng(0)
    found = checked(rng.normal(size=(100, 2)))
    assert {check.state for check in found.values()} == {"ok"}
    assert found["data"].found == "75 rows to learn from, 25 held out"
    assert set(found["input features"].facts["columns"]["median_income"]) == {"min", "max", "mean"}


def test_few_rows_far_columns_and_dead_sensors_are_warnings() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 2))
    assert checked(values)["data"].state == "warning"
    far = np.stack([values[:, 0] + 300, values[:, 1]], 1)
    assert "median_income (+299.6)" in checked(far)["input features"].found
    dead = np.stack([values[:, 0], np.zeros(8)], 1)
    assert "never changes: rooms_per_household" in checked(dead)["input features"].found


def test_classes_are_counted_by_name() -> None:
    from edge_agent.doctor.data_checks import _target

    target = TensorSpec(name="target", dtype="int32", classes=("sit", "walk", "run"))
    outputs = (TensorSpec("prediction", (3,)),)
    spec = msgspec.structs.replace(load_zoo("house_price").spec, targets=(target,), outputs=outputs)
    values = np.zeros((6, 1), np.float32)
    found = _target(target, spec, dataset(values, np.array([0, 0, 2, 2, 2, 0], np.int32)))
    assert (found.state, found.found) == ("ok", "2 of 3 classes: sit 3, run 3")
    assert found.facts["classes"] == {"sit": 3, "walk": 0, "run": 3}
    found = _target(target, spec, dataset(values, np.ones(6, np.int32)))
    assert found.state == "warning"


def test_targets_sorted_by_size_are_a_warning_with_what_to_do() -> None:
    values = np.random.default_rng(0).normal(size=(100, 2))
    found = checked(values, np.arange(100, dtype=np.float32) ** 2)["split"]
    assert found.state == "warning"
    assert found.found.startswith("target: ")
    assert found.advice == "are the rows sorted by it? Then set data.split: random"


def test_a_signing_key_readable_by_every_user_is_a_warning(tmp_path: Path) -> None:
    (file := tmp_path / "signing.key").write_bytes(SigningKeys.generate().encode())
    config = CoordinatorConfig(federation="f", model="house_price", signing_key=Path("signing.key"))
    found = {}
    for mode in (0o644, 0o600):
        file.chmod(mode)
        checks = diagnose(config, tmp_path, offline=True)
        found[mode] = [check.state for check in checks if check.name == "keys"]
    assert found == {0o644: ["warning", "ok"], 0o600: ["ok"]}
