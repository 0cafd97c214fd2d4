"""Folders of pages and examples: beside this file in a wheel, at the root in a checkout."""

from __future__ import annotations

from pathlib import Path

from fedge.errors import ConfigError

_HERE = Path(__file__).parent
#: Of a checkout, from which an editable installation runs.
_ROOT = _HERE.parents[1]


def shipped(name: str) -> Path:
    """Returns the folder `docs` or `examples`.

    Raises:
        ConfigError: it is not there: the package was put together by hand.
    """
    for folder in (_HERE / name, _ROOT / name):
        if folder.is_dir():
            return folder
    raise ConfigError(f"this installation of fedge has no {name}: install it from its wheel")
