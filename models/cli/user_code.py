"""Code of a user's own that `fedge model` is asked to run, and its errors in one line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from fedge.errors import ConfigError, FederationError, did_you_mean, one_line

#: Folders whose code no user wrote: ours, Python's and those of installed packages.
_FOREIGN = {
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
}


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
        ConfigError: there is no such module or function, it failed, or wants arguments.
    """
    module = _load_file(place) if isinstance(place, Path) else _load_module(place)
    function: Callable[[], Any] | None = getattr(module, attribute, None)
    if function is None or not callable(function):
        names = [name for name, value in vars(module).items() if _may_be_meant(name, value)]
        raise ConfigError(
            f"{place} has no function {attribute!r}; {did_you_mean(attribute, names)}"
            f"it has: {', '.join(names) or 'none'}"
        )
    if any(base.__module__.startswith("keras.") for base in type(function).__mro__):
        raise ConfigError(
            f"{place}:{attribute} is a {type(function).__name__}, not a function that returns one: "
            f"def build(): return {attribute}"
        )
    if problem := _missing_argument(function):
        raise ConfigError(
            f"{place}:{attribute} must work without arguments: {problem}{_definition(function)}"
        )
    return function


def _may_be_meant(name: str, value: Any) -> bool:
    """Whether it is a function, of the file's own or imported, that can be called."""
    is_function = callable(value) and not inspect.isclass(value)
    return is_function and not name.startswith("_") and not _missing_argument(value)


def _missing_argument(function: Callable[..., Any]) -> str:
    """What keeps it from being called without arguments; empty when nothing does."""
    try:
        # Not what is wrapped: a wrapper may add the arguments.
        inspect.signature(function, follow_wrapped=False).bind()
    except TypeError as error:
        return str(error)
    except ValueError:  # some that are built in do not tell
        pass
    return ""


def _definition(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f" (line {code.co_firstlineno} of {code.co_filename})" if code else ""


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
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{what} failed: {_said(error)}{_line(error)}; -v shows the traceback"
        ) from error


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    name = type(error).__name__
    if isinstance(error, SyntaxError):  # whose text ends with the place, as our line does
        return f"{name}: {error.msg}"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return f"{name}: {error}: name the module from the folder above, PACKAGE.MODULE:FUNCTION"
    return f"{name}: {one_line(error)}" if str(error).strip() else name


def _line(error: BaseException) -> str:
    """Where in the user's own code it happened, as far as that can be told."""
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return f" (line {error.lineno} of {error.filename})"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((each for each in reversed(frames) if _is_users(each.filename)), None)
    frame = frame or (frames[-1] if frames else None)
    return f" (line {frame.lineno} of {frame.filename})" if frame else ""


def _is_users(file: str) -> bool:
    return not file.startswith("<") and _FOREIGN.isdisjoint(Path(file).parents)
