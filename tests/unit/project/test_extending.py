"""The examples of docs/extending.md: loaded as plug-ins, run through the conformance suites."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedge.plugins import load_plugin
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan
from learning.codecs.registry import CODECS
from learning.phases.registry import PHASES
from learning.registry import Registry
from tests.plugins import extending_examples, forgotten_plugins

ROOT = Path(__file__).parents[3]

#: Kind, heading and arguments of the constructor after the settings, by name.
EXAMPLES: dict[str, tuple[Registry[Any], str, tuple[Any, ...]]] = {
    "local_momentum": (ALGORITHMS, "A new algorithm", (TrainingPlan(),)),
    "float24": (CODECS, "A new codec", ()),
    "middle_half": (AGGREGATORS, "A new aggregator", ({"delta": 3},)),
    "spread": (PHASES, "A new phase", ()),
}
every_example = pytest.mark.parametrize("name", EXAMPLES)


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    with forgotten_plugins():
        yield


def test_there_is_one_example_of_each_kind(tmp_path: Path) -> None:
    assert list(extending_examples(tmp_path)) == list(EXAMPLES)


@every_example
def test_an_example_is_registered_under_the_name_of_its_file(name: str, tmp_path: Path) -> None:
    registry, _, arguments = EXAMPLES[name]
    module = load_plugin(extending_examples(tmp_path)[name])
    assert type(registry.make(name, *arguments)).__module__ == module.__name__


@every_example
def test_an_example_is_short(name: str, tmp_path: Path) -> None:
    code = extending_examples(tmp_path)[name].read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 45


@every_example
def test_an_example_passes_the_suite_that_its_section_names(name: str, tmp_path: Path) -> None:
    section = (ROOT / "docs/extending.md").read_text().split(f"## {EXAMPLES[name][1]}\n")[1]
    suite = re.search(r"Suite: `([\w/.]+)`", section)
    assert suite
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite[1], "-k", name]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"FEDGE_TEST_PLUGINS": str(extending_examples(tmp_path)[name])},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) >= 8
    assert "skipped" not in ran.stdout
