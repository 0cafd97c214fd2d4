"""Virtual environments of the peers, each with its own packages in pinned versions."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REQUIREMENTS = HERE / "requirements"
#: PyTorch brings gigabytes.
INSTALL_S = 1500
_MB = 1_000_000
#: Beside the pinned packages: what is installed, and in what versions.
_FEDGE = {"fedge": "", "fedge_fleet": "[fleet]"}


class NotInstalled(Exception):
    """An environment cannot be made; the text says why."""


@dataclass
class Environments:
    """Makes environments below a folder when they are first asked for, and remembers failures.

    Attributes:
        folder: of all; environments that are there from an earlier run are used again.
        installed: MB of each without pip, and the seconds that installing took (0: it was there).
    """

    folder: Path
    installed: dict[str, dict[str, float]] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)

    def python(self, name: str) -> Path:
        """The Python of an environment.

        Raises:
            NotInstalled: pip failed, now or before in this run.
        """
        if name in self._failed:
            raise NotInstalled(self._failed[name])
        place = self.folder / name
        if name not in self.installed:
            try:
                seconds = self._make(name, place)
            except NotInstalled as error:
                self._failed[name] = str(error)
                raise
            self.installed[name] = {"mb": _used(place) - _pip(place), "install_s": seconds}
        return place / "bin" / "python"

    def _make(self, name: str, place: Path) -> float:
        done = place / "installed.txt"
        # fedge is installed from the checkout, which may have changed.
        wanted = "" if name in _FEDGE else (REQUIREMENTS / f"{name}.txt").read_text()
        if wanted and done.exists() and done.read_text() == wanted:
            return 0.0
        print(f"installing {name} ...", file=sys.stderr, flush=True)
        began = time.monotonic()
        _call([sys.executable, "-m", "venv", "--clear", str(place)], 120)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        _call([*pip, "--disable-pip-version-check", *_arguments(name)], INSTALL_S)
        done.write_text(wanted)
        return time.monotonic() - began


def _arguments(name: str) -> list[str]:
    if name in _FEDGE:
        return ["--constraint", str(ROOT / "constraints.txt"), f"{ROOT}{_FEDGE[name]}"]
    return ["--requirement", str(REQUIREMENTS / f"{name}.txt")]


def _call(command: list[str], timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip took more than {timeout_s:g} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalled((errors or done.stderr.splitlines() or ["pip failed"])[-1][:300])


def _used(place: Path) -> float:
    """MB of blocks taken, as `du` counts."""
    done = subprocess.run(["du", "-sk", str(place)], capture_output=True, check=True, timeout=120)
    return int(done.stdout.split()[0]) * 1024 / _MB


def _pip(place: Path) -> float:
    (site,) = place.glob("lib/python*/site-packages")
    return sum(_used(path) for name in ("pip", "setuptools") for path in site.glob(f"{name}*"))
