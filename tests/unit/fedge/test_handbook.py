"""Documents and examples on the command line: what they lead to is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedge.command import cli
from fedge.handbook.docs import as_text, section, summary, topics
from fedge.handbook.example import examples
from fleet.experiments.execution.plan import make_plan
from fleet.scenario import load_scenario

_COMMAND = re.compile(r"`fedge docs ([\w/-]+)(?: ([\w-]+))?`")

every_topic = pytest.mark.parametrize("topic", list(topics()))
SCENARIOS = [n for n, example in examples().items() if example.command == "fedge fleet run"]
GRIDS = [n for n, example in examples().items() if example.command == "fedge experiment run"]
NOTEBOOKS = [n for n, example in examples().items() if example.name.endswith(".ipynb")]


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == code, result.output
    return result


# -- documents ----------------------------------------------------------------------------------


def test_the_list_has_every_page_with_a_line() -> None:
    lines = run("docs").stdout.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == list(topics())
    assert "exit-codes" in topics()
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines[:-2])


@every_topic
def test_every_reference_that_a_page_shows_can_be_followed(topic: str) -> None:
    pages = topics()
    shown = as_text(pages[topic].read_text(), topic)
    assert not re.search(r"\]\((?!http)[^)]*\.md", shown), "a link of the source"
    for page, anchor in _COMMAND.findall(shown):
        assert page in pages, f"{topic}: fedge docs {page}"
        if anchor:
            assert section(pages[page].read_text(), anchor), f"{topic}: fedge docs {page} {anchor}"


@every_topic
def test_a_page_is_shown_whole(topic: str) -> None:
    shown = run("docs", topic).stdout
    source = topics()[topic].read_text()
    headings = [line for line in source.splitlines() if re.match(r"#+ [^\[]*$", line)]
    assert headings
    assert [line for line in shown.splitlines() if line in headings] == headings


def test_links_become_commands_and_addresses() -> None:
    page = (
        "![A picture](a.svg)\n\n[pages\nof it](other.md#the-part) [code](../a.py) "
        "[web](https://example.org/x)\n\n```\n[a](b.md)\n```\n"
    )
    assert as_text(page, "decisions/1") == (
        "pages\nof it (`fedge docs decisions/other the-part`) code "
        "web (https://example.org/x)\n\n```\n[a](b.md)\n```\n"
    )


def test_a_section_ends_with_the_next_heading_of_its_level() -> None:
    page = "# A\n\n## Two words\n\nx\n\n### Below\n\ny\n\n```\n## no heading\n```\n\n## Next\n\nz\n"
    expected = "## Two words\n\nx\n\n### Below\n\ny\n\n```\n## no heading\n```\n\n"
    assert section(page, "two-words") == expected
    assert section(page, "words") == expected
    assert section(page, "below") == "### Below\n\ny\n\n```\n## no heading\n```\n\n"
    assert section(page, "nowhere") is None


def test_a_long_first_sentence_is_cut_between_words() -> None:
    assert summary("# Title\n\n" + "word " * 50) == "Word " + "word " * 17 + "..."
    assert summary("# 3. Title\n\nStatus: accepted.\n\n## Context\n\n| a |\n\nlate") == "Title"


def test_an_unknown_page_or_section_is_one_line_that_says_what_there_is() -> None:
    assert "did you mean security?" in run("docs", "securty", code=2).stderr
    assert "Floods" in run("docs", "security", "nowhere", code=2).stderr
    assert run("docs", "docs/exit-codes.md").stdout.startswith("# Exit codes")


# -- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_example_is_written_with_all_it_needs(name: str, tmp_path: Path) -> None:
    said = run("example", name, "--out", str(tmp_path)).stdout
    config = tmp_path / f"{name}.yaml"
    assert said.splitlines()[-1] == f"next: fedge fleet run {config}"
    scenario = load_scenario(config)
    assert (config.parent / scenario.data.path).is_file()
    assert (tmp_path / "data/LICENSES.md").is_file()


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_written_with_its_scenarios_and_their_data(name: str, tmp_path: Path) -> None:
    said = run("example", name, "--out", str(tmp_path)).stdout
    grid = tmp_path / f"experiments/{name}.yaml"
    assert said.splitlines()[-1] == f"next: fedge experiment run {grid}"
    for case in make_plan(grid).cases:
        assert case.path.is_relative_to(tmp_path)
        assert (case.path.parent / case.resolved.scenario.data.path).is_file()
    assert (tmp_path / "data/LICENSES.md").is_file()
    error = run("experiment", "run", f"{name}.yaml", code=2).stderr
    assert f"`fedge example {name}` writes this example to examples/experiments/" in error


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_written_with_its_data(name: str, tmp_path: Path) -> None:
    said = run("example", name, "--out", str(tmp_path)).stdout
    notebook = tmp_path / f"notebooks/{name}.ipynb"
    assert said.splitlines()[-1] == f"next: jupyter lab {notebook}"
    cells = json.loads(notebook.read_text())["cells"]
    named = re.findall(r'np\.load\("(.*?)"\)', "".join("".join(c["source"]) for c in cells))
    assert len(named) == (0 if name == "keras_model" else 1)
    assert all((notebook.parent / file).is_file() for file in named)


def test_every_example_is_a_scenario_a_grid_or_a_notebook() -> None:
    assert [*SCENARIOS, *GRIDS, *NOTEBOOKS] == list(examples())


def test_the_list_of_examples_says_what_each_is() -> None:
    rows = json.loads(run("example", "--json").stdout)
    assert [row["name"] for row in rows] == list(examples())
    assert all(row["description"] for row in rows)
    assert len(run("example").stdout.splitlines()) == len(rows) + 2


def test_files_that_were_changed_are_kept(tmp_path: Path) -> None:
    first = run("example", "heart_disease", "--out", str(tmp_path)).stdout
    assert "wrote" in first
    assert "kept" not in first
    again = run("example", "heart_disease", "--out", str(tmp_path)).stdout  # nothing differs
    assert again == first.replace("wrote", "kept ")
    config = tmp_path / "heart_disease.yaml"
    config.write_text("mine")
    error = run("example", "heart_disease", "--out", str(tmp_path), code=2).stderr
    assert f"{config} exists and is another" in error
    assert config.read_text() == "mine"


@pytest.mark.parametrize("name", ["heart_disease", "nowhere/heart_disease.yaml"])
def test_an_example_that_is_no_file_yet_is_named(name: str) -> None:
    error = run("fleet", "run", name, code=2).stderr
    assert f"error: {name}: no such file; `fedge example heart_disease` writes this" in error
    assert "`fedge example" not in run("fleet", "run", "hearts.yaml", code=2).stderr


def test_an_unknown_example_is_one_line(tmp_path: Path) -> None:
    assert "did you mean house_price?" in run("example", "house_prize", code=2).stderr
