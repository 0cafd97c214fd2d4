"""Base package of all others, the `fedge` command, and the Python API (docs/python.md).

The names of the API are loaded from `fleet/api.py` when they are first used: a device that imports
fedge pays nothing for them. Their types are in `__init__.pyi`.
"""

import sys

from fedge.shadowing import check_shadowing

__version__ = "0.1.0"

#: Names of the API, all in `fleet.api`.
_API = (
    "Clients",
    "Comparison",
    "Interrupted",
    "ModelPackage",
    "Report",
    "Result",
    "Scenario",
    "compare",
    "export",
    "load_report",
    "partition",
    "simulate",
)

# `python -m fedge` would print an exception of this file without its place: `__main__` checks.
if sys.argv[:1] != ["-m"]:
    check_shadowing()


def __getattr__(name: str) -> object:
    """Returns a name of the API, which is imported when it is first used."""
    if name in _API:
        import importlib

        check_shadowing()  # again: a notebook may have made a file since
        # By name: nothing in this package imports what is above it.
        found: object = getattr(importlib.import_module("fleet.api"), name)
        globals()[name] = found
        return found
    raise _UnknownName(name)


class _UnknownName(AttributeError):
    """Error that looks for the name that was meant when it is shown.

    `from fedge import errors` asks for the name first, and imports the module after this error.
    """

    def __str__(self) -> str:
        from fedge.errors import did_you_mean

        name = self.args[0]
        meant = did_you_mean(name, _API).strip()
        return f"module 'fedge' has no attribute {name!r}" + (f": {meant}" if meant else "")


def __dir__() -> list[str]:
    """Returns the names of this module, those of the API included."""
    return sorted({*globals(), *_API})
