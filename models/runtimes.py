"""Which TFLite interpreter a device has: the only place that imports one."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from models.errors import ModelError

#: Interpreters in the order they are tried: (distribution, module).
RUNTIMES: dict[str, str] = {
    "tflite-runtime": "tflite_runtime.interpreter",
    "ai-edge-litert": "ai_edge_litert.interpreter",
}
#: TensorFlow's own interpreter, used only where TensorFlow is loaded already.
_TENSORFLOW = "tensorflow.lite.python.interpreter"


def available_runtimes() -> list[str]:
    """The interpreters installed here, in the order they are tried."""
    found = []
    for distribution in RUNTIMES:
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        found.append(distribution)
    return found


def find_runtime(name: str | None) -> tuple[Callable[..., Any], str]:
    """The interpreter class and `distribution version`.

    Raises:
        ModelError: none is installed, or not the one asked for.
    """
    if name is not None and name not in RUNTIMES:
        raise ModelError(f"runtime {name!r} is unknown; known: {', '.join(RUNTIMES)}")
    problems = []
    for distribution in _candidates() if name is None else [name]:
        try:
            module = importlib.import_module(RUNTIMES.get(distribution, _TENSORFLOW))
            return module.Interpreter, f"{distribution} {_version(distribution)}"
        except (ImportError, metadata.PackageNotFoundError) as error:
            problems.append(f"{distribution}: {error}")
    raise ModelError(
        "no TFLite interpreter works here: "
        + "; ".join(problems)
        + ". Install tflite-runtime (Python 3.9-3.11) or ai-edge-litert (Python 3.10 and later)"
    )


def _candidates() -> list[str]:
    """What to try, in order."""
    if sys.modules.get("tensorflow") is None:
        return list(RUNTIMES)
    # tflite_runtime fails in a process that holds TensorFlow (`vector::reserve`), which brings an
    # interpreter of its own: an exporting workstation needs nothing else to check a program.
    return ["ai-edge-litert", "tensorflow"]


@functools.cache  # reads the distribution's files: a host of many agents asks for each of them
def _version(distribution: str) -> str:
    if distribution == "tensorflow":  # installed under several names
        return str(sys.modules["tensorflow"].__version__)
    return metadata.version(distribution)
