"""Loads functions of the user for `fedge model`, and reports their errors in one line."""

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

#: Folders of code that is not the user's: ours, Python's and those of installed packages.
_LIBRARY_FOLDERS = {
    Path(__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
}


def find_function(reference: str) -> Callable[[], Any]:
    """Returns the function that `FILE.py:FUNCTION` or `MODULE:FUNCTION` names.

    Raises:
        ConfigError: there is no such function, or its file failed.
    """
    return load_function(*parse_reference(reference))


def parse_reference(reference: str) -> tuple[str | Path, str]:
    """Returns module name or file, and function name, checked without running code.

    Raises:
        ConfigError: the reference has another form, or there is no such file.
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
    """Runs the file or imports the module, and returns the function.

    Raises:
        ConfigError: there is no such module or function, the module failed, or the function needs
            arguments.
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
    """Whether a value is a function that can be called without arguments."""
    is_function = callable(value) and not inspect.isclass(value)
    return is_function and not name.startswith("_") and not _missing_argument(value)


def _missing_argument(function: Callable[..., Any]) -> str:
    """Returns why a function cannot be called without arguments; empty if it can."""
    try:
        # The wrapper and not the wrapped function: a wrapper may add the arguments.
        inspect.signature(function, follow_wrapped=False).bind()
    except TypeError as error:
        return str(error)
    except ValueError:  # some built-in functions have no signature
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
    # Dataclasses and pickling in the file look up their module by name.
    sys.modules.setdefault(path.stem, module)
    # Imports from the file's folder work as if the file were run.
    sys.path.insert(0, str(path.resolve().parent))
    with user_code_errors(str(path)):
        module_spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    # The working folder is searched, as with `python -m`, but last: a `models` there must not
    # hide ours.
    sys.path.append(str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent is missing, or is not a package
        found = None
    if found is None:
        raise ConfigError(
            f"no module {name!r} here; for a file write its path with .py: {name}.py:FUNCTION"
        )
    with user_code_errors(name):
        return importlib.import_module(name)


@contextlib.contextmanager
def user_code_errors(what: str) -> Iterator[None]:
    """Turns errors of the user's code into a ConfigError of one line with the place."""
    try:
        yield
    except FederationError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{what} failed: {_description(error)}{_place(error)}; -v shows the traceback"
        ) from error


def _description(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    name = type(error).__name__
    if isinstance(error, SyntaxError):  # its text ends with the place, which `_place` adds
        return f"{name}: {error.msg}"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return f"{name}: {error}: name the module from the folder above, PACKAGE.MODULE:FUNCTION"
    return f"{name}: {one_line(error)}" if str(error).strip() else name


def _place(error: BaseException) -> str:
    """Returns the line of the user's code that failed; empty if unknown."""
    if isinstance(error, SyntaxError) and error.filename and _is_user_file(error.filename):
        return f" (line {error.lineno} of {error.filename})"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((each for each in reversed(frames) if _is_user_file(each.filename)), None)
    frame = frame or (frames[-1] if frames else None)
    return f" (line {frame.lineno} of {frame.filename})" if frame else ""


def _is_user_file(file: str) -> bool:
    return not file.startswith("<") and _LIBRARY_FOLDERS.isdisjoint(Path(file).parents)
