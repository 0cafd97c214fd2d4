"""Finds files that hide packages of this distribution from Python.

Python looks for modules in the folder of a script, a notebook or `python -m` first. A `models.py`
there, or a folder `models` with an `__init__.py`, is imported instead of ours.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

#: Top-level packages of this distribution, but for `fedge`.
PACKAGES = ("broker", "coordinator", "edge_agent", "fleet", "learning", "models")


def check_shadowing() -> None:
    """Checks that all packages are imported from where this one is.

    Raises:
        ImportError: another file or folder has the name of a package and comes first; says which
            and what to do.
    """
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        found = _location(name)
        if found is not None and found.parent.resolve() != home:
            kind = "folder" if found.is_dir() else "file"
            raise ImportError(
                f"the {kind} {found} hides a package of fedge of the same name, {home / name}, "
                f"because Python looks in {found.parent} first: rename the {kind}, or start Python "
                "in another folder; the command `fedge` does not look in the current folder",
                name=name,
                path=str(found),
            )


def _location(name: str) -> Path | None:
    """Returns the file or folder that is imported under a name; None if that is unknown."""
    module = sys.modules.get(name)
    spec = PathFinder.find_spec(name) if module is None else module.__spec__
    if spec is None or spec.origin is None:  # a missing package, or a folder without code
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
