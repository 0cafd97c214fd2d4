"""The notebooks of the examples run from top to bottom, and show what they say."""

from __future__ import annotations

import json

import pytest

from tests.notebooks import NOTEBOOKS, execute

pytest.importorskip("nbclient")
# Of the client's own: an event loop of its own making, and messages that it asks for.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_the_first_steps_show_a_result_a_picture_and_predictions() -> None:
    outputs = execute("first_steps")
    texts = [output["text/plain"] for output in outputs if "text/plain" in output]
    assert sum("image/png" in output for output in outputs) == 1
    assert any(text.startswith("<fedge.Result of heart_disease: rounds 20") for text in texts)
    assert any("'disease/kernel': (26, 1)" in text for text in texts)
    assert any(text.startswith("array([") for text in texts)


def test_clients_that_differ_are_compared() -> None:
    outputs = execute("non_iid", rounds=1)
    (table,) = [output["text/html"] for output in outputs if "text/html" in output]
    assert "<td>skewed, scaffold</td>" in table
    assert sum("image/png" in output for output in outputs) == 1


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_described(path: object) -> None:
    notebook = json.loads(NOTEBOOKS.joinpath(str(path)).read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert notebook["metadata"]["fedge"]["description"]
