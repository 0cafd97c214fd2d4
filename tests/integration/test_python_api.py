"""The Python API with processes: simulations, scenarios, and files beside it that hide ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedge

ROOT = Path(__file__).parents[2]
SCRIPT = """
import numpy as np
import fedge
x = np.arange(400.0).reshape(200, 2) / 100
y = x[:, 0]
{guard}result = fedge.simulate(
    "house_price", fedge.partition(x, y, clients=200), rounds=1, processes=2, progress=False)
{guard}print(len(result.history))
"""


def script(tmp_path: Path, guard: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(SCRIPT.format(guard=guard))
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_script_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    done = script(tmp_path, "")
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert "processes=2: " in last
    assert "script.py, line 6: each process imports this script" in last
    assert 'put the call below `if __name__ == "__main__":`' in last


def test_a_script_with_a_guard_has_its_processes(tmp_path: Path) -> None:
    done = script(tmp_path, 'if __name__ == "__main__": ')
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_scenario_is_run_with_real_processes(tmp_path: Path) -> None:
    scenario = fedge.Scenario("house_price", {"agents": 3, "federation.rounds": 2})
    result = scenario.run({"federation.start.agents": 3}, out=tmp_path / "run", progress=False)
    assert [row["reported"] for row in result.history] == [3, 3]
    assert result.report["run"]["kind"] == "processes"
    assert np.array_equal(np.load(tmp_path / "run/model/initial.npy"), result.theta)


@pytest.mark.parametrize("name", ["models.py", "fleet/__init__.py"])
def test_a_file_that_a_notebook_made_after_the_import_is_named(tmp_path: Path, name: str) -> None:
    code = (
        "import pathlib, fedge\n"
        f"path = pathlib.Path({name!r})\n"
        "path.parent.mkdir(exist_ok=True)\n"
        "path.write_text('x = 1')\n"
        "fedge.simulate\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert last.startswith("ImportError: the f")
    assert f"{tmp_path / name.split('/')[0]} hides a package of fedge of the same name" in last
    assert "rename the f" in last


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_of_a_page_runs(page: str) -> None:
    blocks = re.findall(r"(?s)```python\n(.*?)```", (ROOT / page).read_text())
    assert blocks
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<fedge.Result of ")
