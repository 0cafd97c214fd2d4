"""Machines to install on. Needs root, debootstrap, systemd-container, a network and minutes.

Not among the normal tests: `make test-install` asks for them. FEDGE_DEBIAN_ROOT names a folder in
which the Debian is kept for the next time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.machine import ROOT, Machine, fetch_wheels, make_base, missing

WANTED = os.environ.get("FEDGE_INSTALL_TESTS") == "1"
collect_ignore_glob = [] if WANTED else ["test_*.py"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For what all tests share: a gigabyte, which pytest would keep for three runs."""
    path = tmp_path_factory.mktemp("shared")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def base(folder: Path) -> Path:
    """A Debian root."""
    if lack := missing():
        pytest.fail(lack)
    kept = os.environ.get("FEDGE_DEBIAN_ROOT")
    return make_base(Path(kept) if kept else folder / "base")


@pytest.fixture(scope="session")
def wheels(folder: Path) -> Path:
    """A folder with our wheel and all that it needs."""
    return fetch_wheels(next((ROOT / "dist").glob("fedge-*.whl")), folder / "wheels")


Layers = tuple[Path, ...]


@pytest.fixture(scope="session")
def plain(base: Path, wheels: Path, folder: Path) -> Layers:
    """A Debian with the kit in it, nothing installed."""
    machine = Machine(base, folder=folder / "plain")
    machine.copy_kit(wheels)
    return machine.freeze(), base


@pytest.fixture(scope="session")
def with_both(plain: Layers, folder: Path) -> Layers:
    """The same with agent and coordinator installed."""
    machine = Machine(*plain, folder=folder / "with-both")
    machine.mount_proc()
    for role in ("agent", "coordinator"):
        machine.run(f"sh deploy/install-{role}.sh --wheels wheels")
    return machine.freeze(), *plain


@pytest.fixture
def chroot(plain: Layers, tmp_path: Path) -> Iterator[Machine]:
    """A fresh Debian in which systemd does not run."""
    with Machine(*plain, folder=tmp_path / "plain") as machine:
        machine.mount_proc()
        yield machine


@pytest.fixture
def installed(with_both: Layers, tmp_path: Path) -> Iterator[Machine]:
    """The same with agent and coordinator installed."""
    with Machine(*with_both, folder=tmp_path / "installed") as machine:
        machine.mount_proc()
        yield machine


@pytest.fixture(scope="module")
def booted(with_both: Layers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian in which systemd runs, for all tests of a file; both roles are installed."""
    with Machine(*with_both, folder=tmp_path_factory.mktemp("booted")) as machine:
        yield machine.boot()
