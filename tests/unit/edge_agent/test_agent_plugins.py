"""Plug-ins of an agent's file: their phases may be named, their members are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.config import load_agent_config
from edge_agent.machine.status import AgentFacts, agent_status
from fedge.errors import ConfigError
from tests.plugins import extending_examples, forgotten_plugins


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    with forgotten_plugins():
        yield


def agent_file(folder: Path, *lines: str) -> Path:
    path = folder / "agent.yaml"
    path.write_text("\n".join(["federation: f", "agent_id: pi-1", "data: {path: d.npz}", *lines]))
    return path


def test_a_phase_of_a_plug_in_may_be_named(tmp_path: Path) -> None:
    extending_examples(tmp_path)
    path = agent_file(tmp_path, "plugins: [spread.py]", "phases: [evaluate, spread]")
    assert load_agent_config(path).phases == ("evaluate", "spread")


def test_an_unknown_phase_is_answered_with_the_closest_and_all_known(tmp_path: Path) -> None:
    path = agent_file(tmp_path, "phases: [evalute]")
    with pytest.raises(ConfigError) as caught:
        load_agent_config(path)
    assert str(caught.value) == (
        f"{path}: phases: unknown phase 'evalute'; did you mean evaluate? known: train, evaluate, "
        "statistics"
    )


def test_a_plug_in_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = agent_file(tmp_path, "plugins: [gone.py]")
    with pytest.raises(ConfigError, match=r"agent\.yaml: plugins\[0\]: .*gone\.py: no such file"):
        load_agent_config(path)


def test_the_status_names_the_algorithms_and_codecs_of_plug_ins(tmp_path: Path) -> None:
    extending_examples(tmp_path)
    load_agent_config(agent_file(tmp_path, "plugins: [local_momentum.py, float24.py]"))
    facts = AgentFacts(agent_id="pi-1", federation="f", agent_instance="b1")
    status = agent_status(facts, None, None, None, "", (), 0, "", 0, online=True)
    assert "local_momentum" in status.algorithms
    assert "float24" in status.codecs
