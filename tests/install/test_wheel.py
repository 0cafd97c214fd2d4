"""The wheel in an environment of its own: documents and examples come with it."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.install.machine import ROOT


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = list((ROOT / "dist").glob("fedge-*.whl"))
    if not found:
        pytest.skip("no wheel: run `make wheel`")
    return found[0]


@pytest.fixture(scope="module")
def fedge(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh environment; what fedge depends on is borrowed."""
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    borrowed = Path(sysconfig.get_path("purelib"))
    lines = [str(borrowed)]  # a plain path: no .pth file in there, none of an editable fedge
    (site / "borrowed.pth").write_text("\n".join(lines) + "\n")
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    command = [str(python), "-I", "-m", "fedge", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_wheel_holds_the_pages_and_examples_of_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in ("docs", "examples"):
            files = [path for path in (ROOT / name).rglob("*") if path.is_file()]
            assert files
            for path in files:
                inside = f"fedge/handbook/{path.relative_to(ROOT)}"
                assert archive.read(inside) == path.read_bytes()


def test_documents_are_shown_and_an_example_is_written_and_read(
    fedge: Path, tmp_path: Path
) -> None:
    where = "import fedge; print(fedge.__file__)"
    found = subprocess.run([fedge, "-I", "-c", where], capture_output=True, text=True, check=True)
    assert str(fedge.parents[1]) in found.stdout
    assert run(fedge, tmp_path, "docs", "exit-codes").startswith("# Exit codes")
    last = run(fedge, tmp_path, "example", "house_price").splitlines()[-1]
    assert last == "next: fedge fleet run examples/house_price.yaml"
    run(fedge, tmp_path, "fleet", "simulate", "examples/house_price.yaml", "--rounds", "1")
