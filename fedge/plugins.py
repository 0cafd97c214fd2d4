"""Plug-ins: Python files, named in a configuration, that register algorithms, codecs and the like.

A plug-in runs with the rights of the process. Only files that the process's own configuration names
are loaded; nothing that comes over the network is.
"""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fedge.errors import ConfigError, one_line
from fedge.yaml_config import located

#: For each file that is being loaded: how to take back what it has registered so far.
_registered: list[list[Callable[[], None]]] = []


def load_plugins(files: Iterable[Path], base: Path, origin: str, *, key: str = "plugins") -> None:
    """Loads each file once in this process.

    Args:
        files: as a configuration names them: `.py` files, relative to `base`; `~` is the home
            folder.
        base: folder of the configuration.
        origin: the configuration, with which every message begins; may be empty.
        key: of the list in the configuration.

    Raises:
        ConfigError: a file is missing, is not Python, or raises while it is loaded; one line with
            the file, the line and the error.
    """
    for index, file in enumerate(files):
        try:
            load_plugin(located(file, base))
        except ConfigError as error:
            start = f"{origin}: " if origin else ""
            raise ConfigError(f"{start}{key}[{index}]: {error}") from error


def load_plugin(path: Path) -> ModuleType:
    """Returns the module of a plug-in's file; loads it unless that was done before.

    Its name, `fedge_plugin_STEM_HASH`, is made of the file's name and content: a copy in another
    folder is the same plug-in.

    Raises:
        ConfigError: see `load_plugins`.
    """
    source = _read(path)
    stem = re.sub(r"\W", "_", path.stem)
    name = f"fedge_plugin_{stem}_{hashlib.sha256(source).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # where dataclasses and msgspec look for annotations
    try:
        with all_or_nothing():
            exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102  what it is for
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(_failure(path, error)) from error
    return module


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Takes back all that is registered inside when it raises."""
    _registered.append([])
    try:
        yield
    except BaseException:
        for take_back in reversed(_registered[-1]):
            take_back()
        raise
    finally:
        _registered.pop()


def note_registration(take_back: Callable[[], None]) -> None:
    """Notes how to take back a registration, should the file that makes it raise later."""
    if _registered:
        _registered[-1].append(take_back)


def _read(path: Path) -> bytes:
    if path.suffix != ".py":
        raise ConfigError(f"{path}: a plug-in is a .py file")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _failure(path: Path, error: BaseException) -> str:
    """One line: the file, the line in it, and the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}, line {error.lineno}: not Python: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
    return f"{where}: {kind}{one_line(error)}"
