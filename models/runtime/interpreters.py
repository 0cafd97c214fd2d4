"""Finds and imports the TFLite interpreter of this process; no other module imports one."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import platform
import re
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedge.errors import ModelError
from models.runtime.stderr import stderr_without, suppress_stderr
from models.runtime.wheels import Platform, install_advice, missing_wheel_reason

log = logging.getLogger(__name__)

#: Runtime -> module of its interpreter, in the order in which they are tried.
RUNTIMES: dict[str, str] = {
    "tflite-runtime": "tflite_runtime.interpreter",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}
#: Runtime -> distributions that provide it, where the names differ.
_DISTRIBUTIONS = {"tensorflow": ("tensorflow", "tensorflow-cpu")}
#: Environment variable that names the runtime, below configuration files and options.
ENVIRONMENT = "FEDGE_RUNTIME"

#: Line of a runtime's native code, once a process, when the first model is loaded.
_ANNOUNCEMENT = re.compile(rb"INFO: Created TensorFlow Lite XNNPACK delegate for CPU\.\s*")
#: TFLite model of one operator, x + x of one number, compressed.
_SMALLEST_MODEL = (
    "eNqTYGBgCHHzMWZg4GMQYRBg4GHgAIqwAHkMQB4DgwQQ3wFiZiBmBMswMOj8//+fESrPA9fFAiQhYgEgM4E4AqpH"
    "hAEE+MA0SC03kvlAwA3T1wI1F4SZGBCAEQkzQOVMoG55BdQDkmJBUSMG9QcyYAeKQoxjQTMT4mMWsHkA2mUP6g=="
)
_announced: set[str] = set()
_announcing = threading.Lock()


def available_runtimes() -> list[str]:
    """Returns the runtimes installed here, in the order in which they are tried."""
    return [name for name in RUNTIMES if _installed(name)]


def find_runtime(name: str | None) -> tuple[Callable[..., Any], str]:
    """Returns the interpreter class and `name version`.

    Args:
        name: a key of `RUNTIMES`; None takes the one named by the environment variable
            FEDGE_RUNTIME, else the first that is installed and works.

    Raises:
        ModelError: no runtime, or not the named one, is installed and works; says what to install.
    """
    where = ""
    if name is None and (name := os.environ.get(ENVIRONMENT) or None):
        where = f"{ENVIRONMENT}: "
    if name is not None and name not in RUNTIMES:
        raise ModelError(f"{where}runtime {name!r} is unknown; known: {', '.join(RUNTIMES)}")
    if name is not None and not _installed(name):
        here = this_platform()
        reason = missing_wheel_reason(name, here)
        why = f"; it {reason}" if reason else ""
        raise ModelError(
            f"{where}runtime {name} is not installed here ({here}){why}: "
            f"{_install_hint(name, here)}"
        )
    problems = []
    for candidate in available_runtimes() if name is None else [name]:
        problem = _conflict(candidate)
        if not problem:
            try:
                return _load(candidate)
            except ImportError as error:  # a library is missing, or the package is damaged
                problem = f"is installed and does not load: {error}"
        log.debug("runtime %s %s", candidate, problem)
        problems.append(f"{candidate} {problem}")
    if problems:
        raise ModelError(f"{where}no TFLite interpreter works here: {'; '.join(problems)}")
    here = this_platform()
    raise ModelError(f"no TFLite interpreter is installed here ({here}): {install_advice(here)}")


@functools.cache  # reads the distribution's files; a host process asks once per agent
def runtime_version(name: str) -> str:
    """Returns the version of an installed runtime, without importing it."""
    if name == "tensorflow" and (loaded := sys.modules.get(name)):
        return str(loaded.__version__)
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        if version := _installed_version(distribution):
            return version
    return "of an unknown version"  # built locally, or from a distribution of another name


def _installed_version(distribution: str) -> str:
    """Returns the version in the name of the distribution's folder, or nothing.

    importlib.metadata would read it from a file, and costs every agent 1 MB.
    """
    for path in sys.path:
        for folder in Path(path).glob(f"{distribution.replace('-', '_')}-*.dist-info"):
            return folder.name.removesuffix(".dist-info").partition("-")[2]
    return ""


def this_platform() -> Platform:
    """Returns machine, Python version and C library of this process."""
    machine = platform.machine().lower()
    if sys.maxsize < 2**32:  # a 32-bit system on a 64-bit kernel, as in Raspberry Pi OS
        machine = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
    try:
        libc, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = map(int, version.split(".")[:2])
    except (ValueError, OSError):  # only glibc has that name
        libc, major, minor = ("musl" if sys.platform == "linux" else ""), 0, 0
    return Platform(machine, sys.version_info[:2], libc, (major, minor))


def _installed(name: str) -> bool:
    package = RUNTIMES[name].partition(".")[0]
    if package in sys.modules:
        return sys.modules[package] is not None
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name is not a package


def _conflict(name: str) -> str:
    """Returns why an installed runtime would crash this process; empty when it would not."""
    if name != "tflite-runtime":
        return ""
    if sys.modules.get("tensorflow") is not None:
        # Its GetSignatureDefs fails with `vector::reserve`.
        return "cannot share a process with TensorFlow, which is loaded: use another runtime"
    if int(np.__version__.split(".")[0]) >= 2:
        return f"needs NumPy 1, this is {np.__version__}: pip install 'numpy<2'"
    return ""


def _load(name: str) -> tuple[Callable[..., Any], str]:
    if name != "tensorflow":
        interpreter: Callable[..., Any] = importlib.import_module(RUNTIMES[name]).Interpreter
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with suppress_stderr():
            module = importlib.import_module(RUNTIMES[name])
        interpreter = functools.partial(_without_warning, module.Interpreter)
    return interpreter, f"{name} {runtime_version(name)}"


def announce(interpreter: Callable[..., Any], name: str) -> None:
    """Lets a runtime announce its delegate, which it does once, into nothing.

    With a model of ours, before any other is loaded: what a runtime writes about a user's model,
    also when it crashes, is shown as it is. Not when the runtime is found: a damaged one may crash.

    Args:
        interpreter: class of the runtime, as `find_runtime` returns it.
        name: of the runtime, likewise.
    """
    with _announcing:
        if name in _announced:
            return
        _announced.add(name)
        model = zlib.decompress(base64.b64decode(_SMALLEST_MODEL))
        with (
            contextlib.suppress(ValueError, RuntimeError, MemoryError),
            stderr_without(_ANNOUNCEMENT),
        ):
            interpreter(model_content=model).allocate_tensors()


def _without_warning(interpreter: Callable[..., Any], **arguments: Any) -> Any:
    """Makes TensorFlow's interpreter without its deprecation warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        return interpreter(**arguments)


def _install_hint(name: str, here: Platform) -> str:
    return install_advice(here) if missing_wheel_reason(name, here) else f"pip install {name}"
