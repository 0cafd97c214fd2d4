"""Executes a notebook of the examples in a kernel of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "examples/notebooks"
_TIMEOUT_S = 100


def execute(name: str, **numbers: int) -> list[dict[str, Any]]:
    """Returns the outputs of a notebook's cells by MIME type; raises where a cell fails.

    Args:
        name: of the notebook.
        numbers: replace the values of `name = value` lines, for less work.
    """
    import nbformat
    from nbclient import NotebookClient

    read: Any = nbformat.read
    notebook = read(NOTEBOOKS / f"{name}.ipynb", 4)
    lines = {key: f"{key} = " for key in numbers}
    for cell in notebook.cells:
        for key, start in lines.items():
            cell.source = "\n".join(
                f"{start}{numbers[key]}" if line.startswith(start) else line
                for line in cell.source.split("\n")
            )
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [dict(output.get("data", {})) for cell in cells for output in cell.outputs]
