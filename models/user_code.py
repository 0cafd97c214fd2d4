"""Code of a user's own that `fedge model` is asked to run, and its errors in one line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from models.errors import ConfigError, FederationError, one_line


def find_function(reference: str) -> Callable[[], Any]:
    """The function that `FILE.py:FUNCTION` or `MODULE:FUNCTION` names.

    Raises:
        ConfigError: there is none, or its file failed.
    """
    return load_function(*parse_reference(reference))


def parse_reference(reference: str) -> tuple[str | Path, str]:
    """Module name or file, and function name; checked as far as possible without running code.

    Raises:
        ConfigError: not of the form, or no such file.
    """
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute.isidentifier():
        raise ConfigError(
            f"{reference!r}: expected FILE.py:FUNCTION or MODULE:FUNCTION, as in model.py:build"
        )
    if not (place.endswith(".py") or "/" in place):
        return place, attribute
    if not Path(place).is_file():
        raise ConfigError(f"{place}: no such file")
    return Path(place), attribute


def load_function(place: str | Path, attribute: str) -> Callable[[], Any]:
    """The function, after running its file or importing its module.

    Raises:
        ConfigError: there is no such module or function, or it failed.
    """
    module = _load_file(place) if isinstance(place, Path) else _load_module(place)
    function: Callable[[], Any] | None = getattr(module, attribute, None)
    if function is None or not callable(function):
        names = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise ConfigError(
            f"{place} has no function {attribute!r}; it has: {', '.join(names) or 'none'}"
        )
    return function


def _load_file(path: Path) -> ModuleType:
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"{path}: not a Python file (the name must end in .py)")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickling inside the file look their module up by name.
    sys.modules.setdefault(path.stem, module)
    # What the file imports from its own folder is found as if it were run.
    sys.path.insert(0, str(path.resolve().parent))
    with running(str(path)):
        module_spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    # Modules of the working folder count, as with `python -m`, but come last: a `models` there
    # must not hide ours.
    sys.path.append(str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent is missing, or is no package
        found = None
    if found is None:
        raise ConfigError(
            f"no module {name!r} here; for a file write its path with .py: {name}.py:FUNCTION"
        )
    with running(name):
        return importlib.import_module(name)


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Errors of code that we were asked to run, in one line that says where."""
    try:
        yield
    except FederationError:
        raise
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        line = f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})" if trace else ""
        said = f": {one_line(error)}" if str(error).strip() else ""
        detail = f"{type(error).__name__}{said}"
        raise ConfigError(f"{what} failed: {detail}{line}; -v shows the traceback") from error
